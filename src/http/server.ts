/** Creates the HTTP server: a Node server with the configured timeouts, and the Express application. */
import { createServer, type Server } from "node:http";
import { createServer as createTlsServer } from "node:https";
import { DrainRate } from "../errors/drain-rate.ts";
import { Connections } from "./_connections.ts";
import { drainingError } from "./_context.ts";
import { Pace } from "./_pace.ts";
import { Turns } from "./_turns.ts";
import type { Service } from "./_types.ts";
import { LINGER_MS, Receiver } from "./body.ts";
import { Decoder } from "./decoder.ts";
import { MAX_HEADER_BYTES } from "./pages.ts";
import { Replies } from "./reply.ts";
import { createApp } from "./routes.ts";

export type { Admission, Limits, Service } from "./_types.ts";
export { Callers } from "./callers.ts";
export { HeapBudget } from "./heap.ts";
export { createAdminServer } from "./pages.ts";
export { readTls, type Tls, type TlsFiles, watchTls } from "./tls.ts";
export { type TokenFacts, Tokens } from "./tokens.ts";

/** Node checks for timeouts this often per timeout. A timed-out request ends late by at most one check interval. */
const CHECKS_PER_TIMEOUT = 10;

/** An HTTP server that does not listen yet. */
export interface HttpServer {
  readonly server: Server;
  /** Rejects all calls with unfinished bodies, at the end of a drain. Returns their number. */
  rejectUnfinishedBodies(): number;
}

export const createHttpServer = (service: Service): HttpServer => {
  const { limits, tls, telemetry } = service;
  const { admission, heap, callers } = service;
  const pace = new Pace(limits);
  const receiver = new Receiver(admission, limits, pace);
  // Late bodies and replies go first. Then calls give way to callers with smaller shares.
  admission.reclaim = (requester, bytes) => pace.freeArena(requester) || callers.freeArena(requester, bytes, admission.capacity - admission.used);
  heap.reclaim = (requester, bytes) => pace.freeHeap(requester) || callers.freeHeap(requester, bytes, heap.capacity - heap.used);
  const connections = new Connections(telemetry, callers, limits);
  const turns = new Turns(limits.maxComputing);
  const app = createApp({ ...service, receiver, pace, connections, turns, decoder: new Decoder(), replies: new Replies(), completionRate: new DrainRate() });
  const shortest = Math.min(limits.requestTimeoutMs, limits.idleTimeoutMs);
  const options = {
    handshakeTimeout: limits.idleTimeoutMs,
    // Node's own 408 reply has no body, so the receiver rejects slow bodies first. Slow headers get Node's 408 before the idle timeout.
    requestTimeout: limits.requestTimeoutMs + 2 * LINGER_MS,
    headersTimeout: shortest - Math.ceil((2 * shortest) / CHECKS_PER_TIMEOUT),
    keepAliveTimeout: limits.keepAliveTimeoutMs,
    maxHeaderSize: MAX_HEADER_BYTES,
    // Node's default interval of timeout checks is 30 s.
    connectionsCheckingInterval: Math.ceil(shortest / CHECKS_PER_TIMEOUT),
  };
  const server = tls ? createTlsServer({ ...options, ...tls }, app) : createServer(options, app);
  connections.watch(server, tls !== undefined);
  // Without this listener Node would send 100 Continue itself. body.ts sends it after admission.
  server.on("checkContinue", app);
  server.setTimeout(limits.idleTimeoutMs, (socket) => {
    // A connection is also silent while its call computes. Only the caller's silence closes it.
    if (!connections.isComputing(socket) && !receiver.refuseSilent(socket)) connections.closeSilent(socket);
  });
  return { server, rejectUnfinishedBodies: () => receiver.refuseAll(drainingError()) };
};
