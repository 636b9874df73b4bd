/** Runs a call through its lifecycle: admission, body, endpoint, reply, metrics and log. */
import type { Socket } from "node:net";
import type { Request, Response } from "express";
import type { Decoded } from "../codec/msgpack.ts";
import { asStepdError, StepdError } from "../errors/errors.ts";
import type { Observer } from "../rpc/rpc.ts";
import { secondsSince } from "./_clock.ts";
import { drainingError, type ServerContext } from "./_context.ts";
import { ClientGone, drainBody, LINGER_MS } from "./body.ts";
import type { Endpoint } from "./endpoints.ts";
import { bodyType, errorType, JSON_TYPE, type MediaType, replyType } from "./negotiate.ts";
import { requestId } from "./pages.ts";
import { isSent, type Reply } from "./reply.ts";

/** The traceparent header of W3C Trace Context: version, trace id, parent id, flags. */
const TRACEPARENT = /^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$/;

/** The data of a call for metrics and the log. */
interface CallRecord {
  readonly id: string;
  readonly traceparent: string | undefined;
  readonly start: number;
  /** The name of the caller's token. */
  caller: string | undefined;
  method: string;
  outcome: string;
  /** The number of method calls in the request. A batch may have several. */
  calls: number;
}

/** Every log line about a call has these fields. */
const logFields = ({ id, traceparent, caller }: CallRecord): Readonly<Record<string, string | undefined>> => ({ request_id: id, traceparent, caller });

/** Throws OVERLOADED if there are too many calls at once, or if the connection exceeds the limit of connections. */
const requireCapacity = ({ telemetry, limits, connections, completionRate }: ServerContext, socket: Socket): void => {
  if (connections.isSurplus(socket)) {
    throw new StepdError("OVERLOADED", `This server has ${limits.maxConnections} connections, which is all that it takes at once; this one ends`, {
      expected: `at most ${limits.maxConnections} connections at once`,
      retry_after: 1,
    });
  }
  const excess = telemetry.inFlight - limits.maxInFlight;
  if (excess <= 0) return;
  throw new StepdError("OVERLOADED", `This server has ${limits.maxInFlight} calls in hand, which is all that it takes at once`, {
    expected: `at most ${limits.maxInFlight} calls at once`,
    retry_after: completionRate.retryAfter(excess),
  });
};

/** Answers a call. Its lease is released after the last byte of the reply or after a failure. */
export const answerCall = async (service: ServerContext, req: Request, res: Response, endpoint: Endpoint): Promise<void> => {
  const { telemetry } = service;
  const { traceparent } = req.headers;
  const call: CallRecord = {
    id: requestId(res),
    traceparent: typeof traceparent === "string" && TRACEPARENT.test(traceparent) ? traceparent : undefined,
    start: performance.now(),
    caller: undefined,
    method: "unknown",
    outcome: "ok",
    calls: 0,
  };
  const flight = telemetry.beginCall();
  const observe: Observer = (method, outcome, error) => {
    call.method = call.calls++ === 0 ? method : "batch";
    // The outcome of a batch is its first failure.
    if (call.outcome === "ok") call.outcome = outcome;
    if (outcome === "NON_FINITE_GRADIENT") telemetry.countNonFinite();
    if (outcome === "INTERNAL_ERROR") telemetry.log.error({ err: error, ...logFields(call), method }, "a call failed");
  };
  const { socket } = req;
  let isComputing = false;
  const endComputing = (): void => {
    if (isComputing) service.connections.endComputing(socket);
    isComputing = false;
  };
  let type: MediaType | undefined;
  try {
    const requestType = endpoint.hasBody ? bodyType(req) : JSON_TYPE;
    type = replyType(req, requestType);
    call.caller = service.authenticator?.callerOf(req.headers.authorization);
    if (service.isDraining()) throw drainingError();
    requireCapacity(service, req.socket);
    using heap = service.heap.open();
    const received = endpoint.hasBody
      ? await service.receiver.receive({
          req,
          res,
          type: requestType,
          heap,
          onAdmitted: (bytes) => flight.addBytes(bytes),
          onReceived() {
            isComputing = true;
            service.connections.beginComputing(socket);
          },
        })
      : { lease: service.admission.lease(0, heap), bytes: Buffer.alloc(0) };
    using lease = received.lease;
    telemetry.recordPhase("receive", secondsSince(call.start));
    telemetry.countBytes("in", received.bytes.length);
    const body = async (): Promise<Decoded> => {
      const start = performance.now();
      try {
        return await service.decoder.decode(received.bytes, requestType, (values, stringBytes) => heap.growToValues(values, stringBytes));
      } finally {
        telemetry.recordPhase("decode", secondsSince(start));
      }
    };
    const running = endpoint.run({ service, req, lease, heap, body, type, id: call.id, caller: call.caller, observe });
    const reply = await running;
    endComputing();
    await deliver(service, res, reply, call);
  } catch (error) {
    endComputing();
    await replyWithError(service, req, res, endpoint, call, error, type ?? errorType(req));
  } finally {
    flight.end();
    telemetry.recordCall(call.method, call.outcome, secondsSince(call.start));
    service.completionRate.add(1);
    if (telemetry.log.isLevelEnabled("debug"))
      telemetry.log.debug({ ...logFields(call), method: call.method, outcome: call.outcome, seconds: secondsSince(call.start) }, "call");
  }
};

const replyWithError = async (
  service: ServerContext,
  req: Request,
  res: Response,
  endpoint: Endpoint,
  call: CallRecord,
  error: unknown,
  type: MediaType,
): Promise<void> => {
  if (error instanceof ClientGone) {
    call.outcome = "CLIENT_GONE";
    return;
  }
  const known = asStepdError(error);
  call.outcome = known.code;
  if (error !== known) service.telemetry.log.error({ err: error, ...logFields(call) }, "a call failed");
  const reply = endpoint.errorReply(service, known, type, call.id);
  const isUnread = !req.complete;
  if (isUnread) drainBody(req, known.code === "SLOW_BODY" ? Math.min(LINGER_MS, service.limits.idleTimeoutMs) : service.limits.idleTimeoutMs);
  // A caller that waits for 100 Continue must not send its body after the rejection, so its connection closes.
  const isLast = isUnread ? req.headers.expect !== undefined : service.connections.isSurplus(req.socket);
  const headers = { ...reply.headers, ...(isLast && { Connection: "close" }) };
  // Node would close the connection with the reply. Bytes that still arrive would then reset it, and the caller would lose the reply.
  if (isUnread && !isLast && !res.shouldKeepAlive) {
    res.shouldKeepAlive = true;
    const close = (): void => req.socket.destroySoon();
    req.once("end", () => (res.writableFinished ? close() : res.once("finish", close)));
  }
  await deliver(service, res, { ...reply, headers }, call);
};

/** Sends a call's reply. The reply holds memory, so a caller that reads too slowly is disconnected. Only complete replies are counted. */
const deliver = async ({ telemetry, limits, connections, replies }: ServerContext, res: Response, reply: Reply, call: CallRecord): Promise<void> => {
  const start = performance.now();
  // A pipelined response has no socket until its turn, so this is the request's socket.
  const { socket } = res.req;
  let isSlow = false;
  await replies.ready(reply);
  const sending = replies.send(res, reply);
  // Most small replies are already sent here and need no timer.
  if (!isSent(res)) {
    const timer = setTimeout(() => {
      isSlow = true;
      socket.destroy();
    }, limits.requestTimeoutMs);
    await sending.finally(() => clearTimeout(timer));
  }
  if (!isSent(res)) {
    call.outcome = "CLIENT_GONE";
    if (isSlow || connections.wasSilent(socket)) telemetry.countRefusal("SLOW_REPLY");
    return;
  }
  telemetry.recordPhase("send", secondsSince(start));
  telemetry.countBytes("out", reply.body.length);
};
