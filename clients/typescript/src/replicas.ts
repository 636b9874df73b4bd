/** Replicas of a server: selects one for each call, and fails over to the others. */
import type { Client } from "./client.ts";
import { StepdError, TransportError } from "./errors.ts";
import { Backoff, pause, type RetryOptions } from "./retries.ts";
import type { CallOptions } from "./transport.ts";

/** Cool-down of a replica after a failure; it doubles with each failure in a row. */
const FIRST_COOL_DOWN_MS = 1_000;
const MAX_COOL_DOWN_MS = 60_000;

export type Call<Result> = (client: Client, options: CallOptions) => Promise<Result>;

export class Replicas {
  readonly #replicas: readonly Replica[];
  readonly #retries: RetryOptions;
  #turn = 0;

  /** `retries` counts rounds over all replicas, after the first. The clients themselves must not retry. */
  constructor(clients: readonly Client[], retries: RetryOptions) {
    this.#replicas = clients.map((client) => new Replica(client));
    this.#retries = retries;
  }

  /**
   * Tries one replica after the other until one answers, beginning with the url `home`. Throws at once for a faulty call.
   * After BLOB_MISSING it goes on: another replica may have the blob in its cache.
   */
  async call<Result>(call: Call<Result>, options: CallOptions, home?: string): Promise<Result> {
    const backoff = new Backoff(this.#retries, "every stepd replica");
    for (;;) {
      const untried = new Set(this.#replicas);
      const retryAfters: number[] = [];
      let last: StepdError | TransportError | undefined;
      let blobMissing: unknown;
      while (untried.size > 0) {
        const replica = leastLoaded(untried, home);
        untried.delete(replica);
        try {
          return await replica.run(call, options, this.#turn++);
        } catch (error) {
          // An aborted call throws the signal's reason, whatever that is.
          options.signal?.throwIfAborted();
          if (error instanceof StepdError && error.code === "BLOB_MISSING") blobMissing = error;
          else {
            if (!isReplicaFault(error)) throw error;
            if (error.retryAfter !== undefined) retryAfters.push(error.retryAfter);
            // The round's error is a refused connection only if every replica refused.
            if (!last || isRefused(last) || !isRefused(error)) last = error;
          }
        }
      }
      // The shortest Retry-After of the round.
      const wait = last && backoff.delayAfter(last, retryAfters.length > 0 ? Math.min(...retryAfters) : undefined);
      if (wait === undefined) throw blobMissing ?? last;
      await pause(wait, options.signal);
    }
  }
}

/** Whether the error lies with one replica, so that another may succeed: a failure, or an invalid reply. */
const isReplicaFault = (error: unknown): error is StepdError | TransportError =>
  error instanceof TransportError || (error instanceof StepdError && (error.isPassing || error.code === "INTERNAL_ERROR"));

const isRefused = (error: StepdError | TransportError): boolean => error instanceof TransportError && error.isRefused;

type Load = readonly [coolDown: number, isNotHome: number, calls: number, turn: number];

class Replica {
  readonly #client: Client;
  #calls = 0;
  #turn = -1;
  /** Failures in a row. */
  #failures = 0;
  #failedAt = 0;
  #coolDownUntil = 0;

  constructor(client: Client) {
    this.#client = client;
  }

  async run<Result>(call: Call<Result>, options: CallOptions, turn: number): Promise<Result> {
    const start = performance.now();
    this.#turn = turn;
    this.#calls++;
    try {
      const result = await call(this.#client, options);
      this.#recover();
      return result;
    } catch (error) {
      // An aborted call does not tell whether the replica works.
      if (!options.signal?.aborted) {
        if (isReplicaFault(error)) this.#fail(start);
        else this.#recover();
      }
      throw error;
    } finally {
      this.#calls--;
    }
  }

  /** Calls that fail together count as one failure: a call that started before the last failure is ignored. */
  #fail(start: number): void {
    if (this.#failures > 0 && start <= this.#failedAt) return;
    this.#failedAt = performance.now();
    this.#coolDownUntil = this.#failedAt + Math.min(FIRST_COOL_DOWN_MS * 2 ** this.#failures, MAX_COOL_DOWN_MS);
    this.#failures++;
  }

  #recover(): void {
    this.#failures = 0;
    this.#coolDownUntil = 0;
  }

  /** Sort key, lowest first: cool-down, not `home`, calls in progress, time of the last call. */
  load(now: number, home: string | undefined): Load {
    // After the cool-down one call probes the replica; the others avoid it until that call ends.
    const isOnTrial = this.#failures > 0 && this.#calls > 0;
    return [this.#coolDownUntil > now ? this.#coolDownUntil : isOnTrial ? now : 0, Number(this.#client.url !== home), this.#calls, this.#turn];
  }
}

const leastLoaded = (replicas: Iterable<Replica>, home: string | undefined): Replica => {
  const now = performance.now();
  const [first] = [...replicas]
    .map((replica) => ({ replica, load: replica.load(now, home) }))
    .sort(({ load: a }, { load: b }) => a[0] - b[0] || a[1] - b[1] || a[2] - b[2] || a[3] - b[3]);
  return (first as { replica: Replica }).replica;
};
