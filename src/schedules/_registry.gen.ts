// DO NOT EDIT: written by `npm run generate`.
import type { ScheduleDefinition } from "./_define.ts";
import chained from "./chained.ts";
import constant from "./constant.ts";
import cosine from "./cosine.ts";
import cosineWarmRestarts from "./cosine-warm-restarts.ts";
import cyclic from "./cyclic.ts";
import exponential from "./exponential.ts";
import inverseSqrt from "./inverse-sqrt.ts";
import linear from "./linear.ts";
import multistep from "./multistep.ts";
import oneCycle from "./one-cycle.ts";
import polynomial from "./polynomial.ts";
import sequence from "./sequence.ts";
import step from "./step.ts";
import table from "./table.ts";
import warmupCosine from "./warmup-cosine.ts";
import warmupStableDecay from "./warmup-stable-decay.ts";

/** All schedules by name. */
export const registry: ReadonlyMap<string, ScheduleDefinition> = new Map(
  ([chained, constant, cosine, cosineWarmRestarts, cyclic, exponential, inverseSqrt, linear, multistep, oneCycle, polynomial, sequence, step, table, warmupCosine, warmupStableDecay] as unknown as readonly ScheduleDefinition[]).map((definition) => [definition.name, definition]),
);
