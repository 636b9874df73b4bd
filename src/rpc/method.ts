/** What a method is: its name, its schemas, its place in the REST twin, and its story. */
import type { Blobs } from "../blobs/blobs.ts";
import type { Engine, Waits } from "../engine/engine.ts";
import type { Telemetry } from "../telemetry/telemetry.ts";

export type { Waits } from "../engine/engine.ts";

/** What a call has at hand. `lease` is typed by the engine, which is all that looks into it. */
export interface Context {
  readonly engine: Engine;
  readonly blobs: Blobs;
  readonly lease: Parameters<Engine["inspect"]>[1];
  readonly telemetry: Telemetry;
  readonly waits: Waits;
  /** The same object for each call that says the same beside its blobs; undefined for one that is new. */
  readonly words: object | undefined;
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
