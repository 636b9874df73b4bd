/** Defines the routes of the server. */
import { randomUUID } from "node:crypto";
import cors from "cors";
import express, { type Express, type NextFunction, type Request, type Response } from "express";
import { asStepdError, StepdError } from "../errors/errors.ts";
import type { ServerContext } from "./_context.ts";
import { addPage } from "./browser.ts";
import { answerCall } from "./call.ts";
import { restGet, restPost, rpcCall } from "./endpoints.ts";
import { addDocuments, addHealth, addMetrics, problemFor, rejectOtherMethods, requestId } from "./pages.ts";

/** Other X-Request-Id headers are replaced, because the id goes into logs and replies. */
const VALID_REQUEST_ID = /^[\w.:-]{1,128}$/;

/** A browser may cache a CORS preflight for this time in seconds. */
const PREFLIGHT_SECONDS = 600;

export const createApp = (service: ServerContext): Express => {
  const app = express();
  app.disable("x-powered-by");
  app.disable("etag");
  const { rpc, telemetry, connections, replies } = service;

  app.use((req, res, next) => {
    if (connections.closeIfFlooded(req.socket, res)) return;
    const given = req.headers["x-request-id"];
    res.setHeader("X-Request-Id", typeof given === "string" && VALID_REQUEST_ID.test(given) ? given : randomUUID());
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
  // Express tries routes in order, so the most frequent ones come first.
  app.post("/rpc", (req, res) => answerCall(service, req, res, rpcCall));
  for (const method of rpc.methods) {
    if (!method.rest?.path.startsWith("/v1/")) continue;
    const path = method.rest.path.replaceAll(/\{(\w+)\}/g, ":$1");
    const endpoint = method.rest.verb === "GET" ? restGet(method) : restPost(method);
    app[method.rest.verb === "GET" ? "get" : "post"](path, (req, res) => answerCall(service, req, res, endpoint));
  }
  addHealth(app, service);
  /** Authenticates requests that are not calls. */
  const authenticate = (req: Request, res: Response, next: NextFunction): void => {
    try {
      service.authenticator?.callerOf(req.headers.authorization);
      next();
    } catch (error) {
      telemetry.countRefusal("UNAUTHENTICATED");
      void replies.send(res, problemFor(replies, req, res, asStepdError(error)));
    }
  };
  if (!service.hasAdmin) addMetrics(app, service, authenticate);
  addDocuments(app, service, authenticate);
  addPage(app, service);
  rejectOtherMethods(app, service);
  app.use((req, res) => {
    const error = new StepdError("NOT_FOUND", `There is nothing at ${req.path}; GET /openapi.json lists the addresses`, { found: req.path });
    return replies.send(res, problemFor(replies, req, res, error));
  });
  app.use((error: unknown, req: Request, res: Response, __: NextFunction) => {
    // Errors of Express itself have a status, for instance for a malformed percent escape.
    const status = (error as { status?: number }).status ?? 500;
    if (status >= 500) telemetry.log.error({ err: error, request_id: requestId(res) }, "a request failed");
    const known = status < 500 ? new StepdError("INVALID_REQUEST", `The request is malformed: ${(error as Error).message}`) : asStepdError(error);
    return replies.send(res, problemFor(replies, req, res, known));
  });
  return app;
};
