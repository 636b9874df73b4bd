/** Runs a call through its lifecycle: admission, body, endpoint, reply, metrics and log. */
import type { Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import type { Request, Response } from "express";
import type { Decoded } from "../codec/msgpack.ts";
import { asStepdError, StepdError } from "../errors/errors.ts";
import type { Lease, Observer } from "../rpc/rpc.ts";
import type { CallInFlight } from "../telemetry/telemetry.ts";
import { secondsSince } from "./_clock.ts";
import { drainingError, type ServerContext } from "./_context.ts";
import { OutgoingReply } from "./_pace.ts";
import { ClientGone, drainBody, LINGER_MS } from "./body.ts";
import type { Caller, CallPhase, Flight } from "./callers.ts";
import type { Endpoint } from "./endpoints.ts";
import type { HeapShare } from "./heap.ts";
import { bodyType, errorType, JSON_TYPE, type MediaType, replyType } from "./negotiate.ts";
import { requestId } from "./pages.ts";
import { isSent, type Reply } from "./reply.ts";

/** The traceparent header of W3C Trace Context: version, trace id, parent id, flags. */
const TRACEPARENT = /^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$/;

const headerText = (value: string | readonly string[] | undefined): string | undefined => (typeof value === "string" ? value : undefined);

/** The data of a call for metrics and the log. */
interface CallRecord {
  readonly id: string;
  readonly traceparent: string | undefined;
  readonly start: number;
  /** The name of the caller's token. */
  name: string | undefined;
  /** Undefined until the caller is authenticated. */
  caller: Caller | undefined;
  method: string;
  outcome: string;
  /** Whose limit refused the call. */
  limit: StepdError["detail"]["limit"];
  /** The number of method calls in the request. A batch may have several. */
  calls: number;
  bytesIn: number;
  bytesOut: number;
  /** The seconds of each phase that has ended. */
  readonly phases: Record<CallPhase, number>;
}

/** Every log line about a call has these fields. */
const logFields = ({ id, traceparent, name }: CallRecord): Readonly<Record<string, string | undefined>> => ({ request_id: id, traceparent, caller: name });

/** Throws OVERLOADED if the connection exceeds the limit of connections. */
const requireConnection = ({ limits, connections }: ServerContext, socket: Socket): void => {
  if (!connections.isSurplus(socket)) return;
  throw new StepdError("OVERLOADED", `This server has ${limits.maxConnections} connections, which is all that it takes at once; this one ends`, {
    limit: "server",
    expected: `at most ${limits.maxConnections} connections at once`,
    retry_after: 1,
  });
};

/** Answers a call. Its lease is released after the last byte of the reply or after a failure. */
export const answerCall = async (service: ServerContext, req: Request, res: Response, endpoint: Endpoint): Promise<void> => {
  const { telemetry, callers } = service;
  const { traceparent } = req.headers;
  const call: CallRecord = {
    id: requestId(res),
    traceparent: typeof traceparent === "string" && TRACEPARENT.test(traceparent) ? traceparent : undefined,
    start: performance.now(),
    name: undefined,
    caller: undefined,
    method: "unknown",
    outcome: "ok",
    limit: undefined,
    calls: 0,
    bytesIn: 0,
    bytesOut: 0,
    phases: { receive: 0, queue: 0, compute: 0, send: 0 },
  };
  const inFlight = telemetry.beginCall();
  let type: MediaType | undefined;
  let flight: Flight | undefined;
  try {
    const requestType = endpoint.hasBody ? bodyType(req) : JSON_TYPE;
    type = replyType(req, requestType);
    const identity = service.authenticator?.callerOf(req.headers.authorization);
    call.name = identity?.name;
    call.caller = callers.find(identity, req.socket);
    if (service.isDraining()) throw drainingError();
    requireConnection(service, req.socket);
    flight = callers.enter(call.caller, req.socket, call.id, (excess) => service.completionRate.retryAfter(excess));
    await runCall(service, { req, res, endpoint, requestType, type, call, flight, inFlight });
  } catch (error) {
    await replyWithError(service, req, res, endpoint, call, error, type ?? errorType(req));
  } finally {
    if (flight) callers.leave(flight);
    inFlight.end();
    const seconds = secondsSince(call.start);
    telemetry.recordCall(call.method, call.outcome, seconds, call.limit);
    call.caller?.countCall(call);
    service.completionRate.add(1);
    service.traces?.record({ ...call, tracestate: headerText(req.headers["tracestate"]), seconds });
    if (service.accessLog) telemetry.log.info(accessFields(call, req, seconds), "call");
    else if (telemetry.log.isLevelEnabled("debug")) telemetry.log.debug(accessFields(call, req, seconds), "call");
  }
};

const accessFields = (call: CallRecord, { socket }: Request, seconds: number): Readonly<Record<string, unknown>> => ({
  ...logFields(call),
  peer: socket.remoteAddress,
  method: call.method,
  outcome: call.outcome,
  limit: call.limit,
  bytes_in: call.bytesIn,
  bytes_out: call.bytesOut,
  seconds,
  phases: call.phases,
});

interface RunOptions {
  readonly req: Request;
  readonly res: Response;
  readonly endpoint: Endpoint;
  readonly requestType: MediaType;
  readonly type: MediaType;
  readonly call: CallRecord;
  readonly flight: Flight;
  readonly inFlight: CallInFlight;
}

/** Receives the body of an admitted call, waits for its turn, runs it and sends the reply. */
const runCall = async (service: ServerContext, { req, res, endpoint, requestType, type, call, flight, inFlight }: RunOptions): Promise<void> => {
  const { telemetry, turns, connections } = service;
  const { socket } = req;
  const observe: Observer = (method, outcome, error) => {
    call.method = call.calls++ === 0 ? method : "batch";
    flight.method = call.method;
    // The outcome of a batch is its first failure.
    if (call.outcome === "ok" && outcome !== "ok") {
      call.outcome = outcome;
      call.limit = error instanceof StepdError ? error.detail.limit : undefined;
    }
    if (outcome === "NON_FINITE_GRADIENT") {
      telemetry.countNonFinite();
      flight.caller.nonFinite++;
    }
    if (outcome === "INTERNAL_ERROR") telemetry.log.error({ err: error, ...logFields(call), method }, "a call failed");
  };
  let phaseStart = call.start;
  const beginPhase = (next: CallPhase): void => {
    call.phases[flight.phase] = secondsSince(phaseStart);
    phaseStart = performance.now();
    flight.phase = next;
  };
  using heap = service.heap.open(flight);
  flight.heap = heap;
  let endComputing = (): void => {};
  const endReceiving = (): void => {
    beginPhase("queue");
    telemetry.recordPhase("receive", call.phases.receive);
  };
  const onReceived = (lease: Lease): Promise<void> | undefined => {
    endReceiving();
    connections.beginComputing(socket);
    endComputing = () => connections.endComputing(socket);
    const begin = (): void => {
      beginPhase("compute");
      endComputing = () => {
        turns.end(flight.caller, performance.now() - phaseStart);
        connections.endComputing(socket);
      };
    };
    const turn = turns.begin(flight, () => {
      lease[Symbol.dispose]();
      heap[Symbol.dispose]();
    });
    if (!turn) begin();
    return turn?.then(begin);
  };
  const onAdmitted = (bytes: number): void => flight.admit(bytes);
  const onChunk = (bytes: number): void => inFlight.addBytes(bytes);
  try {
    const received = endpoint.hasBody
      ? await service.receiver.receive({ req, res, type: requestType, heap, flight, onAdmitted, onChunk, onReceived })
      : { lease: service.admission.lease(0, heap), bytes: Buffer.alloc(0) };
    using lease = received.lease;
    if (!endpoint.hasBody) await onReceived(lease);
    call.bytesIn = received.bytes.length;
    telemetry.countBytes("in", call.bytesIn);
    const body = async (): Promise<Decoded> => {
      const start = performance.now();
      try {
        return await service.decoder.decode(received.bytes, requestType, (values, stringBytes) => heap.growToValues(values, stringBytes));
      } finally {
        telemetry.recordPhase("decode", secondsSince(start));
      }
    };
    const reply = await endpoint.run({ service, req, lease, heap, body, type, id: call.id, caller: call.name, observe });
    endComputing();
    endComputing = () => {};
    beginPhase("send");
    await deliver(service, res, reply, call, { lease, heap });
    call.phases.send = secondsSince(phaseStart);
  } finally {
    endComputing();
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
  call.limit = known.detail.limit;
  if (error !== known) service.telemetry.log.error({ err: error, ...logFields(call) }, "a call failed");
  const reply = endpoint.errorReply(service, known, type, call.id);
  if (known.code === "OVERLOADED" && call.caller && service.callers.isShared) await sleep(call.caller.delayOfRefusal());
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

/** The memory of a call, which its reply may hold. */
interface ReplyMemory {
  readonly lease: Lease;
  readonly heap: HeapShare;
}

/** Sends a call's reply. The reply holds memory, so a caller that reads too slowly is disconnected. Only complete replies are counted. */
const deliver = async (
  { telemetry, pace, connections, replies }: ServerContext,
  res: Response,
  reply: Reply,
  call: CallRecord,
  memory?: ReplyMemory,
): Promise<void> => {
  const start = performance.now();
  // A pipelined response has no socket until its turn, so this is the request's socket.
  const { socket } = res.req;
  let isSlow = false;
  await replies.ready(reply);
  const sending = replies.send(res, reply);
  // Most small replies are already sent here and need no watch.
  if (!isSent(res)) {
    const outgoing = new OutgoingReply(res, reply.body.length, memory?.heap, () => {
      isSlow = true;
      // A destroyed socket reads nothing any more, so the memory is free at once.
      socket.destroy();
      memory?.lease[Symbol.dispose]();
      memory?.heap[Symbol.dispose]();
    });
    pace.watch(outgoing);
    await sending.finally(() => pace.forget(outgoing));
  }
  if (!isSent(res)) {
    call.outcome = "CLIENT_GONE";
    if (isSlow || connections.wasSilent(socket)) telemetry.countRefusal("SLOW_REPLY");
    return;
  }
  telemetry.recordPhase("send", secondsSince(start));
  call.bytesOut = reply.body.length;
  telemetry.countBytes("out", call.bytesOut);
};
