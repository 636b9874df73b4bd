/** The definition of an RPC method: its name, schemas, REST route and handler. */
import type { Blobs } from "../blobs/blobs.ts";
import type { Engine, Lease, QueueTime } from "../engine/engine.ts";
import type { Telemetry } from "../telemetry/telemetry.ts";

/** The services and request state that a method's handler receives. */
export interface Context {
  readonly engine: Engine;
  readonly blobs: Blobs;
  readonly lease: Lease;
  readonly telemetry: Telemetry;
  readonly queueTime: QueueTime;
  readonly openRpc: unknown;
}

export interface Method<Params = never, Result = unknown> {
  readonly name: string;
  readonly summary: string;
  /** The schema file of the parameters. */
  readonly params: string;
  /** The schema file of the result. */
  readonly result: string;
  /** The route in the REST API. Path parameters in braces are parameters of the method. */
  readonly rest?: { readonly verb: "GET" | "POST"; readonly path: string };
  handle(params: Params, context: Context): Result | Promise<Result>;
}
