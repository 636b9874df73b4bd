/** The connections of one server: their number, their limits, and refusals before a call begins. */
import type { ServerResponse } from "node:http";
import type { Server, Socket } from "node:net";
import type { Refusal, Telemetry } from "../telemetry/telemetry.ts";
import type { Limits } from "./_types.ts";

/** Connections over the limit that still receive an error reply. Further ones are closed without one. */
const SURPLUS_CONNECTIONS = 64;

/** The lifetime of a connection over the limit, in ms. */
const SURPLUS_MS = 5000;

/** The most pipelined requests of one connection that wait for replies, about 8 KiB each. The check allows up to twice as many. */
const MAX_PIPELINED = 128;

interface Pipeline {
  requests: number;
  /** The reply to the request MAX_PIPELINED requests ago. A weak reference, so that sent replies can be collected. */
  earlier: WeakRef<ServerResponse>;
}

export class Connections {
  readonly #telemetry: Telemetry;
  readonly #limit: number;
  #open = 0;
  readonly #surplus = new WeakSet<Socket>();
  /** The number of computing calls per connection. The alternative, stopping and starting the idle timer for each call, cost 1 % of a small step. */
  readonly #computing = new Map<Socket, number>();
  readonly #pipelines = new WeakMap<Socket, Pipeline>();
  readonly #silent = new WeakSet<Socket>();

  constructor(telemetry: Telemetry, { maxConnections }: Limits) {
    this.#telemetry = telemetry;
    this.#limit = maxConnections;
  }

  /** Counts the connections of a server, and the refusals that Node sends itself. */
  watch(server: Server, isTls: boolean): void {
    server.maxConnections = this.#limit + SURPLUS_CONNECTIONS;
    server.on("drop", () => this.#telemetry.countRefusal("CONNECTIONS"));
    server.on("connection", (socket: Socket) => {
      this.#open++;
      socket.once("close", () => this.#open--);
    });
    server.on(isTls ? "secureConnection" : "connection", (socket: Socket) => {
      if (this.#open > this.#limit) this.#markSurplus(socket);
      // Listens on the socket, because with a clientError listener Node would not reply. The socket fails with the same error.
      socket.on("error", ({ code = "" }: NodeJS.ErrnoException) => {
        const reason = reasonOf(code);
        if (reason) this.#telemetry.countRefusal(reason);
      });
    });
    server.on("tlsClientError", ({ code }: NodeJS.ErrnoException) => {
      if (code !== "ECONNRESET") this.#telemetry.countRefusal("TLS_HANDSHAKE");
    });
    // Without a listener Node would close the connection without a reply.
    server.on("connect", (_, socket: Socket) => {
      this.#telemetry.countRefusal("MALFORMED");
      socket.on("error", () => {});
      socket.end("HTTP/1.1 405 Method Not Allowed\r\nAllow: GET, HEAD, POST\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    });
  }

  #markSurplus(socket: Socket): void {
    this.#surplus.add(socket);
    this.#telemetry.countRefusal("CONNECTIONS");
    const timer = setTimeout(() => socket.destroy(), SURPLUS_MS).unref();
    socket.once("close", () => clearTimeout(timer));
  }

  /** True for a connection over the limit: its calls are refused, and it is closed. */
  isSurplus(socket: Socket): boolean {
    return this.#surplus.has(socket);
  }

  /** Marks a call of the connection as computing. */
  beginComputing(socket: Socket): void {
    this.#computing.set(socket, (this.#computing.get(socket) ?? 0) + 1);
  }

  endComputing(socket: Socket): void {
    const left = (this.#computing.get(socket) ?? 0) - 1;
    if (left > 0) this.#computing.set(socket, left);
    else this.#computing.delete(socket);
  }

  isComputing(socket: Socket): boolean {
    return this.#computing.has(socket);
  }

  /** Counts a request. Closes the connection and returns true if too many of its requests wait for replies. */
  closeIfFlooded(socket: Socket, res: ServerResponse): boolean {
    if (socket.destroyed) return true;
    if (!this.#isFlooded(socket, res)) return false;
    this.#telemetry.countRefusal("PIPELINED");
    socket.destroy();
    return true;
  }

  #isFlooded(socket: Socket, res: ServerResponse): boolean {
    const pipeline = this.#pipelines.get(socket);
    if (!pipeline) {
      this.#pipelines.set(socket, { requests: 1, earlier: new WeakRef(res) });
      return false;
    }
    if (++pipeline.requests % MAX_PIPELINED !== 0) return false;
    const earlier = pipeline.earlier.deref();
    pipeline.earlier = new WeakRef(res);
    return earlier !== undefined && !earlier.writableFinished && !earlier.destroyed;
  }

  /** Closes a connection without traffic in either direction. */
  closeSilent(socket: Socket): void {
    this.#silent.add(socket);
    socket.destroy();
  }

  wasSilent(socket: Socket): boolean {
    return this.#silent.has(socket);
  }
}

/** The refusal reason for an error of Node's parser. Undefined if the caller disconnected, which Node may report as malformed. */
const reasonOf = (code: string): Refusal | undefined => {
  if (code === "ERR_HTTP_REQUEST_TIMEOUT") return "SLOW_REQUEST";
  if (code === "HPE_HEADER_OVERFLOW") return "HEADERS_TOO_LARGE";
  return code.startsWith("HPE_") && code !== "HPE_INVALID_EOF_STATE" ? "MALFORMED" : undefined;
};
