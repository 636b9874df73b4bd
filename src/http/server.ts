/** The HTTP server: node's server with the timeouts of the settings, and the application that it runs. */
import { createServer, type Server } from "node:http";
import { createServer as createTlsServer } from "node:https";
import { OneAtATime } from "../codec/turns.ts";
import { DrainRate } from "../errors/drain-rate.ts";
import { Connections } from "./_connections.ts";
import { draining } from "./_running.ts";
import type { Service } from "./_types.ts";
import { LINGER_MS, Receiver } from "./body.ts";
import { MAX_HEADER_BYTES } from "./pages.ts";
import { Replies } from "./reply.ts";
import { createApp } from "./routes.ts";

export type { Admission, Limits, Service } from "./_types.ts";
export { HeapBudget } from "./heap.ts";
export { createAdminServer } from "./pages.ts";
export { readTls, renewTls, type Tls, type TlsFiles } from "./tls.ts";
export { Tokens } from "./tokens.ts";

/** A request that takes too long is ended late by at most this part of its time. */
const TIMEOUT_CHECKS = 10;

/** A server that does not listen yet. */
export interface HttpServer {
  readonly server: Server;
  /** Refuses calls whose bodies are not in, because there is no more time for them. Returns how many. */
  refuseBodies(): number;
}

export const createHttpServer = (service: Service): HttpServer => {
  const { limits, tls, telemetry } = service;
  const receiver = new Receiver(service.admission, service.heap, limits);
  const connections = new Connections(telemetry, limits);
  const app = createApp({ ...service, receiver, connections, replies: new Replies(), finished: new DrainRate(), decodes: new OneAtATime() });
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
