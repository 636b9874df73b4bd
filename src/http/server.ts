/** The Express application: routes, and the way of a call from its headers to its last byte out. */
import { randomUUID } from "node:crypto";
import { createServer, type Server } from "node:http";
import { createServer as createTlsServer } from "node:https";
import type { Socket } from "node:net";
import cors from "cors";
import express, { type Express, type NextFunction, type Request, type Response } from "express";
import { Parts } from "../codec/parts.ts";
import { OneAtATime } from "../codec/turns.ts";
import { asStepdError, errors, StepdError } from "../errors/errors.ts";
import { Outflow } from "../errors/outflow.ts";
import { errorReply, type Lease, type Method, type Observer } from "../rpc/rpc.ts";
import { Connections } from "./_connections.ts";
import type { Service } from "./_types.ts";
import { ClientGone, dropRest, LINGER_MS, Receiver } from "./body.ts";
import type { HeapShare } from "./heap.ts";
import { bodyType, JSON_TYPE, type MediaType, refusalType, replyType } from "./negotiate.ts";
import { addDocuments, addHealth, addMetrics, MAX_HEADER_BYTES, problemFor, refuseOtherVerbs, requestId } from "./pages.ts";
import { decoding, encode, encodeError, errorHeaders, isOut, join, problem, type Reply, ready, retryHeader, send } from "./reply.ts";

export type { Admission, Limits, Service } from "./_types.ts";
export { HeapBudget } from "./heap.ts";
export { createAdminServer } from "./pages.ts";
export { readTls, renewTls, type Tls, type TlsFiles } from "./tls.ts";
export { Tokens } from "./tokens.ts";

/** A request that takes too long is ended late by at most this part of its time. */
const TIMEOUT_CHECKS = 10;

/** Only these characters of a caller's X-Request-Id go into logs and replies. */
const REQUEST_ID = /^[\w.:-]{1,128}$/;

/** W3C Trace Context: version, trace id, parent id, flags. */
const TRACEPARENT = /^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$/;

/** How long a browser may keep what a preflight said, in seconds. */
const PREFLIGHT_SECONDS = 600;

/** A call from its headers on, for metrics and the log. */
interface Call {
  readonly id: string;
  readonly traceparent: string | undefined;
  readonly start: number;
  /** The name of the caller's token. */
  caller: string | undefined;
  method: string;
  outcome: string;
  /** Methods called: more than one in a batch. */
  calls: number;
}

/** What every line of the log about a call carries. */
const logged = ({ id, traceparent, caller }: Call): Readonly<Record<string, string | undefined>> => ({ request_id: id, traceparent, caller });

const seconds = (since: number): number => (performance.now() - since) / 1000;

/** What calls of one server share beside the service. */
interface Running extends Service {
  readonly receiver: Receiver;
  readonly connections: Connections;
  /** Calls that ended, for the time after which a refused one may come again. */
  readonly finished: Outflow;
  /** Large bodies are read one at a time. */
  readonly decodes: OneAtATime;
}

/** A server that does not listen yet. */
export interface HttpServer {
  readonly server: Server;
  /** Refuses calls whose bodies are not in, because there is no more time for them. Returns how many. */
  refuseBodies(): number;
}

const draining = (): StepdError => new StepdError("DRAINING", "This server is shutting down; send the call to another", { retry_after: 1 });

export const createHttpServer = (service: Service): HttpServer => {
  const { limits, tls, telemetry } = service;
  const receiver = new Receiver(service.admission, service.heap, limits);
  const connections = new Connections(telemetry, limits);
  const app = createApp({ ...service, receiver, connections, finished: new Outflow(), decodes: new OneAtATime() });
  const shortest = Math.min(limits.requestTimeoutMs, limits.idleTimeoutMs);
  const options = {
    handshakeTimeout: limits.idleTimeoutMs,
    // Node's own refusals have no body. Ours of a slow body comes first, and the 408 of slow headers before silence ends the connection.
    requestTimeout: limits.requestTimeoutMs + 2 * LINGER_MS,
    headersTimeout: shortest - Math.ceil((2 * shortest) / TIMEOUT_CHECKS),
    keepAliveTimeout: limits.keepAliveTimeoutMs,
    maxHeaderSize: MAX_HEADER_BYTES,
    // Node looks for requests that take too long this often, every 30 s if not told.
    connectionsCheckingInterval: Math.ceil(shortest / TIMEOUT_CHECKS),
  };
  const server = tls ? createTlsServer({ ...options, ...tls }, app) : createServer(options, app);
  connections.watch(server, tls !== undefined);
  // With a listener of our own, a caller that waits for 100 Continue gets it after admission (body.ts), or a refusal instead.
  server.on("checkContinue", app);
  server.setTimeout(limits.idleTimeoutMs, (socket) => {
    // Only the caller's silence counts, not the time that its call waits for the workers.
    if (!connections.isComputing(socket) && !receiver.refuseSilent(socket)) connections.cutSilent(socket);
  });
  return { server, refuseBodies: () => receiver.refuseAll(draining()) };
};

const createApp = (service: Running): Express => {
  const app = express();
  app.disable("x-powered-by");
  app.disable("etag");
  const { rpc, telemetry, connections } = service;

  app.use((req, res, next) => {
    if (connections.cutFlooded(req.socket, res)) return;
    const given = req.headers["x-request-id"];
    res.setHeader("X-Request-Id", typeof given === "string" && REQUEST_ID.test(given) ? given : randomUUID());
    next();
  });
  if (service.corsOrigins.length > 0) {
    app.use(
      cors({
        origin: service.corsOrigins.includes("*") ? "*" : [...service.corsOrigins],
        methods: ["GET", "POST"],
        exposedHeaders: ["X-Request-Id", "Retry-After", "Repr-Digest"],
        maxAge: PREFLIGHT_SECONDS,
      }),
    );
  }
  // In the order of how often they are asked for: Express tries one route after the other.
  app.post("/rpc", (req, res) => answer(service, req, res, rpcCall));
  for (const method of rpc.methods) {
    if (!method.rest?.path.startsWith("/v1/")) continue;
    const path = method.rest.path.replaceAll(/\{(\w+)\}/g, ":$1");
    const kind = method.rest.verb === "GET" ? restGet(method) : restPost(method);
    app[method.rest.verb === "GET" ? "get" : "post"](path, (req, res) => answer(service, req, res, kind));
  }
  addHealth(app, service);
  /** For what has no body, so that nothing has to be read before it is refused. */
  const guard = (req: Request, res: Response, next: NextFunction): void => {
    try {
      service.callers?.callerOf(req.headers.authorization);
      next();
    } catch (error) {
      telemetry.refused("UNAUTHENTICATED");
      void send(res, problemFor(req, res, asStepdError(error)));
    }
  };
  if (!service.hasAdmin) addMetrics(app, service, guard);
  addDocuments(app, service, guard);
  refuseOtherVerbs(app, service);
  app.use((req, res) => {
    const error = new StepdError("NOT_FOUND", `There is nothing at ${req.path}; GET /openapi.json lists the addresses`, { found: req.path });
    return send(res, problemFor(req, res, error));
  });
  app.use((error: unknown, req: Request, res: Response, __: NextFunction) => {
    // What Express itself refuses, for instance a malformed percent escape.
    const status = (error as { status?: number }).status ?? 500;
    if (status >= 500) telemetry.log.error({ err: error, request_id: requestId(res) }, "a request failed");
    const known = status < 500 ? new StepdError("INVALID_REQUEST", `The request is malformed: ${(error as Error).message}`) : asStepdError(error);
    return send(res, problemFor(req, res, known));
  });
  return app;
};

/** How one kind of call is answered: everything between the transport's checks and the sending. */
interface Kind {
  /** Whether a body comes. */
  readonly hasBody: boolean;
  run(call: {
    readonly service: Service;
    readonly req: Request;
    readonly lease: Lease;
    readonly heap: HeapShare;
    readonly body: () => Promise<unknown>;
    readonly type: MediaType;
    readonly id: string;
    readonly caller: string | undefined;
    readonly observe: Observer;
  }): Promise<Reply>;
  /** The reply to a failure before or outside of `run`. */
  refuse(error: StepdError, type: MediaType, id: string): Reply;
}

const restRefuse = (error: StepdError, type: MediaType, id: string): Reply => problem(error, id, type);

const rpcCall: Kind = {
  hasBody: true,
  async run({ service, lease, heap, body, type, id, caller, observe }) {
    let value: unknown;
    try {
      value = await body();
    } catch (error) {
      observe("unknown", asStepdError(error).code, error);
      return { status: 200, type: type.name, body: encodeError(errorReply(null, asStepdError(error), id), type) };
    }
    let encoded = 0;
    const finish = async (result: unknown): Promise<Parts> => {
      const parts = await timedEncode(service, result, type, (bytes) => heap.growToReply(encoded + bytes));
      encoded += type.format === "json" ? parts.length : headBytes(parts, lease);
      return parts;
    };
    const { status, value: reply, retryAfter } = await service.rpc.handle(value, { lease, caller }, id, observe, finish);
    if (reply === undefined) return { status, type: type.name, body: new Parts([]) };
    const parts = Array.isArray(reply) ? join(reply as Parts[], type) : await finish(reply);
    return { status, type: type.name, body: parts, headers: retryHeader(retryAfter) };
  },
  refuse: (error, type, id) => ({
    status: errors[error.code].status,
    type: type.name,
    body: encodeError(errorReply(null, error, id), type),
    headers: errorHeaders(error),
  }),
};

const restPost = ({ name }: Method): Kind => ({
  hasBody: true,
  async run({ service, lease, heap, body, type, caller, observe }) {
    let value: unknown;
    try {
      value = await body();
    } catch (error) {
      observe(name, asStepdError(error).code, error);
      throw error;
    }
    const result = await service.rpc.call(name, value, { lease, caller }, observe);
    return { status: 200, type: type.name, body: await timedEncode(service, await service.rpc.wire(name, result), type, (bytes) => heap.growToReply(bytes)) };
  },
  refuse: restRefuse,
});

const restGet = ({ name }: Method): Kind => ({
  hasBody: false,
  async run({ service, req, lease, heap, type, caller, observe }) {
    const result = await service.rpc.call(name, { ...req.params }, { lease, caller }, observe).catch((error) => {
      throw inPath(error);
    });
    return { status: 200, type: type.name, body: await timedEncode(service, await service.rpc.wire(name, result), type, (bytes) => heap.growToReply(bytes)) };
  },
  refuse: restRefuse,
});

/** All parameters of a GET are in its path, and a path with a wrong one leads nowhere. */
const inPath = (error: unknown): unknown =>
  error instanceof StepdError && error.code === "INVALID_PARAMS" ? new StepdError("NOT_FOUND", error.message, error.detail) : error;

/** Bytes of a reply that are no views of the arena. */
const headBytes = ({ pieces }: Parts, lease: Lease): number =>
  pieces.reduce((sum, piece) => (piece.buffer === lease.bytes.buffer ? sum : sum + piece.length), 0);

const timedEncode = async ({ telemetry }: Service, value: unknown, type: MediaType, onBytes: (bytes: number) => void): Promise<Parts> => {
  const start = performance.now();
  const parts = await encode(value, type, onBytes);
  telemetry.phase("encode", seconds(start));
  return parts;
};

/** Refuses a call where there are too many already, itself counted, or too many connections. */
const requirePlace = ({ telemetry, limits, connections, finished }: Running, socket: Socket): void => {
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
    retry_after: finished.retryAfter(excess),
  });
};

/** The way of a call. The lease is given back on every way out, after the last byte of the reply is. */
const answer = async (service: Running, req: Request, res: Response, kind: Kind): Promise<void> => {
  const { telemetry } = service;
  const { traceparent } = req.headers;
  const call: Call = {
    id: requestId(res),
    traceparent: typeof traceparent === "string" && TRACEPARENT.test(traceparent) ? traceparent : undefined,
    start: performance.now(),
    caller: undefined,
    method: "unknown",
    outcome: "ok",
    calls: 0,
  };
  const flight = telemetry.begin();
  const observe: Observer = (method, outcome, error) => {
    call.method = call.calls++ === 0 ? method : "batch";
    // Of a batch, the first failure.
    if (call.outcome === "ok") call.outcome = outcome;
    if (outcome === "NON_FINITE_GRADIENT") telemetry.nonFinite();
    if (outcome === "INTERNAL_ERROR") telemetry.log.error({ err: error, ...logged(call), method }, "a call failed");
  };
  let type: MediaType | undefined;
  try {
    const own = kind.hasBody ? bodyType(req) : JSON_TYPE;
    type = replyType(req, own);
    call.caller = service.callers?.callerOf(req.headers.authorization);
    if (service.isDraining()) throw draining();
    requirePlace(service, req.socket);
    using heap = service.heap.open();
    using computing = new DisposableStack();
    const received = kind.hasBody
      ? await service.receiver.receive({
          req,
          res,
          type: own,
          heap,
          hold: (bytes) => flight.hold(bytes),
          compute: () => computing.use(service.connections.compute(req.socket)),
        })
      : { lease: service.admission.lease(0, heap), bytes: Buffer.alloc(0) };
    using lease = received.lease;
    telemetry.phase("receive", seconds(call.start));
    telemetry.moved("in", received.bytes.length);
    const body = async (): Promise<unknown> => {
      const start = performance.now();
      try {
        return await service.decodes.run(decoding(received.bytes, own, (values, stringBytes) => heap.growToValues(values, stringBytes)));
      } finally {
        telemetry.phase("decode", seconds(start));
      }
    };
    const running = kind.run({ service, req, lease, heap, body, type, id: call.id, caller: call.caller, observe });
    const reply = await running.finally(() => computing.dispose());
    await deliver(service, res, reply, call);
  } catch (error) {
    await refuse(service, req, res, kind, call, error, type ?? refusalType(req));
  } finally {
    flight.end();
    telemetry.requested(call.method, call.outcome, seconds(call.start));
    service.finished.add(1);
    if (telemetry.log.isLevelEnabled("debug"))
      telemetry.log.debug({ ...logged(call), method: call.method, outcome: call.outcome, seconds: seconds(call.start) }, "call");
  }
};

const refuse = async (service: Running, req: Request, res: Response, kind: Kind, call: Call, error: unknown, type: MediaType): Promise<void> => {
  if (error instanceof ClientGone) {
    call.outcome = "CLIENT_GONE";
    return;
  }
  const known = asStepdError(error);
  call.outcome = known.code;
  if (error !== known) service.telemetry.log.error({ err: error, ...logged(call) }, "a call failed");
  const reply = kind.refuse(known, type, call.id);
  const isUnread = !req.complete;
  if (isUnread) dropRest(req, known.code === "SLOW_BODY" ? Math.min(LINGER_MS, service.limits.idleTimeoutMs) : service.limits.idleTimeoutMs);
  // Who waits for 100 Continue has sent nothing yet, and may not now.
  const isLast = isUnread ? req.headers.expect !== undefined : service.connections.isSurplus(req.socket);
  const headers = { ...reply.headers, ...(isLast && { Connection: "close" }) };
  // Node ends the connection with the last reply, and what the caller is still sending would destroy that on its way.
  if (isUnread && !isLast && !res.shouldKeepAlive) {
    res.shouldKeepAlive = true;
    const close = (): void => req.socket.destroySoon();
    req.once("end", () => (res.writableFinished ? close() : res.once("finish", close)));
  }
  await deliver(service, res, { ...reply, headers }, call);
};

/** Sends a call's reply, and counts it if it was sent whole. A caller that takes too long to read it is cut off: it holds memory. */
const deliver = async ({ telemetry, limits, connections }: Running, res: Response, reply: Reply, call: Call): Promise<void> => {
  const start = performance.now();
  // A reply that waits behind another of its connection has no socket of its own yet.
  const { socket } = res.req;
  let isSlow = false;
  await ready(reply);
  const sending = send(res, reply);
  // Small replies are with the system by now.
  if (!isOut(res)) {
    const timer = setTimeout(() => {
      isSlow = true;
      socket.destroy();
    }, limits.requestTimeoutMs);
    await sending.finally(() => clearTimeout(timer));
  }
  if (!isOut(res)) {
    call.outcome = "CLIENT_GONE";
    if (isSlow || connections.wasSilent(socket)) telemetry.refused("SLOW_REPLY");
    return;
  }
  telemetry.phase("send", seconds(start));
  telemetry.moved("out", reply.body.length);
};
