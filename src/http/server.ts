/** Creates the HTTP server: Node's server with the configured timeouts, and the Express application. */
import { createServer, type Server } from "node:http";
import { createServer as createTlsServer } from "node:https";
import { DrainRate } from "../errors/drain-rate.ts";
import { Connections } from "./_connections.ts";
import { draining } from "./_context.ts";
import type { Service } from "./_types.ts";
import { LINGER_MS, Receiver } from "./body.ts";
import { Decoder } from "./decoder.ts";
import { MAX_HEADER_BYTES } from "./pages.ts";
import { Replies } from "./reply.ts";
import { createApp } from "./routes.ts";

export type { Admission, Limits, Service } from "./_types.ts";
export { HeapBudget } from "./heap.ts";
export { createAdminServer } from "./pages.ts";
export { readTls, renewTls, type Tls, type TlsFiles } from "./tls.ts";
export { Tokens } from "./tokens.ts";

/** Node's timeout checks per timeout. A timed-out request ends late by at most one check interval. */
const TIMEOUT_CHECKS = 10;

/** A server before it listens. */
export interface HttpServer {
  readonly server: Server;
  /** Refuses all calls with unfinished bodies, at the end of a drain. Returns their number. */
  refuseBodies(): number;
}

export const createHttpServer = (service: Service): HttpServer => {
  const { limits, tls, telemetry } = service;
  const receiver = new Receiver(service.admission, service.heap, limits);
  const connections = new Connections(telemetry, limits);
  const app = createApp({ ...service, receiver, connections, decoder: new Decoder(), replies: new Replies(), completionRate: new DrainRate() });
  const shortest = Math.min(limits.requestTimeoutMs, limits.idleTimeoutMs);
  const options = {
    handshakeTimeout: limits.idleTimeoutMs,
    // Node's own 408 has no body. So the receiver refuses slow bodies first; slow headers get Node's 408 before the idle timeout.
    requestTimeout: limits.requestTimeoutMs + 2 * LINGER_MS,
    headersTimeout: shortest - Math.ceil((2 * shortest) / TIMEOUT_CHECKS),
    keepAliveTimeout: limits.keepAliveTimeoutMs,
    maxHeaderSize: MAX_HEADER_BYTES,
    // The interval of Node's timeout check; its default is 30 s.
    connectionsCheckingInterval: Math.ceil(shortest / TIMEOUT_CHECKS),
  };
  const server = tls ? createTlsServer({ ...options, ...tls }, app) : createServer(options, app);
  connections.watch(server, tls !== undefined);
  // Overrides Node's automatic 100 Continue: body.ts sends it after admission, or the call is refused.
  server.on("checkContinue", app);
  server.setTimeout(limits.idleTimeoutMs, (socket) => {
    // Closes connections only for the caller's silence, not while a call is computing.
    if (!connections.isComputing(socket) && !receiver.refuseSilent(socket)) connections.closeSilent(socket);
  });
  return { server, refuseBodies: () => receiver.refuseAll(draining()) };
};
