/** The interfaces through which http/ uses the arena, the tokens and the settings. */
import type { ServerOptions } from "node:https";
import type { Lease, Rpc } from "../rpc/rpc.ts";
import type { Telemetry } from "../telemetry/telemetry.ts";
import type { HeapBudget, HeapShare, Reclaim } from "./heap.ts";

/** The limits of the transport. */
export interface Limits {
  /** The largest compressed body, in bytes. */
  readonly maxCompressedBytes: number;
  /** The largest size of a compressed body after inflation, in bytes. */
  readonly maxInflatedBytes: number;
  /** The longest time to receive a whole request. */
  readonly requestTimeoutMs: number;
  /** The time without traffic after which a connection is closed. */
  readonly idleTimeoutMs: number;
  /** The time that a connection stays open for the next request. */
  readonly keepAliveTimeoutMs: number;
  /** The minimum average rate of a body in bytes per second, after a grace period. The request timeout requires more of a large body. */
  readonly minBodyRate: number;
  readonly maxConnections: number;
  readonly maxInFlight: number;
}

/** Admits calls by opening leases. */
export interface Admission {
  /** Opens a lease. Throws OVERLOADED or PAYLOAD_TOO_LARGE. */
  lease(bytes: number, heap: HeapShare): Lease;
  /** A hook that frees another call's memory if there is no room. Set by http/. */
  reclaim: Reclaim;
}

/** Authenticates callers. */
export interface Callers {
  /** The caller's name for an Authorization header. Throws UNAUTHENTICATED. */
  callerOf(authorization: string | undefined): string;
}

export interface Service {
  readonly admission: Admission;
  /** The budget of the JavaScript heap. */
  readonly heap: HeapBudget;
  readonly rpc: Rpc;
  readonly telemetry: Telemetry;
  readonly limits: Limits;
  /** Undefined if calls need no token. */
  readonly callers: Callers | undefined;
  readonly tls: ServerOptions | undefined;
  readonly corsOrigins: readonly string[];
  readonly version: string;
  /** The folder of the page; undefined if the page is off, or not built. */
  readonly page: string | undefined;
  /** True if /metrics is served by the admin server. */
  readonly hasAdmin: boolean;
  /** True if load balancers may send calls; false from the start of a drain. */
  isReady(): boolean;
  /** True if new calls are refused. */
  isDraining(): boolean;
  /** The reply to GET /v1. */
  info(): unknown;
}
