/** The Express application: routes, and the way of a call from its headers to its last byte out. */
import { randomUUID } from "node:crypto";
import { createServer, type Server } from "node:http";
import express, { type Express, type NextFunction, type Request, type Response } from "express";
import { Parts } from "../codec/parts.ts";
import { asStepdError, type ErrorName, errors, StepdError } from "../errors/errors.ts";
import { errorReply, type Method, type Observer } from "../rpc/rpc.ts";
import type { BodyLease, Service } from "./_types.ts";
import { ClientGone, receive } from "./body.ts";
import { bodyType, type MediaType, replyType } from "./negotiate.ts";
import { decode, encode, problem, type Reply, retryHeaders, send } from "./reply.ts";

export type { Admission, Limits, Service } from "./_types.ts";

const JSON_NAME = "application/json";

/** A request that takes too long is ended late by at most this part of its time. */
const TIMEOUT_CHECKS = 10;

/** Only these characters of a caller's X-Request-Id go into logs and replies. */
const REQUEST_ID = /^[\w.:-]{1,128}$/;

/** A call from its headers on, for metrics and the log. */
interface Call {
  readonly id: string;
  readonly start: number;
  method: string;
  outcome: string;
}

const seconds = (since: number): number => (performance.now() - since) / 1000;

/** The server, not yet listening. */
export const createHttpServer = (service: Service): Server => {
  const { limits } = service;
  const app = createApp(service);
  const server = createServer(
    {
      requestTimeout: limits.requestTimeoutMs,
      headersTimeout: limits.requestTimeoutMs,
      keepAliveTimeout: limits.keepAliveTimeoutMs,
      // Node looks for requests that take too long this often, every 30 s if not told.
      connectionsCheckingInterval: Math.ceil(limits.requestTimeoutMs / TIMEOUT_CHECKS),
    },
    app,
  );
  // With a listener of our own, a caller that waits for 100 Continue gets it after admission (body.ts), or a refusal instead.
  server.on("checkContinue", app);
  server.setTimeout(limits.idleTimeoutMs);
  return server;
};

const createApp = (service: Service): Express => {
  const app = express();
  app.disable("x-powered-by");
  app.disable("etag");
  const { rpc, telemetry } = service;

  app.use((req, res, next) => {
    const given = req.headers["x-request-id"];
    res.setHeader("X-Request-Id", typeof given === "string" && REQUEST_ID.test(given) ? given : randomUUID());
    next();
  });
  app.get(["/health/live", "/v2/health/live"], (_, res) => {
    res.json({ live: true });
  });
  app.get(["/health/ready", "/v2/health/ready"], (_, res) => {
    res.status(service.isReady() ? 200 : 503).json({ ready: service.isReady() });
  });
  app.get("/metrics", async (_, res) => {
    res.type(telemetry.contentType).send(await telemetry.metrics());
  });
  app.get("/openrpc.json", (_, res) => {
    res.json(rpc.openRpc);
  });
  app.get("/openapi.json", (_, res) => {
    res.json(rpc.openApi);
  });
  app.get("/v1", (_, res) => {
    res.json(service.info());
  });
  app.post("/rpc", (req, res) => answer(service, req, res, rpcCall));
  for (const method of rpc.methods) {
    if (!method.rest?.path.startsWith("/v1/")) continue;
    const path = method.rest.path.replaceAll(/\{(\w+)\}/g, ":$1");
    if (method.rest.verb === "GET") app.get(path, (req, res) => answer(service, req, res, restGet(method)));
    else app.post(path, (req, res) => answer(service, req, res, restPost(method)));
  }
  refuseOtherVerbs(app, service);
  app.use((req, res) =>
    send(
      res,
      problem(new StepdError("NOT_FOUND", `There is nothing at ${req.path}; GET /openapi.json lists the addresses`, { found: req.path }), requestId(res)),
    ),
  );
  app.use((error: unknown, _: Request, res: Response, __: NextFunction) => {
    // What Express itself refuses, for instance a malformed percent escape.
    const status = (error as { status?: number }).status ?? 500;
    if (status >= 500) telemetry.log.error({ err: error, request_id: requestId(res) }, "a request failed");
    const known = status < 500 ? new StepdError("INVALID_REQUEST", `The request is malformed: ${(error as Error).message}`) : asStepdError(error);
    return send(res, problem(known, requestId(res)));
  });
  return app;
};

/** 405 with Allow for addresses that exist. */
const refuseOtherVerbs = (app: Express, { rpc }: Service): void => {
  const allowed = new Map<string, string>([
    ["/rpc", "POST"],
    ...["/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready", "/metrics", "/openrpc.json", "/openapi.json", "/v1"].map(
      (path) => [path, "GET"] as const,
    ),
  ]);
  for (const { rest } of rpc.methods) if (rest) allowed.set(rest.path.replaceAll(/\{(\w+)\}/g, ":$1"), rest.verb);
  for (const [path, verb] of allowed) {
    app.all(path, (req, res) => {
      const reply = problem(StepdError.mismatch("METHOD_NOT_ALLOWED", req.path, verb, req.method), requestId(res));
      return send(res, { ...reply, headers: { Allow: verb === "GET" ? "GET, HEAD" : verb } });
    });
  }
};

const requestId = (res: Response): string => String(res.getHeader("X-Request-Id"));

/** How one kind of call is answered: everything between the transport's checks and the sending. */
interface Kind {
  /** Whether a body comes. */
  readonly hasBody: boolean;
  run(call: {
    readonly service: Service;
    readonly req: Request;
    readonly lease: BodyLease;
    readonly body: () => unknown;
    readonly type: MediaType;
    readonly id: string;
    readonly observe: Observer;
  }): Promise<Reply>;
  /** The reply to a failure before or outside of `run`. */
  refuse(error: StepdError, type: MediaType, id: string): Reply;
}

const restRefuse = (error: StepdError, _: MediaType, id: string): Reply => problem(error, id);

const rpcCall: Kind = {
  hasBody: true,
  async run({ service, lease, body, type, id, observe }) {
    let value: unknown;
    try {
      value = body();
    } catch (error) {
      observe("unknown", asStepdError(error).code, error);
      return { status: 200, type: type.name, body: encode(errorReply(null, asStepdError(error), id), type) };
    }
    const { status, value: reply, retryAfter } = await service.rpc.handle(value, contextOf(service, lease), id, observe);
    if (reply === undefined) return { status, type: type.name, body: new Parts([]) };
    return { status, type: type.name, body: timedEncode(service, reply, type), headers: retryHeaders(retryAfter) };
  },
  refuse: (error, type, id) => ({
    status: errors[error.code].status,
    type: type.name,
    body: encode(errorReply(null, error, id), type),
    headers: retryHeaders(error.detail.retry_after),
  }),
};

const restPost = ({ name }: Method): Kind => ({
  hasBody: true,
  async run({ service, lease, body, type, observe }) {
    let params: unknown;
    try {
      params = body();
    } catch (error) {
      observe(name, asStepdError(error).code, error);
      throw error;
    }
    const result = await service.rpc.call(name, params, contextOf(service, lease), observe);
    return { status: 200, type: type.name, body: timedEncode(service, result, type) };
  },
  refuse: restRefuse,
});

const restGet = ({ name }: Method): Kind => ({
  hasBody: false,
  async run({ service, req, lease, type, observe }) {
    const result = await service.rpc.call(name, { ...req.params }, contextOf(service, lease), observe);
    return { status: 200, type: type.name, body: encode(result, type) };
  },
  refuse: restRefuse,
});

type RpcContext = Parameters<Service["rpc"]["call"]>[2];

/** The service's own leases are the arena's; the transport sees less of them. */
const contextOf = ({ engine, telemetry }: Service, lease: BodyLease): RpcContext => ({ engine, telemetry, lease: lease as RpcContext["lease"] });

const timedEncode = ({ telemetry }: Service, value: unknown, type: MediaType): Parts => {
  const start = performance.now();
  const parts = encode(value, type);
  telemetry.phase("encode", seconds(start));
  return parts;
};

/** The way of a call. The lease is given back on every way out, after the last byte of the reply is. */
const answer = async (service: Service, req: Request, res: Response, kind: Kind): Promise<void> => {
  const { telemetry } = service;
  const call: Call = { id: requestId(res), start: performance.now(), method: "unknown", outcome: "ok" };
  const end = telemetry.begin(Number(req.headers["content-length"] ?? 0));
  const observe: Observer = (method, outcome, error) => {
    call.method = method;
    call.outcome = outcome;
    if (outcome === "NON_FINITE_GRADIENT") telemetry.nonFinite();
    if (outcome === "INTERNAL_ERROR") telemetry.log.error({ err: error, request_id: call.id, method }, "a call failed");
  };
  let type: MediaType = { format: "json", name: JSON_NAME };
  try {
    const own = kind.hasBody ? bodyType(req) : type;
    type = own;
    type = replyType(req, own);
    if (service.isDraining()) throw new StepdError("DRAINING", "This server is shutting down; send the call to another", { retry_after: 1 });
    const received = kind.hasBody
      ? await receive(req, res, own, service.admission, service.limits)
      : { lease: service.admission.lease(0), bytes: Buffer.alloc(0) };
    using lease = received.lease;
    telemetry.phase("receive", seconds(call.start));
    telemetry.moved("in", received.bytes.length);
    const body = (): unknown => {
      const start = performance.now();
      const value = decode(received.bytes, own);
      telemetry.phase("decode", seconds(start));
      return value;
    };
    // Only the caller's silence counts, not the time that its call waits for the workers.
    req.socket.setTimeout(0);
    const reply = await kind.run({ service, req, lease, body, type, id: call.id, observe }).finally(() => req.socket.setTimeout(service.limits.idleTimeoutMs));
    const start = performance.now();
    await send(res, reply);
    telemetry.phase("send", seconds(start));
    telemetry.moved("out", reply.body.length);
  } catch (error) {
    await refuse(service, req, res, kind, call, error, type);
  } finally {
    end();
    telemetry.requested(call.method, call.outcome, seconds(call.start));
    telemetry.log.debug({ request_id: call.id, method: call.method, outcome: call.outcome, seconds: seconds(call.start) }, "call");
  }
};

const refuse = async ({ telemetry, limits }: Service, req: Request, res: Response, kind: Kind, call: Call, error: unknown, type: MediaType): Promise<void> => {
  if (error instanceof ClientGone) {
    call.outcome = "CLIENT_GONE";
    return;
  }
  const known = asStepdError(error);
  call.outcome = known.code;
  if (error !== known) telemetry.log.error({ err: error, request_id: call.id }, "a call failed");
  if (REFUSALS.includes(known.code)) telemetry.refused(known.code);
  const reply = kind.refuse(known, type, call.id);
  // The rest of a refused body is read and dropped, so that the caller can finish sending and see the reply. What takes too
  // long is cut off.
  const isUnread = !req.complete;
  if (isUnread) {
    req.resume();
    setTimeout(() => req.complete || req.socket.destroy(), limits.idleTimeoutMs).unref();
  }
  await send(res, { ...reply, headers: { ...reply.headers, ...(isUnread && req.headers.expect !== undefined && { Connection: "close" }) } });
};

const REFUSALS: readonly ErrorName[] = ["OVERLOADED", "PAYLOAD_TOO_LARGE", "DRAINING", "UNSUPPORTED_MEDIA_TYPE", "NOT_ACCEPTABLE", "UNAUTHENTICATED"];
