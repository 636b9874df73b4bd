/** The addresses of a server. */
import { randomUUID } from "node:crypto";
import cors from "cors";
import express, { type Express, type NextFunction, type Request, type Response } from "express";
import { asStepdError, StepdError } from "../errors/errors.ts";
import type { Running } from "./_running.ts";
import { answer } from "./call.ts";
import { restGet, restPost, rpcCall } from "./endpoints.ts";
import { addDocuments, addHealth, addMetrics, problemFor, refuseOtherVerbs, requestId } from "./pages.ts";

/** Only these characters of a caller's X-Request-Id go into logs and replies. */
const REQUEST_ID = /^[\w.:-]{1,128}$/;

/** How long a browser may keep what a preflight said, in seconds. */
const PREFLIGHT_SECONDS = 600;

/** The Express application of a server. */
export const createApp = (service: Running): Express => {
  const app = express();
  app.disable("x-powered-by");
  app.disable("etag");
  const { rpc, telemetry, connections, replies } = service;

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
    const endpoint = method.rest.verb === "GET" ? restGet(method) : restPost(method);
    app[method.rest.verb === "GET" ? "get" : "post"](path, (req, res) => answer(service, req, res, endpoint));
  }
  addHealth(app, service);
  /** For what has no body, so that nothing has to be read before it is refused. */
  const guard = (req: Request, res: Response, next: NextFunction): void => {
    try {
      service.callers?.callerOf(req.headers.authorization);
      next();
    } catch (error) {
      telemetry.countRefusal("UNAUTHENTICATED");
      void replies.send(res, problemFor(replies, req, res, asStepdError(error)));
    }
  };
  if (!service.hasAdmin) addMetrics(app, service, guard);
  addDocuments(app, service, guard);
  refuseOtherVerbs(app, service);
  app.use((req, res) => {
    const error = new StepdError("NOT_FOUND", `There is nothing at ${req.path}; GET /openapi.json lists the addresses`, { found: req.path });
    return replies.send(res, problemFor(replies, req, res, error));
  });
  app.use((error: unknown, req: Request, res: Response, __: NextFunction) => {
    // What Express itself refuses, for instance a malformed percent escape.
    const status = (error as { status?: number }).status ?? 500;
    if (status >= 500) telemetry.log.error({ err: error, request_id: requestId(res) }, "a request failed");
    const known = status < 500 ? new StepdError("INVALID_REQUEST", `The request is malformed: ${(error as Error).message}`) : asStepdError(error);
    return replies.send(res, problemFor(replies, req, res, known));
  });
  return app;
};
