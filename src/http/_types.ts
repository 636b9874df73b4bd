/** Declares the services that http/ needs. */
import type { ServerOptions } from "node:https";
import type { Lease, Rpc } from "../rpc/rpc.ts";
import type { Telemetry } from "../telemetry/telemetry.ts";
import type { Traces } from "../telemetry/traces.ts";
import type { Callers, Identity } from "./callers.ts";
import type { HeapBudget, HeapShare, Reclaim } from "./heap.ts";

/** The limits of connections and requests. */
export interface Limits {
  /** A compressed body has at most this many bytes. */
  readonly maxCompressedBytes: number;
  /** An inflated body has at most this many bytes. */
  readonly maxInflatedBytes: number;
  /** A request must arrive completely within this time. */
  readonly requestTimeoutMs: number;
  /** A connection without traffic is closed after this time. */
  readonly idleTimeoutMs: number;
  /** A connection stays open for the next request for this time. */
  readonly keepAliveTimeoutMs: number;
  /** A body's minimum average rate in bytes per second, after a grace period. For large bodies, the request timeout requires a higher rate. */
  readonly minBodyRate: number;
  readonly maxConnections: number;
  readonly maxInFlight: number;
  /** At most this many calls compute at once; more wait for their turns. */
  readonly maxComputing: number;
}

/** Admits calls: opens a lease if the arena has room. */
export interface Admission {
  /** Opens a lease. Throws OVERLOADED or PAYLOAD_TOO_LARGE. */
  lease(bytes: number, heap: HeapShare): Lease;
  /** The bytes that all leases hold, and the bytes that they may hold. */
  readonly used: number;
  readonly capacity: number;
  /** Frees another call's memory when there is no room. The server sets this hook. */
  reclaim: Reclaim;
}

export interface Authenticator {
  /** Returns the name and the limits of the token in an Authorization header. Throws UNAUTHENTICATED. */
  callerOf(authorization: string | undefined): Identity;
  /** The callers that have a token. */
  readonly identities: Iterable<Identity>;
}

/** The services and settings that the HTTP server needs. */
export interface Service {
  readonly admission: Admission;
  /** The budget of the JavaScript heap. All calls share it. */
  readonly heap: HeapBudget;
  readonly rpc: Rpc;
  readonly telemetry: Telemetry;
  /** Undefined if calls are not traced. */
  readonly traces: Traces | undefined;
  readonly limits: Limits;
  /** Undefined if calls need no token. */
  readonly authenticator: Authenticator | undefined;
  readonly callers: Callers;
  readonly tls: ServerOptions | undefined;
  readonly corsOrigins: readonly string[];
  readonly version: string;
  /** The folder of the browser page. Undefined if the page is off or not built. */
  readonly page: string | undefined;
  /** The base URLs of the replicas whose metrics the page shows. */
  readonly pageReplicas: readonly string[];
  /** True if the log has a line at level info for each call. */
  readonly accessLog: boolean;
  /** The settings by variable name, without secrets. */
  readonly settings: Readonly<Record<string, unknown>>;
  /** True if the admin server serves /metrics. */
  readonly hasAdmin: boolean;
  /** True if load balancers may send calls. False from the start of a drain. */
  isReady(): boolean;
  /** True if the server rejects new calls. */
  isDraining(): boolean;
  /** Returns the reply to GET /v1. */
  info(): unknown;
}
