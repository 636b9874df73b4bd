/** What a method is: its name, its schemas, its place in the REST twin, and its story. */
import type { Blobs } from "../blobs/blobs.ts";
import type { Engine, Lease, Waits } from "../engine/engine.ts";
import type { Telemetry } from "../telemetry/telemetry.ts";

/** What a method has at hand. */
export interface Context {
  readonly engine: Engine;
  readonly blobs: Blobs;
  readonly lease: Lease;
  readonly telemetry: Telemetry;
  readonly waits: Waits;
  readonly openRpc: unknown;
}

export interface Method<Params = never, Result = unknown> {
  readonly name: string;
  readonly summary: string;
  /** Schemas of the parameters and of the result. */
  readonly params: string;
  readonly result: string;
  /** Where the REST twin is. Path parameters in braces are parameters of the method. */
  readonly rest?: { readonly verb: "GET" | "POST"; readonly path: string };
  handle(params: Params, context: Context): Result | Promise<Result>;
}
