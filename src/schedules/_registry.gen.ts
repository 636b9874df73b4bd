// DO NOT EDIT: written by `npm run generate`.
import type { ScheduleDefinition } from "./_define.ts";
import constant from "./constant.ts";
import cosine from "./cosine.ts";
import cosineWarmRestarts from "./cosine-warm-restarts.ts";
import cyclic from "./cyclic.ts";
import exponential from "./exponential.ts";
import linear from "./linear.ts";
import multistep from "./multistep.ts";
import oneCycle from "./one-cycle.ts";
import polynomial from "./polynomial.ts";
import sequence from "./sequence.ts";
import step from "./step.ts";

/** All schedules by name. */
export const registry: ReadonlyMap<string, ScheduleDefinition> = new Map(
  ([constant, cosine, cosineWarmRestarts, cyclic, exponential, linear, multistep, oneCycle, polynomial, sequence, step] as unknown as readonly ScheduleDefinition[]).map((definition) => [definition.name, definition]),
);
