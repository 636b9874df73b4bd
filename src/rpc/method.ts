/** Declares the interface of RPC methods. */
import type { Blobs } from "../blobs/blobs.ts";
import type { Engine, Lease, QueueTime } from "../engine/engine.ts";
import type { Receipts } from "../receipts/receipts.ts";
import type { Telemetry } from "../telemetry/telemetry.ts";

/** The services and the request's state, passed to each method. */
export interface MethodContext {
  readonly engine: Engine;
  readonly blobs: Blobs;
  readonly lease: Lease;
  readonly telemetry: Telemetry;
  readonly receipts: Receipts;
  readonly queueTime: QueueTime;
  /** Calls that differ only in their blobs share this object. Undefined if the call's body has no template. */
  readonly template: object | undefined;
  readonly openRpc: unknown;
}

export interface Method<Params = never, Result = unknown> {
  readonly name: string;
  readonly summary: string;
  /** The file in schemas/ that describes the parameters. */
  readonly params: string;
  /** The file in schemas/ that describes the result. */
  readonly result: string;
  /** The method's REST route. A path segment in braces is a parameter of the method. */
  readonly rest?: { readonly verb: "GET" | "POST"; readonly path: string };
  handle(params: Params, context: MethodContext): Result | Promise<Result>;
}
