/** The composition root: makes the parts, connects them, listens, and drains. */
import { readFileSync } from "node:fs";
import { lstat, rm } from "node:fs/promises";
import type { IncomingMessage, Server, ServerResponse } from "node:http";
import net from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { Arena } from "./arena/arena.ts";
import { type Config, ConfigError } from "./config.ts";
import { Engine } from "./engine/engine.ts";
import { createHttpServer, type Limits } from "./http/server.ts";
import { Pool, poolBytes } from "./pool/pool.ts";
import { Rpc } from "./rpc/rpc.ts";
import { Telemetry } from "./telemetry/telemetry.ts";

const MIB = 2 ** 20;
const KERNELS = new URL("../build/kernels.wasm", import.meta.url);

export const version = (JSON.parse(readFileSync(new URL("../package.json", import.meta.url), "utf8")) as { version: string }).version;

const limitsOf = ({ requestTimeoutMs, idleTimeoutMs }: Config): Limits => ({
  maxJsonBytes: 256 * MIB,
  maxCompressedBytes: MIB,
  maxInflatedBytes: 16 * MIB,
  requestTimeoutMs,
  idleTimeoutMs,
  keepAliveTimeoutMs: 75_000,
});

/** How often a drain looks whether all calls are done. */
const DRAIN_POLL_MS = 10;

/** How long callers of refused bodies may go on sending after the last call: a connection cut in mid-upload hides the refusal. */
const LINGER_MS = 5000;

export class Service implements AsyncDisposable {
  readonly arena: Arena;
  readonly pool: Pool;
  readonly telemetry: Telemetry;
  readonly #server: Server;
  readonly #config: Config;
  /** "leaving" is not ready and serves still: balancers notice before anything is refused. */
  #state: "serving" | "leaving" | "draining" = "serving";

  private constructor(config: Config, arena: Arena, pool: Pool, telemetry: Telemetry) {
    this.#config = config;
    this.arena = arena;
    this.pool = pool;
    this.telemetry = telemetry;
    const limits = limitsOf(config);
    this.#server = createHttpServer({
      admission: arena,
      rpc: new Rpc(version),
      engine: new Engine(pool, arena.capacity),
      telemetry,
      limits,
      isReady: () => this.#state === "serving",
      isDraining: () => this.#state === "draining",
      info: () => ({
        name: "stepd",
        version,
        node: process.version,
        kernels: pool.kernelNames,
        workers: pool.workers,
        limits: {
          arena_bytes: arena.capacity,
          max_json_bytes: limits.maxJsonBytes,
          max_compressed_bytes: limits.maxCompressedBytes,
          max_inflated_bytes: limits.maxInflatedBytes,
        },
      }),
    });
  }

  /** Starts everything and listens. */
  static async start(config: Config): Promise<Service> {
    const telemetry = new Telemetry({ level: config.logLevel, version, node: process.version });
    const arena = makeArena(config.arenaMib, poolBytes(config.workers));
    const pool = await Pool.start(arena, KERNELS, config.workers, { onWorkerLost: (cause) => telemetry.workerLost(cause) });
    telemetry.observe({ arena, pool });
    const service = new Service(config, arena, pool, telemetry);
    try {
      await service.#listen();
    } catch (error) {
      await pool[Symbol.asyncDispose]();
      throw error;
    }
    return service;
  }

  /** Where the service listens, as a caller would write it. */
  get address(): string {
    const address = this.#server.address();
    if (typeof address === "string" || address === null) return `unix:${this.#config.socket}`;
    return `http://${address.family === "IPv6" ? `[${address.address}]` : address.address}:${address.port}`;
  }

  async #listen(): Promise<void> {
    const { socket, host, port } = this.#config;
    if (socket !== "") await removeStaleSocket(socket);
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    this.#server.once("error", (error: NodeJS.ErrnoException) => {
      reject(listenError(this.#config, error));
    });
    if (socket === "") this.#server.listen(port, host, resolve);
    else this.#server.listen(socket, resolve);
    await promise;
  }

  /**
   * Says that it is not ready, refuses new calls after the grace, lets those in flight finish within the drain time, and closes.
   * Returns whether all finished.
   */
  async drain(): Promise<boolean> {
    this.#state = "leaving";
    this.#server.prependListener("request", closeAfterReply);
    await sleep(this.#config.drainGraceMs);
    this.#state = "draining";
    const deadline = performance.now() + this.#config.drainTimeoutMs;
    while (this.telemetry.inFlight > 0 && performance.now() < deadline) await sleep(DRAIN_POLL_MS);
    const isDone = this.telemetry.inFlight === 0;
    await this.#close(Math.min(deadline, performance.now() + LINGER_MS));
    return isDone;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#close(0);
  }

  async #close(deadline: number): Promise<void> {
    this.#state = "draining";
    await closeServer(this.#server, deadline);
    await this.pool[Symbol.asyncDispose]();
  }
}

/** Takes no more connections, waits for the requests on the open ones until the deadline, and cuts what is left. */
const closeServer = async (server: Server, deadline: number): Promise<void> => {
  let isClosed = false;
  const closed = new Promise<void>((resolve) => server.close(() => resolve())).then(() => {
    isClosed = true;
  });
  while (!isClosed && performance.now() < deadline) {
    server.closeIdleConnections();
    await Promise.race([closed, sleep(DRAIN_POLL_MS)]);
  }
  server.closeAllConnections();
  await closed;
};

/**
 * Asks the caller, a balancer's pool of connections too, for a new connection next time, which leads to another replica.
 * Not before the body is in: node cuts the connection with such a reply, and the caller could not finish sending.
 */
const closeAfterReply = (req: IncomingMessage, res: ServerResponse): void => {
  const close = (): void => {
    if (!res.headersSent) res.setHeader("Connection", "close");
  };
  if (req.headers["transfer-encoding"] === undefined && Number(req.headers["content-length"] ?? 0) === 0) close();
  else req.once("end", close);
};

/** Throws ConfigError where the machine does not give as much address space. */
const makeArena = (mebibytes: number, reservedBytes: number): Arena => {
  try {
    return new Arena(mebibytes, reservedBytes);
  } catch (error) {
    throw new ConfigError(`STEPD_ARENA_MIB: expected what this process may reserve, found ${mebibytes} (${(error as Error).message})`);
  }
};

/** Why a server cannot listen, by the setting that is to be changed. */
const listenError = ({ socket, host, port }: Config, error: NodeJS.ErrnoException): ConfigError => {
  if (socket !== "") {
    const reason = error.code === "EADDRINUSE" ? "in use" : error.message;
    return new ConfigError(`STEPD_SOCKET: expected a path to create a socket at, found ${JSON.stringify(socket)} (${reason})`);
  }
  if (error.code === "EADDRINUSE") return new ConfigError(`STEPD_PORT: expected a free port on ${host}, found ${port} in use`);
  if (error.code === "EACCES") return new ConfigError(`STEPD_PORT: expected a port that this user may listen on, found ${port}`);
  return new ConfigError(`STEPD_HOST: expected an address of this machine, found ${JSON.stringify(host)} (${error.message})`);
};

/** A socket file that nobody listens on is left over from a process that was killed. */
const removeStaleSocket = async (path: string): Promise<void> => {
  // A plain file refuses connections too, and is somebody's.
  if (!(await lstat(path).catch(() => undefined))?.isSocket()) return;
  const isAnswered = await new Promise<boolean>((resolve) => {
    const probe = net.connect(path, () => {
      probe.destroy();
      resolve(true);
    });
    probe.once("error", (error: NodeJS.ErrnoException) => resolve(error.code !== "ECONNREFUSED"));
  });
  if (!isAnswered) await rm(path, { force: true });
};
