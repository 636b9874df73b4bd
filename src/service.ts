/** Creates and connects the components of the server, starts listening, and drains. */
import { existsSync } from "node:fs";
import type { IncomingMessage, Server, ServerResponse } from "node:http";
import type net from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import type { Server as TlsServer } from "node:tls";
import { fileURLToPath } from "node:url";
import type { Arena } from "./arena/arena.ts";
import { Blobs, ResultCache } from "./blobs/blobs.ts";
import { type Config, namedSettings } from "./config.ts";
import { Engine } from "./engine/engine.ts";
import { Callers, createAdminServer, createHttpServer, HeapBudget, type HttpServer, type Limits, type Tls, type TokenFacts, watchTls } from "./http/server.ts";
import { makeArena, openFolder, readCertificates, readReceiptKey, readTokens, startPool, tlsFiles } from "./inputs.ts";
import { listen, placeOfAdmin, placeOfCalls } from "./listen.ts";
import type { Pool } from "./pool/pool.ts";
import { Hasher, Receipts } from "./receipts/receipts.ts";
import { Rpc } from "./rpc/rpc.ts";
import { Telemetry } from "./telemetry/telemetry.ts";
import type { Traces } from "./telemetry/traces.ts";
import { version } from "./version.ts";

const MIB = 2 ** 20;
/** The folder of the page for browsers. */
export const PAGE = fileURLToPath(new URL("../build/page", import.meta.url));

/** The workers stay busy with at least this many calls in turn, because each call also has parts that no worker computes. */
const MIN_COMPUTING = 4;

const limitsOf = ({ requestTimeoutMs, idleTimeoutMs, minBodyRate, maxConnections, maxInFlight, workers }: Config): Limits => ({
  maxCompressedBytes: MIB,
  maxInflatedBytes: 16 * MIB,
  requestTimeoutMs,
  idleTimeoutMs,
  keepAliveTimeoutMs: 75_000,
  minBodyRate,
  maxConnections,
  maxInFlight,
  maxComputing: Math.max(MIN_COMPUTING, 2 * workers),
});

/** A drain checks at this interval whether all calls are finished. */
const DRAIN_POLL_MS = 10;

/** A drain rejects unfinished bodies this long before its end, so that their callers still get a reply. */
const BODY_REJECTION_MS = 500;

/** Callers of rejected bodies may continue to send for this time. If the connection closed during the upload, the error reply would be lost. */
const LINGER_MS = 5000;

export class Service implements AsyncDisposable {
  readonly arena: Arena;
  readonly pool: Pool;
  readonly telemetry: Telemetry;
  readonly #http: HttpServer;
  readonly #server: Server;
  readonly #admin: Server | undefined;
  readonly #config: Config;
  readonly #hasher: Hasher;
  readonly #sockets = new Map<Server, ReadonlySet<net.Socket>>();
  /** The watches on the files with tokens and certificates. */
  readonly #watches = new DisposableStack();
  /** While "leaving", the server is not ready but accepts calls, so load balancers notice before it rejects any call. */
  #state: "serving" | "leaving" | "draining" = "serving";

  readonly #traces: Traces | undefined;

  private constructor(config: Config, arena: Arena, pool: Pool, telemetry: Telemetry, traces: Traces | undefined) {
    this.#config = config;
    this.#traces = traces;
    this.arena = arena;
    this.pool = pool;
    this.telemetry = telemetry;
    const limits = limitsOf(config);
    const files = tlsFiles(config);
    const tls = readCertificates(config);
    if (tls) {
      telemetry.logFirstRead("STEPD_TLS_CERT_FILE");
      telemetry.setCertificates(tls.certificates);
    }
    const tokens = this.#watches.use(
      readTokens(config, (result) => {
        const error = result instanceof Error ? result : undefined;
        telemetry.logReload("STEPD_TOKENS_FILE", error, error ? {} : { ...(result as TokenFacts) });
        if (!error && tokens?.warning) telemetry.log.warn(tokens.warning);
      }),
    );
    if (tokens) {
      telemetry.logFirstRead("STEPD_TOKENS_FILE");
      if (tokens.warning) telemetry.log.warn(tokens.warning);
    }
    const folder = openFolder(config);
    const key = readReceiptKey(config);
    this.#hasher = new Hasher(arena.memory, pool.workers);
    const cache = config.cacheMib === 0 ? undefined : new ResultCache(arena, Math.min(config.cacheMib * MIB, arena.capacity));
    const callers = new Callers(limits);
    const http = {
      admission: arena,
      heap: new HeapBudget(config.maxJsonMib * MIB),
      rpc: new Rpc(version, {
        engine: new Engine(pool, arena.capacity),
        blobs: (caller) => new Blobs(folder, cache, caller, callers.cacheLimit(caller)),
        telemetry,
        receipts: new Receipts(version, this.#hasher, key),
      }),
      telemetry,
      traces,
      limits,
      authenticator: tokens,
      callers,
      accessLog: config.accessLog === "on",
      settings: namedSettings(config),
      tls: tls?.options,
      corsOrigins: config.corsOrigins,
      version,
      page: config.page === "on" && existsSync(PAGE) ? PAGE : undefined,
      pageReplicas: config.pageReplicas,
      hasAdmin: config.adminPort !== undefined,
      isReady: () => this.#state === "serving",
      isDraining: () => this.#state === "draining",
      info: () => ({
        name: "stepd",
        version,
        node: process.version,
        kernels: pool.kernelNames,
        workers: pool.workers,
        shared_memory: folder !== undefined,
        receipt_key: key ? { name: key.name, public_key: key.publicKey } : null,
        limits: {
          arena_bytes: arena.capacity,
          cache_bytes: cache?.capacity ?? 0,
          max_json_bytes: config.maxJsonMib * MIB,
          max_compressed_bytes: limits.maxCompressedBytes,
          max_inflated_bytes: limits.maxInflatedBytes,
          max_calls: limits.maxInFlight,
          max_connections: limits.maxConnections,
        },
      }),
    };
    telemetry.observe({ arena, pool, folder, cache, callers, isReady: http.isReady });
    this.#http = createHttpServer(http);
    this.#server = this.#http.server;
    if (http.hasAdmin) this.#admin = createAdminServer(http);
    for (const server of [this.#server, this.#admin]) if (server) this.#sockets.set(server, trackSockets(server));
    if (files) {
      const onReload = (result: Tls | Error): void => {
        telemetry.logReload("STEPD_TLS_CERT_FILE", result instanceof Error ? result : undefined, {});
        if (!(result instanceof Error)) telemetry.setCertificates(result.certificates);
      };
      this.#watches.use(watchTls(this.#server as unknown as TlsServer, files, onReload));
    }
  }

  /** Creates all components and starts listening. */
  static async start(config: Config): Promise<Service> {
    const telemetry = new Telemetry({ level: config.logLevel, version, node: process.version });
    const traces = config.otlpUrl === "" ? undefined : await startTraces(config.otlpUrl, telemetry);
    const arena = makeArena(config);
    const pool = await startPool(config, arena, (cause) => telemetry.workerLost(cause));
    let service: Service | undefined;
    try {
      service = new Service(config, arena, pool, telemetry, traces);
      await service.#listen();
    } catch (error) {
      await (service ?? pool)[Symbol.asyncDispose]();
      throw error;
    }
    return service;
  }

  /** The URL of the service, or unix:PATH. */
  get address(): string {
    const { socket, tlsCertFile } = this.#config;
    return socket === "" ? addressOf(this.#server, tlsCertFile === "" ? "http" : "https") : `unix:${socket}`;
  }

  /** The URL of the admin server, if there is one. */
  get adminAddress(): string | undefined {
    return this.#admin && addressOf(this.#admin, "http");
  }

  async #listen(): Promise<void> {
    await listen(this.#server, placeOfCalls(this.#config));
    const place = placeOfAdmin(this.#config);
    if (this.#admin && place) await listen(this.#admin, place);
  }

  /**
   * Stops the service: reports not ready, rejects new calls after the grace period, waits for calls in flight up to the drain timeout,
   * and closes. Returns the number of unfinished calls.
   */
  async drain(): Promise<number> {
    this.#state = "leaving";
    this.#server.prependListener("request", closeAfterReply);
    await sleep(this.#config.drainGraceMs);
    this.#state = "draining";
    const deadline = performance.now() + this.#config.drainTimeoutMs;
    const refusalTime = deadline - Math.min(BODY_REJECTION_MS, this.#config.drainTimeoutMs / 2);
    const isBusy = (): boolean => this.telemetry.inFlight > 0;
    while (isBusy() && performance.now() < refusalTime) await sleep(DRAIN_POLL_MS);
    const refused = isBusy() ? this.#http.rejectUnfinishedBodies() : 0;
    while (isBusy() && performance.now() < deadline) await sleep(DRAIN_POLL_MS);
    const unfinished = refused + this.telemetry.inFlight;
    await this.#close(Math.min(deadline, performance.now() + LINGER_MS));
    return unfinished;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#close(0);
    this.telemetry[Symbol.dispose]();
  }

  async #close(deadline: number): Promise<void> {
    this.#state = "draining";
    this.#watches.dispose();
    const servers = [this.#server, this.#admin].filter((server) => server !== undefined);
    await Promise.all(servers.map((server) => closeServer(server, this.#sockets.get(server) ?? new Set(), deadline)));
    await this.#hasher[Symbol.asyncDispose]();
    await this.pool[Symbol.asyncDispose]();
    await this.#traces?.end();
  }
}

/** Loads the SDK of OpenTelemetry and starts to send traces to a collector. */
const startTraces = async (url: string, telemetry: Telemetry): Promise<Traces> => {
  const { Traces } = await import("./telemetry/traces.ts");
  return new Traces({ url, version, onError: (reason) => telemetry.log.warn({ reason }, "traces are lost: the collector does not take them") });
};

/** Tracks the open connections of a server. Node's own list lacks connections during a TLS handshake. */
const trackSockets = (server: Server): ReadonlySet<net.Socket> => {
  const sockets = new Set<net.Socket>();
  server.on("connection", (socket: net.Socket) => {
    sockets.add(socket);
    socket.once("close", () => sockets.delete(socket));
  });
  return sockets;
};

/** Stops accepting connections, waits for open requests until the deadline, then closes all connections. */
const closeServer = async (server: Server, sockets: ReadonlySet<net.Socket>, deadline: number): Promise<void> => {
  let isClosed = false;
  const closed = new Promise<void>((resolve) => server.close(() => resolve())).then(() => {
    isClosed = true;
  });
  while (!isClosed && performance.now() < deadline) {
    server.closeIdleConnections();
    // Node does not report a connection as idle until it has received a byte.
    for (const socket of sockets) if (socket.bytesRead === 0) socket.destroy();
    await Promise.race([closed, sleep(DRAIN_POLL_MS)]);
  }
  for (const socket of sockets) socket.destroy();
  await closed;
};

/**
 * Adds "Connection: close" to the reply, so that callers and load balancers reconnect to another replica. Node would close the
 * connection with such a reply while a caller is still sending, so this waits for the end of the body.
 */
const closeAfterReply = (req: IncomingMessage, res: ServerResponse): void => {
  const close = (): void => {
    if (!res.headersSent) res.setHeader("Connection", "close");
  };
  if (req.headers["transfer-encoding"] === undefined && Number(req.headers["content-length"] ?? 0) === 0) close();
  else req.once("end", close);
};

const addressOf = (server: Server, scheme: string): string => {
  const { family, address, port } = server.address() as net.AddressInfo;
  return `${scheme}://${family === "IPv6" ? `[${address}]` : address}:${port}`;
};
