/** Selects a replica of the server for each call, and fails over to other replicas. */
import type { Call, Caller } from "./calls.ts";
import { StepdError, TransportError } from "./errors.ts";
import { Backoff, pause, type RetryOptions } from "./retries.ts";
import type { CallOptions } from "./transport.ts";

/** A replica that fails is avoided for this long. The cool-down doubles with each failure in a row. */
const FIRST_COOL_DOWN_MS = 1_000;
const MAX_COOL_DOWN_MS = 60_000;

export class Replicas {
  readonly #replicas: readonly Replica[];
  readonly #retries: RetryOptions;
  #turn = 0;

  /** `retries` counts rounds over all replicas, after the first round. The clients themselves must not retry. */
  constructor(clients: readonly Caller[], retries: RetryOptions) {
    this.#replicas = clients.map((client) => new Replica(client));
    this.#retries = retries;
  }

  /**
   * Tries one replica after another until one answers. The replica with the url `home` comes first. Throws at once for a faulty
   * call. After BLOB_MISSING the next replica is tried, because it may have the blob in its cache.
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
          // An aborted call throws the signal's reason, and no error of a replica.
          options.signal?.throwIfAborted();
          if (error instanceof StepdError && error.code === "BLOB_MISSING") blobMissing = error;
          else {
            if (!isReplicaFault(error)) throw error;
            if (error.retryAfter !== undefined) retryAfters.push(error.retryAfter);
            // The error of a round is a refused connection only if every replica refused its connection.
            if (!last || isRefused(last) || !isRefused(error)) last = error;
          }
        }
      }
      // The next round starts after the shortest Retry-After of this round.
      const wait = last && backoff.delayAfter(last, retryAfters.length > 0 ? Math.min(...retryAfters) : undefined);
      if (wait === undefined) throw blobMissing ?? last;
      await pause(wait, options.signal);
    }
  }
}

/** Returns whether the replica is at fault, by a failure or an invalid reply, so that another replica may succeed. */
const isReplicaFault = (error: unknown): error is StepdError | TransportError =>
  error instanceof TransportError || (error instanceof StepdError && (error.isPassing || error.code === "INTERNAL_ERROR"));

const isRefused = (error: StepdError | TransportError): boolean => error instanceof TransportError && error.isRefused;

type SortKey = readonly [coolDown: number, isNotHome: number, calls: number, turn: number];

class Replica {
  readonly #client: Caller;
  #calls = 0;
  #turn = -1;
  /** The number of failures in a row. */
  #failures = 0;
  #failedAt = 0;
  #coolDownUntil = 0;

  constructor(client: Caller) {
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
      // An aborted call does not show whether the replica works.
      if (!options.signal?.aborted) {
        if (isReplicaFault(error)) this.#fail(start);
        else this.#recover();
      }
      throw error;
    } finally {
      this.#calls--;
    }
  }

  /**
   * Records a failed call. Calls that fail together count as one failure: a call that started before the last failure does not
   * count.
   */
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

  /** Returns the sort key, lowest first: cool-down, not `home`, calls in progress, time of the last call. */
  sortKey(now: number, home: string | undefined): SortKey {
    // After the cool-down one call probes the replica. Other calls avoid the replica until that call ends.
    const isOnTrial = this.#failures > 0 && this.#calls > 0;
    return [this.#coolDownUntil > now ? this.#coolDownUntil : isOnTrial ? now : 0, Number(this.#client.url !== home), this.#calls, this.#turn];
  }
}

const leastLoaded = (replicas: Iterable<Replica>, home: string | undefined): Replica => {
  const now = performance.now();
  const [first] = [...replicas]
    .map((replica) => ({ replica, key: replica.sortKey(now, home) }))
    .sort(({ key: a }, { key: b }) => a[0] - b[0] || a[1] - b[1] || a[2] - b[2] || a[3] - b[3]);
  return (first as { replica: Replica }).replica;
};
