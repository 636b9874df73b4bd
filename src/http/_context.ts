/** Declares the objects that all calls of one server share. */
import type { DrainRate } from "../errors/drain-rate.ts";
import { StepdError } from "../errors/errors.ts";
import type { Connections } from "./_connections.ts";
import type { Pace } from "./_pace.ts";
import type { Turns } from "./_turns.ts";
import type { Service } from "./_types.ts";
import type { Receiver } from "./body.ts";
import type { Decoder } from "./decoder.ts";
import type { Replies } from "./reply.ts";

export interface ServerContext extends Service {
  readonly receiver: Receiver;
  readonly pace: Pace;
  readonly connections: Connections;
  readonly turns: Turns;
  readonly decoder: Decoder;
  readonly replies: Replies;
  /** The rate of finished calls, from which OVERLOADED errors compute retry_after. */
  readonly completionRate: DrainRate;
}

export const drainingError = (): StepdError => new StepdError("DRAINING", "This server is shutting down; send the call to another", { retry_after: 1 });
