/** What the calls of one server share. */
import type { OneAtATime } from "../codec/turns.ts";
import type { DrainRate } from "../errors/drain-rate.ts";
import { StepdError } from "../errors/errors.ts";
import type { Connections } from "./_connections.ts";
import type { Service } from "./_types.ts";
import type { Receiver } from "./body.ts";
import type { Replies } from "./reply.ts";

export interface Running extends Service {
  readonly receiver: Receiver;
  readonly connections: Connections;
  readonly replies: Replies;
  /** Calls that ended, for the time after which a refused one may come again. */
  readonly finished: DrainRate;
  /** Large bodies are read one at a time. */
  readonly decodes: OneAtATime;
}

export const draining = (): StepdError => new StepdError("DRAINING", "This server is shutting down; send the call to another", { retry_after: 1 });
