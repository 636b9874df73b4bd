/** Connections of one server: how many there are, what each waits for, and what ends before a call begins. */
import type { ServerResponse } from "node:http";
import type { Server, Socket } from "node:net";
import type { Refusal, Telemetry } from "../telemetry/telemetry.ts";
import type { Limits } from "./_types.ts";

/** Connections over the limit that get an answer. More are closed without one. */
const SPARE_CONNECTIONS = 64;

/** How long such a connection may last, in ms. */
const SPARE_MS = 5000;

/** Requests of one connection that may wait for their replies; up to twice as many before it is noticed. Each takes about 8 KiB. */
const MAX_PIPELINED = 128;

interface Pipeline {
  requests: number;
  /** The reply to a request of MAX_PIPELINED requests ago. Weak: replies that are out are nobody's. */
  earlier: WeakRef<ServerResponse>;
}

export class Connections {
  readonly #telemetry: Telemetry;
  readonly #limit: number;
  #open = 0;
  readonly #surplus = new WeakSet<Socket>();
  /** Calls that wait for their result; pipelined ones share a connection. To stop and start the timer of each cost 1 % of a small step. */
  readonly #computing = new WeakMap<Socket, number>();
  readonly #pipelines = new WeakMap<Socket, Pipeline>();
  readonly #silent = new WeakSet<Socket>();

  constructor(telemetry: Telemetry, { maxConnections }: Limits) {
    this.#telemetry = telemetry;
    this.#limit = maxConnections;
  }

  /** Counts the connections of a server, and what node refuses by itself. */
  watch(server: Server, isTls: boolean): void {
    server.maxConnections = this.#limit + SPARE_CONNECTIONS;
    server.on("drop", () => this.#telemetry.countRefusal("CONNECTIONS"));
    server.on("connection", (socket: Socket) => {
      this.#open++;
      socket.once("close", () => this.#open--);
    });
    server.on(isTls ? "secureConnection" : "connection", (socket: Socket) => {
      if (this.#open > this.#limit) this.#markSurplus(socket);
      // Not by clientError: with a listener for that node answers nothing. It ends the connection with the same error.
      socket.on("error", ({ code = "" }: NodeJS.ErrnoException) => {
        const reason = reasonOf(code);
        if (reason) this.#telemetry.countRefusal(reason);
      });
    });
    server.on("tlsClientError", ({ code }: NodeJS.ErrnoException) => {
      if (code !== "ECONNRESET") this.#telemetry.countRefusal("TLS_HANDSHAKE");
    });
    // Without a listener node closes the connection and says nothing.
    server.on("connect", (_, socket: Socket) => {
      this.#telemetry.countRefusal("MALFORMED");
      socket.on("error", () => {});
      socket.end("HTTP/1.1 405 Method Not Allowed\r\nAllow: GET, HEAD, POST\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    });
  }

  #markSurplus(socket: Socket): void {
    this.#surplus.add(socket);
    this.#telemetry.countRefusal("CONNECTIONS");
    const timer = setTimeout(() => socket.destroy(), SPARE_MS).unref();
    socket.once("close", () => clearTimeout(timer));
  }

  /** Whether a connection is one too many: its calls are refused, and it is closed. */
  isSurplus(socket: Socket): boolean {
    return this.#surplus.has(socket);
  }

  /** A call of this connection waits for its result until what this returns is disposed of. */
  compute(socket: Socket): Disposable {
    const count = (more: 1 | -1): void => {
      this.#computing.set(socket, (this.#computing.get(socket) ?? 0) + more);
    };
    count(1);
    return { [Symbol.dispose]: () => count(-1) };
  }

  isComputing(socket: Socket): boolean {
    return (this.#computing.get(socket) ?? 0) > 0;
  }

  /** Notes a request. Ends the connection, and returns true, if too many of it wait for their replies. */
  cutFlooded(socket: Socket, res: ServerResponse): boolean {
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

  /** Closes a connection that nothing has come from and nothing could be sent to. */
  cutSilent(socket: Socket): void {
    this.#silent.add(socket);
    socket.destroy();
  }

  wasSilent(socket: Socket): boolean {
    return this.#silent.has(socket);
  }
}

/** Of what node's parser refuses: 408, 431, and 400 or 413. Undefined where the caller went away, also where node calls that malformed. */
const reasonOf = (code: string): Refusal | undefined => {
  if (code === "ERR_HTTP_REQUEST_TIMEOUT") return "SLOW_REQUEST";
  if (code === "HPE_HEADER_OVERFLOW") return "HEADERS_TOO_LARGE";
  return code.startsWith("HPE_") && code !== "HPE_INVALID_EOF_STATE" ? "MALFORMED" : undefined;
};
