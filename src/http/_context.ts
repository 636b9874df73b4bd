/** The objects that all calls of one server share. */
import type { SerialQueue } from "../codec/turns.ts";
import type { DrainRate } from "../errors/drain-rate.ts";
import { StepdError } from "../errors/errors.ts";
import type { Connections } from "./_connections.ts";
import type { Service } from "./_types.ts";
import type { Receiver } from "./body.ts";
import type { Replies } from "./reply.ts";

export interface ServerContext extends Service {
  readonly receiver: Receiver;
  readonly connections: Connections;
  readonly replies: Replies;
  /** The rate of finished calls, for the retry_after of refused ones. */
  readonly completionRate: DrainRate;
  /** Decodes large bodies one at a time. */
  readonly decodeQueue: SerialQueue;
}

export const draining = (): StepdError => new StepdError("DRAINING", "This server is shutting down; send the call to another", { retry_after: 1 });
