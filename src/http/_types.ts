/** What the HTTP room needs from rooms that it does not know. */
import type { ServerOptions } from "node:https";
import type { Lease, Rpc } from "../rpc/rpc.ts";
import type { Telemetry } from "../telemetry/telemetry.ts";
import type { HeapBudget, HeapShare, Reclaim } from "./heap.ts";

/** Named limits of the transport. */
export interface Limits {
  /** The largest compressed body, in bytes, before and after inflation. */
  readonly maxCompressedBytes: number;
  readonly maxInflatedBytes: number;
  /** Milliseconds until a whole request must be in. */
  readonly requestTimeoutMs: number;
  /** Milliseconds without a byte in either direction until a connection is cut. */
  readonly idleTimeoutMs: number;
  /** Milliseconds that a connection is kept open for the next request. */
  readonly keepAliveTimeoutMs: number;
  /** Bytes a second that a body must come with on average, after the grace, at least; its length and the request timeout may ask for more. */
  readonly minBodyRate: number;
  readonly maxConnections: number;
  readonly maxInFlight: number;
}

/** Gives out leases. Throws OVERLOADED or PAYLOAD_TOO_LARGE. */
export interface Admission {
  lease(bytes: number, heap: HeapShare): Lease;
  /** Called for room: frees another call's memory, or returns false. */
  reclaim: Reclaim;
}

/** Tells who calls. Throws UNAUTHENTICATED. */
export interface Callers {
  callerOf(authorization: string | undefined): string;
}

export interface Service {
  readonly admission: Admission;
  /** Memory beside the arena. */
  readonly heap: HeapBudget;
  readonly rpc: Rpc;
  readonly telemetry: Telemetry;
  readonly limits: Limits;
  /** Undefined where anybody may call. */
  readonly callers: Callers | undefined;
  readonly tls: ServerOptions | undefined;
  readonly corsOrigins: readonly string[];
  /** Whether /metrics is on another port. */
  readonly hasAdmin: boolean;
  /** Whether a balancer may send calls: false from the start of a drain on. */
  isReady(): boolean;
  /** Whether new calls are refused. */
  isDraining(): boolean;
  /** What GET /v1 says. */
  info(): unknown;
}
