/** Defines the routes that are not calls: health, metrics, documents, and 405 for other HTTP methods. */
import { createServer, type Server } from "node:http";
import express, { type Express, type Request, type RequestHandler, type Response } from "express";
import { StepdError } from "../errors/errors.ts";
import { LOG_LEVELS } from "../telemetry/levels.ts";
import { secondsSince } from "./_clock.ts";
import type { ServerContext } from "./_context.ts";
import type { Service } from "./_types.ts";
import type { Flight } from "./callers.ts";
import { errorType } from "./negotiate.ts";
import type { Replies, Reply } from "./reply.ts";

/** A request's headers have at most this many bytes. */
export const MAX_HEADER_BYTES = 16384;

export const requestId = (res: Response): string => String(res.getHeader("X-Request-Id"));

/** Builds the error reply for a request that is not a call. */
export const problemFor = (replies: Replies, req: Request, res: Response, error: StepdError): Reply => replies.problem(error, requestId(res), errorType(req));

export const addHealth = (app: Express, service: Service): void => {
  app.get(["/health/live", "/v2/health/live"], (_, res) => {
    res.json({ live: true });
  });
  app.get(["/health/ready", "/v2/health/ready"], (_, res) => {
    res.status(service.isReady() ? 200 : 503).json({ ready: service.isReady() });
  });
};

export const addMetrics = (app: Express, { telemetry }: Service, ...guards: readonly RequestHandler[]): void => {
  // Concurrent requests share one encoding of the metrics.
  let encoding: Promise<Buffer> | undefined;
  const scrape = (): Promise<Buffer> => {
    encoding ??= telemetry.metrics().then((text) => {
      encoding = undefined;
      return Buffer.from(text);
    });
    return encoding;
  };
  app.get("/metrics", ...guards, async (_, res) => {
    res.type(telemetry.contentType).send(await scrape());
  });
};

/** Creates the admin server on its own port: health, metrics, calls in flight, callers, settings and the level of the log. */
export const createAdminServer = (service: Service): Server => {
  const { callers, telemetry, settings } = service;
  const app = express();
  app.disable("x-powered-by");
  addHealth(app, service);
  addMetrics(app, service);
  app.get("/calls", (_, res) => {
    res.json({ calls: [...callers.flights].map(describeFlight) });
  });
  app.get("/callers", (_, res) => {
    res.json({ callers: describeCallers(service) });
  });
  app.get("/settings", (_, res) => {
    res.json({ ...settings, STEPD_LOG_LEVEL: telemetry.level });
  });
  app.get("/log-level", (_, res) => {
    res.json({ level: telemetry.level });
  });
  app.put("/log-level/:level", (req, res) => {
    const { level } = req.params;
    const isSet = telemetry.setLevel(level);
    const expected = `one of ${LOG_LEVELS.join(", ")}, and at the start a level other than silent`;
    res.status(isSet ? 200 : 400).json(isSet ? { level } : { error: `level: expected ${expected}, found ${JSON.stringify(level)}` });
  });
  return createServer({ maxHeaderSize: MAX_HEADER_BYTES }, app);
};

/** Describes the callers that have a token: what they hold, and their limits in the tokens file. */
const describeCallers = ({ authenticator, callers }: Service) => {
  const active = new Map([...callers.named].map((caller) => [caller.name, caller]));
  return [...(authenticator?.identities ?? [])].map(({ name, limits }) => {
    const caller = active.get(name);
    return { caller: name, limits, calls: caller?.flights.size ?? 0, connections: caller?.sockets.size ?? 0, arena_bytes: caller?.arenaBytes ?? 0 };
  });
};

/** Describes a call in flight for an operator. */
const describeFlight = ({ caller, id, socket, method, phase, bytes, start, lease }: Flight) => ({
  caller: caller.name,
  peer: socket.remoteAddress ?? "local",
  request_id: id,
  method,
  phase,
  body_bytes: bytes,
  arena_bytes: lease?.held ?? 0,
  seconds: secondsSince(start),
});

/** Replies 405 with an Allow header if an existing path is requested with another HTTP method. */
export const rejectOtherMethods = (app: Express, { rpc, hasAdmin, replies }: ServerContext): void => {
  const allowed = new Map<string, string>([
    ["/rpc", "POST"],
    ...[
      "/",
      "/health/live",
      "/health/ready",
      "/v2/health/live",
      "/v2/health/ready",
      "/openrpc.json",
      "/openapi.json",
      "/v1",
      ...(hasAdmin ? [] : ["/metrics"]),
    ].map((path) => [path, "GET"] as const),
  ]);
  for (const { rest } of rpc.methods) if (rest) allowed.set(rest.path.replaceAll(/\{(\w+)\}/g, ":$1"), rest.verb);
  for (const [path, verb] of allowed) {
    app.all(path, (req, res) => {
      const reply = problemFor(replies, req, res, StepdError.mismatch("METHOD_NOT_ALLOWED", req.path, verb, req.method));
      return replies.send(res, { ...reply, headers: { Allow: verb === "GET" ? "GET, HEAD" : verb } });
    });
  }
};

/** Serves the OpenRPC and OpenAPI documents and, at /v1, the description of this server. */
export const addDocuments = (app: Express, { rpc, info }: Service, authenticate: RequestHandler): void => {
  for (const [path, document] of [
    ["/openrpc.json", rpc.openRpc],
    ["/openapi.json", rpc.openApi],
  ] as const) {
    // The documents are large, and each slow reader would hold a copy. So all replies share one buffer.
    const bytes = Buffer.from(JSON.stringify(document));
    app.get(path, authenticate, (_, res) => {
      res.type("json").send(bytes);
    });
  }
  app.get("/v1", authenticate, (_, res) => {
    res.json(info());
  });
};
