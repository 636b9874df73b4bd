/** Counts and limits the connections of one server, and rejects requests before a call begins. */
import type { ServerResponse } from "node:http";
import type { Server, Socket } from "node:net";
import type { Refusal, Telemetry } from "../telemetry/telemetry.ts";
import type { Limits } from "./_types.ts";
import type { Callers } from "./callers.ts";

/** This many connections above the limit still receive an error reply. Node closes further ones without a reply. */
const SURPLUS_CONNECTIONS = 64;

/** A connection above the limit is closed after this time in ms. */
const SURPLUS_MS = 5000;

/** This many pipelined requests of a connection may wait for replies, at about 8 KiB each. The check allows up to twice as many. */
const MAX_PIPELINED = 128;

interface Pipeline {
  requests: number;
  /** The reply to an earlier request, MAX_PIPELINED requests ago. The reference is weak, so sent replies can be collected. */
  earlier: WeakRef<ServerResponse>;
}

export class Connections {
  readonly #telemetry: Telemetry;
  readonly #callers: Callers;
  readonly #limit: number;
  #open = 0;
  readonly #surplus = new WeakSet<Socket>();
  /** The number of computing calls per connection. Stopping the idle timer for each call instead would cost 1 % of a small step. */
  readonly #computing = new Map<Socket, number>();
  readonly #pipelines = new WeakMap<Socket, Pipeline>();
  readonly #silent = new WeakSet<Socket>();

  constructor(telemetry: Telemetry, callers: Callers, { maxConnections }: Limits) {
    this.#telemetry = telemetry;
    this.#callers = callers;
    this.#limit = maxConnections;
  }

  /** Counts the connections of a server, and the requests that Node rejects itself. */
  watch(server: Server, isTls: boolean): void {
    server.maxConnections = this.#limit + SURPLUS_CONNECTIONS;
    server.on("drop", () => this.#telemetry.countRefusal("CONNECTIONS"));
    server.on("connection", (socket: Socket) => {
      this.#open++;
      socket.once("close", () => this.#open--);
    });
    server.on(isTls ? "secureConnection" : "connection", (socket: Socket) => {
      this.#callers.connect(socket);
      if (this.#open > this.#limit && !this.#closeSpare(socket)) this.#markSurplus(socket);
      // Node replies to a malformed request only if "clientError" has no listener. The socket emits the same error, so the listener is there.
      socket.on("error", ({ code = "" }: NodeJS.ErrnoException) => {
        const reason = reasonOf(code);
        if (reason) this.#telemetry.countRefusal(reason);
      });
    });
    server.on("tlsClientError", ({ code }: NodeJS.ErrnoException) => {
      if (code !== "ECONNRESET") this.#telemetry.countRefusal("TLS_HANDSHAKE");
    });
    // Node closes the connection of a CONNECT request without a reply if "connect" has no listener.
    server.on("connect", (_, socket: Socket) => {
      this.#telemetry.countRefusal("MALFORMED");
      socket.on("error", () => {});
      socket.end("HTTP/1.1 405 Method Not Allowed\r\nAllow: GET, HEAD, POST\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    });
  }

  /** Closes an idle connection of the caller with the most connections to make room. Returns false if there is none. */
  #closeSpare(socket: Socket): boolean {
    const spare = this.#callers.spareSocket(socket);
    if (!spare) return false;
    this.#telemetry.countRefusal("CONNECTIONS");
    spare.destroy();
    return true;
  }

  #markSurplus(socket: Socket): void {
    this.#surplus.add(socket);
    this.#telemetry.countRefusal("CONNECTIONS");
    const timer = setTimeout(() => socket.destroy(), SURPLUS_MS).unref();
    socket.once("close", () => clearTimeout(timer));
  }

  /** True for a connection above the limit. Its calls are rejected, and it is closed. */
  isSurplus(socket: Socket): boolean {
    return this.#surplus.has(socket);
  }

  /** Marks one call of the connection as computing, until `endComputing`. */
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

  /** Counts a request. If too many requests of the connection wait for replies, closes it and returns true. */
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

  /** Closes a connection that has no traffic in either direction. */
  closeSilent(socket: Socket): void {
    this.#silent.add(socket);
    socket.destroy();
  }

  wasSilent(socket: Socket): boolean {
    return this.#silent.has(socket);
  }
}

/** Maps an error of Node's HTTP parser to a reason. Returns undefined for a disconnect, which Node may report as malformed. */
const reasonOf = (code: string): Refusal | undefined => {
  if (code === "ERR_HTTP_REQUEST_TIMEOUT") return "SLOW_REQUEST";
  if (code === "HPE_HEADER_OVERFLOW") return "HEADERS_TOO_LARGE";
  return code.startsWith("HPE_") && code !== "HPE_INVALID_EOF_STATE" ? "MALFORMED" : undefined;
};
