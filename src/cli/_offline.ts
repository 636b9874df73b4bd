/**
 * Runs the service's methods in this process, without a network, with the same validation, results and errors. Compiling the schemas
 * takes longer than all other work of a command, so commands import this module only after they have checked their arguments.
 */
import { Arena, Lease } from "../arena/arena.ts";
import { Blobs } from "../blobs/blobs.ts";
import { Engine } from "../engine/engine.ts";
import { KernelsError, Pool, poolBytes } from "../pool/pool.ts";
import { Hasher, Receipts } from "../receipts/receipts.ts";
import { Rpc } from "../rpc/rpc.ts";
import { Telemetry } from "../telemetry/telemetry.ts";
import { CommandError } from "./_command.ts";

const KERNELS = new URL("../../build/kernels.wasm", import.meta.url);

export class Offline implements AsyncDisposable {
  readonly arena: Arena;
  readonly #pool: Pool;
  readonly #hasher: Hasher;
  readonly #rpc: Rpc;

  private constructor(arena: Arena, pool: Pool) {
    this.arena = arena;
    this.#pool = pool;
    this.#hasher = new Hasher(arena.memory, pool.workers);
    this.#rpc = new Rpc("", {
      engine: new Engine(pool, arena.capacity),
      blobs: () => new Blobs(undefined, undefined, undefined),
      receipts: new Receipts("", this.#hasher, undefined),
      telemetry: new Telemetry({ level: "silent", version: "", node: process.version }),
    });
  }

  /** Most commands run no steps, so one worker is enough for them. */
  static async start(arenaMib: number, workers = 1): Promise<Offline> {
    const arena = new Arena(arenaMib, poolBytes(workers));
    const pool = await Pool.start(arena, KERNELS, workers, {
      // V8 does not optimize kernels within such a short run.
      wideVectors: false,
      onWorkerLost: (cause) => {
        throw cause;
      },
    }).catch((error: unknown) => {
      throw error instanceof KernelsError ? new CommandError(error.message) : error;
    });
    return new Offline(arena, pool);
  }

  /** Calls a method. Throws StepdError. */
  async call<Result>(method: string, params: unknown, lease: Lease): Promise<Result> {
    return (await this.#rpc.call(method, params, { lease, caller: undefined, template: undefined }, () => {})) as Result;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#hasher[Symbol.asyncDispose]();
    await this.#pool[Symbol.asyncDispose]();
  }
}

/** A lease that uses a file's buffer as its memory. The file is not copied into the arena and may be larger than it. */
export class FileLease extends Lease {
  readonly #file: Buffer;

  constructor(arena: Arena, file: Buffer) {
    super(arena, () => {});
    this.#file = file;
  }

  override get bytes(): Buffer {
    return this.#file;
  }
}
