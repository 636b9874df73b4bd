/**
 * Shares the server among its callers. A caller is the name of a token or, without tokens, a remote address. A resource that has room
 * is given to whoever asks. When it is full, a call of the caller that holds the most gives way to a caller that would still hold less
 * (max-min fairness), so one caller alone may use everything, and twenty callers get equal shares. Limits in the tokens file come on top.
 */
import type { Socket } from "node:net";
import { TokenBucket } from "limiter";
import { StepdError } from "../errors/errors.ts";
import type { Lease } from "../rpc/rpc.ts";
import type { CallerMeter, HeapShare } from "./heap.ts";

const MIB = 2 ** 20;

/** The limits that a line of the tokens file may set, each a whole number of at least 1. */
export const LIMIT_NAMES = ["calls", "connections", "arena_mib", "json_mib", "cache_mib", "calls_per_second", "bytes_per_second"] as const;

/** The limits of one caller. An absent limit is that of the server. */
export type CallerLimits = Readonly<Partial<Record<(typeof LIMIT_NAMES)[number], number>>>;

/** Who sent a request. */
export interface Identity {
  readonly name: string;
  readonly limits: CallerLimits;
}

export type CallPhase = "receive" | "queue" | "compute" | "send";

/** A refused call is answered late if its caller was refused this often within a second, so that refusals cannot occupy the server. */
const PROMPT_REFUSALS_PER_S = 10;
const LATE_REFUSAL_MS = 100;

interface FinishedCall {
  readonly outcome: string;
  /** Whose limit refused the call. */
  readonly limit: StepdError["detail"]["limit"];
  readonly bytesIn: number;
  readonly bytesOut: number;
}

interface OutcomeCount extends Pick<FinishedCall, "outcome" | "limit"> {
  count: number;
}

/** One caller, with counts of what it has done. */
export class Caller {
  readonly name: string;
  /** The open connections whose last call came from this caller. */
  readonly sockets = new Set<Socket>();
  readonly flights = new Set<Flight>();
  readonly #outcomes = new Map<string, OutcomeCount>();
  bytesIn = 0;
  bytesOut = 0;
  nonFinite = 0;
  limits: CallerLimits = {};
  #callRate: TokenBucket | undefined;
  #byteRate: TokenBucket | undefined;
  /** The second of the last refusal, and the number of refusals in it. */
  #refusalSecond = 0;
  #refusals = 0;

  constructor(name: string) {
    this.name = name;
  }

  /** Sets the limits. A bucket is replaced only if its rate changes, so that a reload of the tokens file is no way around it. */
  setLimits(limits: CallerLimits): void {
    if (limits === this.limits) return;
    this.#callRate = renewed(this.#callRate, limits.calls_per_second);
    this.#byteRate = renewed(this.#byteRate, limits.bytes_per_second);
    this.limits = limits;
  }

  /** Takes one call from the caller's rate. Throws OVERLOADED if the rate of calls or of bytes is in debt. */
  chargeCall(): void {
    const callWait = waitOf(this.#callRate, 1);
    const wait = Math.max(callWait, waitOf(this.#byteRate, 0));
    if (wait > 0) {
      const isCalls = callWait > 0;
      const rate = isCalls ? `${this.limits.calls_per_second} calls` : `${this.limits.bytes_per_second} bytes`;
      throw limitError(this, `${rate} a second`, "more", Math.ceil(wait));
    }
    if (this.#callRate) this.#callRate.content -= 1;
  }

  /** Takes bytes from the caller's rate. The rate may go into debt, because a body can be larger than a second's bytes. */
  chargeBytes(bytes: number): void {
    if (this.#byteRate) this.#byteRate.content -= bytes;
  }

  /** Returns the delay in ms of the reply to a refused call. */
  delayOfRefusal(): number {
    const second = Math.floor(performance.now() / 1000);
    if (second !== this.#refusalSecond) this.#refusals = 0;
    this.#refusalSecond = second;
    return ++this.#refusals > PROMPT_REFUSALS_PER_S ? LATE_REFUSAL_MS : 0;
  }

  /** Counts a finished call. */
  countCall({ outcome, limit, bytesIn, bytesOut }: FinishedCall): void {
    const key = `${outcome} ${limit}`;
    const known = this.#outcomes.get(key) ?? { outcome, limit, count: 0 };
    known.count++;
    this.#outcomes.set(key, known);
    this.bytesIn += bytesIn;
    this.bytesOut += bytesOut;
  }

  get outcomes(): Iterable<Readonly<OutcomeCount>> {
    return this.#outcomes.values();
  }

  /** The arena bytes of the caller's calls. */
  get arenaBytes(): number {
    return sumOf(this.flights, arenaBytes);
  }
}

/** A bucket holds one second of its rate. */
const renewed = (bucket: TokenBucket | undefined, rate: number | undefined): TokenBucket | undefined => {
  if (rate === undefined || bucket?.bucketSize === rate) return rate === undefined ? undefined : bucket;
  const fresh = new TokenBucket({ bucketSize: rate, tokensPerInterval: rate, interval: "second" });
  fresh.content = rate;
  return fresh;
};

/** Returns the seconds until the bucket has `tokens`. */
const waitOf = (bucket: TokenBucket | undefined, tokens: number): number => {
  if (!bucket) return 0;
  bucket.drip();
  return Math.max(0, tokens - bucket.content) / bucket.bucketSize;
};

type Held = (flight: Flight) => number;

const sumOf = (flights: Iterable<Flight>, held: Held): number => {
  let sum = 0;
  for (const flight of flights) sum += held(flight);
  return sum;
};

const arenaBytes = ({ lease }: Flight): number => lease?.held ?? 0;
const jsonBytes = ({ heap }: Flight): number => heap?.held ?? 0;

/** A call from its headers to the last byte of its reply. */
export class Flight implements CallerMeter {
  readonly caller: Caller;
  readonly socket: Socket;
  readonly id: string;
  readonly start = performance.now();
  method = "unknown";
  phase: CallPhase = "receive";
  /** The bytes of the body that have been admitted. */
  bytes = 0;
  lease: Lease | undefined;
  heap: HeapShare | undefined;
  /** Rejects the call and frees its memory at once. Undefined while the call cannot give way: it computes or is being answered. */
  giveWay: ((error: unknown) => void) | undefined;

  constructor(caller: Caller, socket: Socket, id: string) {
    this.caller = caller;
    this.socket = socket;
    this.id = id;
  }

  /** Counts bytes of the body, and takes them from the caller's rate. */
  admit(bytes: number): void {
    this.bytes += bytes;
    this.caller.chargeBytes(bytes);
  }

  requireArena(bytes: number): void {
    this.#require(this.caller.limits.arena_mib, "of the arena", bytes, arenaBytes);
  }

  requireHeap(bytes: number): void {
    this.#require(this.caller.limits.json_mib, "of JSON and values", bytes, jsonBytes);
  }

  #require(mebibytes: number | undefined, what: string, bytes: number, held: Held): void {
    if (mebibytes === undefined) return;
    const limit = mebibytes * MIB;
    const alone = held(this) + bytes;
    const expected = `${limit} bytes ${what}`;
    if (alone > limit) {
      throw new StepdError("PAYLOAD_TOO_LARGE", `the call: expected at most ${expected}, the limit of this caller, found ${alone}`, {
        limit: "caller",
        field: "the call",
        expected: `at most ${expected}, the limit of this caller`,
        found: `${alone}`,
      });
    }
    const sum = sumOf(this.caller.flights, held) + bytes;
    if (sum > limit) throw limitError(this.caller, `${expected} at once`, `${sum}`, 1);
  }
}

const limitError = ({ name }: Caller, expected: string, found: string, retryAfter: number): StepdError =>
  new StepdError("OVERLOADED", `The caller ${JSON.stringify(name)} has a limit of ${expected}, found ${found}`, {
    limit: "caller",
    expected: `at most ${expected} of this caller`,
    found,
    retry_after: retryAfter,
  });

const gaveWayError = (): StepdError =>
  new StepdError("OVERLOADED", "The server is full, and this caller holds the largest share of it; this call gave way to another caller's", {
    limit: "share",
    expected: "room for a caller with a smaller share",
    retry_after: 1,
  });

export class Callers {
  readonly #maxCalls: number;
  readonly #named = new Map<string, Caller>();
  /** Callers without a token, by address. An address is forgotten with its last connection, because addresses are not bounded. */
  readonly #addresses = new Map<string, Caller>();
  readonly #owners = new Map<Socket, Caller>();
  readonly #flights = new Set<Flight>();

  constructor({ maxInFlight }: { readonly maxInFlight: number }) {
    this.#maxCalls = maxInFlight;
  }

  /** The calls in flight, oldest first. */
  get flights(): ReadonlySet<Flight> {
    return this.#flights;
  }

  /** The callers that have sent a token. */
  get named(): Iterable<Caller> {
    return this.#named.values();
  }

  /** The bytes that a caller's results may take of the cache. Undefined without a limit. */
  cacheLimit(name: string | undefined): number | undefined {
    const mebibytes = name === undefined ? undefined : this.#named.get(name)?.limits.cache_mib;
    return mebibytes === undefined ? undefined : mebibytes * MIB;
  }

  /** The number of open connections. */
  get connections(): number {
    return this.#owners.size;
  }

  /** Attributes a new connection to its address. */
  connect(socket: Socket): void {
    const address = socket.remoteAddress ?? "local";
    this.#attribute(socket, found(this.#addresses, address));
    socket.once("close", () => this.#release(socket));
  }

  #attribute(socket: Socket, caller: Caller): void {
    this.#release(socket);
    this.#owners.set(socket, caller);
    caller.sockets.add(socket);
  }

  #release(socket: Socket): void {
    const owner = this.#owners.get(socket);
    if (!owner) return;
    this.#owners.delete(socket);
    owner.sockets.delete(socket);
    if (owner.sockets.size === 0 && this.#addresses.get(owner.name) === owner) this.#addresses.delete(owner.name);
  }

  /**
   * Returns an idle connection of the caller with the most connections, which may be closed for a new one. Returns undefined if the
   * new connection's caller would then have as many.
   */
  spareSocket(socket: Socket): Socket | undefined {
    const requester = this.#owners.get(socket);
    const largest = most(this.#owners.values(), ({ sockets }) => sockets.size);
    if (!largest || !requester || largest.sockets.size <= requester.sockets.size) return undefined;
    const busy = new Set([...largest.flights].map((flight) => flight.socket));
    for (const candidate of largest.sockets) if (!busy.has(candidate)) return candidate;
    return undefined;
  }

  /** Finds the caller of a request by its token, or else by its address. The connection then belongs to that caller. */
  find(identity: Identity | undefined, socket: Socket): Caller {
    const owner = this.#owners.get(socket);
    if (!identity) return owner ?? found(this.#addresses, socket.remoteAddress ?? "local");
    const caller = owner?.name === identity.name && this.#named.get(identity.name) === owner ? owner : found(this.#named, identity.name);
    caller.setLimits(identity.limits);
    if (caller !== owner && owner) this.#attribute(socket, caller);
    return caller;
  }

  /** Admits a call. Throws OVERLOADED if a limit of the caller or of the server is reached. */
  enter(caller: Caller, socket: Socket, id: string, retryAfter: (excess: number) => number): Flight {
    const { calls = Number.POSITIVE_INFINITY, connections = Number.POSITIVE_INFINITY } = caller.limits;
    if (caller.sockets.size > connections) throw limitError(caller, `${connections} connections at once`, `${caller.sockets.size}`, 1);
    if (caller.flights.size >= calls) throw limitError(caller, `${calls} calls at once`, `${caller.flights.size + 1}`, 1);
    caller.chargeCall();
    const flight = new Flight(caller, socket, id);
    const excess = this.#flights.size + 1 - this.#maxCalls;
    if (excess > 0 && !this.#makeRoom(flight, 1, () => 1, 0)) {
      throw new StepdError("OVERLOADED", `This server has ${this.#maxCalls} calls in hand, which is all that it takes at once`, {
        limit: "server",
        expected: `at most ${this.#maxCalls} calls at once`,
        retry_after: retryAfter(excess),
      });
    }
    this.#flights.add(flight);
    caller.flights.add(flight);
    return flight;
  }

  leave(flight: Flight): void {
    flight.giveWay = undefined;
    this.#flights.delete(flight);
    flight.caller.flights.delete(flight);
  }

  /** True if more than one caller has calls in flight. */
  get isShared(): boolean {
    let first: Caller | undefined;
    for (const { caller } of this.#flights) {
      if (first && caller !== first) return true;
      first = caller;
    }
    return false;
  }

  /** Frees arena memory for a call. `free` is the number of bytes that no lease holds. Returns false if no other call has to give way. */
  freeArena(requester: object, bytes: number, free: number): boolean {
    const flight = this.#flightOf(requester);
    return flight !== undefined && this.#makeRoom(flight, bytes, arenaBytes, free);
  }

  /** Frees memory of the JavaScript heap for a call. */
  freeHeap(requester: object, bytes: number, free: number): boolean {
    const flight = this.#flightOf(requester);
    return flight !== undefined && this.#makeRoom(flight, bytes, jsonBytes, free);
  }

  #flightOf(heap: object): Flight | undefined {
    for (const flight of this.#flights) if (flight.heap === heap) return flight;
    return undefined;
  }

  /**
   * Lets one call of another caller give way: the latest call of the caller that holds the most, if that is more than the requester
   * would hold. Returns false, and ends no call, if all such calls together do not hold enough.
   */
  #makeRoom({ caller }: Flight, amount: number, held: Held, free: number): boolean {
    const sums = new Map<Caller, number>();
    for (const flight of this.#flights) sums.set(flight.caller, (sums.get(flight.caller) ?? 0) + held(flight));
    const own = (sums.get(caller) ?? 0) + amount;
    const larger = [...sums].filter(([other, sum]) => other !== caller && sum > own);
    let reclaimable = free;
    let victim: Flight | undefined;
    let largest = own;
    for (const [other, sum] of larger) {
      for (const flight of other.flights) {
        if (!flight.giveWay || held(flight) === 0) continue;
        reclaimable += held(flight);
        if (sum < largest) continue;
        largest = sum;
        victim = flight;
      }
    }
    if (!victim || reclaimable < amount) return false;
    const { giveWay } = victim;
    this.leave(victim);
    giveWay?.(gaveWayError());
    return true;
  }
}

const found = (callers: Map<string, Caller>, name: string): Caller => {
  const known = callers.get(name);
  if (known) return known;
  const caller = new Caller(name);
  callers.set(name, caller);
  return caller;
};

const most = <T>(items: Iterable<T>, size: (item: T) => number): T | undefined => {
  let largest: T | undefined;
  for (const item of items) if (largest === undefined || size(item) > size(largest)) largest = item;
  return largest;
};
