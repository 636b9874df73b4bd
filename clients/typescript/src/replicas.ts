/** Replicas of a server: which one takes a call, and where the call goes when that one fails. */
import type { Client } from "./client.ts";
import { StepdError, TransportError } from "./errors.ts";
import { Pauses, pause, type RetryOptions } from "./pauses.ts";
import type { CallOptions } from "./transport.ts";

/** How long a replica that failed is left alone: twice as long after each failure in a row. */
const FIRST_REST_MS = 1_000;
const MAX_REST_MS = 60_000;

export type Call<Result> = (client: Client, options: CallOptions) => Promise<Result>;

export class Replicas {
  readonly #replicas: readonly Replica[];
  readonly #retries: RetryOptions;
  #turn = 0;

  /** `retries` are of rounds over all replicas, after the first. The clients themselves should not send again. */
  constructor(clients: readonly Client[], retries: RetryOptions) {
    this.#replicas = clients.map((client) => new Replica(client));
    this.#retries = retries;
  }

  /**
   * Tries one replica after the other until one answers, that of the url `home` first; what is wrong with the call itself is
   * thrown at once. What one does not have, and was not given, another may have.
   */
  async call<Result>(call: Call<Result>, options: CallOptions, home?: string): Promise<Result> {
    const pauses = new Pauses(this.#retries, "every stepd replica");
    for (;;) {
      const untried = new Set(this.#replicas);
      const asked: number[] = [];
      let last: StepdError | TransportError | undefined;
      let missing: unknown;
      while (untried.size > 0) {
        const replica = mostRested(untried, home);
        untried.delete(replica);
        try {
          return await replica.run(call, options, this.#turn++);
        } catch (error) {
          // An aborted call throws the signal's reason, whatever that is.
          options.signal?.throwIfAborted();
          if (error instanceof StepdError && error.code === "BLOB_MISSING") missing = error;
          else {
            if (!isOfReplica(error)) throw error;
            if (error.retryAfter !== undefined) asked.push(error.retryAfter);
            // Of a round in which only some refuse the connection the others' failures count.
            if (!last || isRefused(last) || !isRefused(error)) last = error;
          }
        }
      }
      // Of those that said when, the first to be ready again.
      const wait = last && pauses.after(last, asked.length > 0 ? Math.min(...asked) : undefined);
      if (wait === undefined) throw missing ?? last;
      await pause(wait, options.signal);
    }
  }
}

/** A replica that fails or talks nonsense is no reason to think that the others do. */
const isOfReplica = (error: unknown): error is StepdError | TransportError =>
  error instanceof TransportError || (error instanceof StepdError && (error.isPassing || error.code === "INTERNAL_ERROR"));

const isRefused = (error: StepdError | TransportError): boolean => error instanceof TransportError && error.isRefused;

type Burden = readonly [rest: number, isAway: number, calls: number, turn: number];

class Replica {
  readonly #client: Client;
  #calls = 0;
  #turn = -1;
  /** In a row. */
  #failures = 0;
  #failedAt = 0;
  #restsUntil = 0;

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
      // An aborted call says nothing of the replica.
      if (!options.signal?.aborted) {
        if (isOfReplica(error)) this.#fail(start);
        else this.#recover();
      }
      throw error;
    } finally {
      this.#calls--;
    }
  }

  /** A call that came before the last failure is part of it: calls under way at once fail at once. */
  #fail(start: number): void {
    if (this.#failures > 0 && start <= this.#failedAt) return;
    this.#failedAt = performance.now();
    this.#restsUntil = this.#failedAt + Math.min(FIRST_REST_MS * 2 ** this.#failures, MAX_REST_MS);
    this.#failures++;
  }

  #recover(): void {
    this.#failures = 0;
    this.#restsUntil = 0;
  }

  /** What speaks against the next call, most important first: that it rests, is not `home`, calls under way, a call not long ago. */
  burden(now: number, home: string | undefined): Burden {
    // After its rest one call tries it, and the others wait for what comes of that.
    const isOnTrial = this.#failures > 0 && this.#calls > 0;
    return [this.#restsUntil > now ? this.#restsUntil : isOnTrial ? now : 0, Number(this.#client.url !== home), this.#calls, this.#turn];
  }
}

const mostRested = (replicas: Iterable<Replica>, home: string | undefined): Replica => {
  const now = performance.now();
  const [first] = [...replicas]
    .map((replica) => ({ replica, burden: replica.burden(now, home) }))
    .sort(({ burden: a }, { burden: b }) => a[0] - b[0] || a[1] - b[1] || a[2] - b[2] || a[3] - b[3]);
  return (first as { replica: Replica }).replica;
};
