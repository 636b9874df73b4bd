// DO NOT EDIT: written by `npm run generate`.
import type { OptimizerDefinition } from "./_define.ts";
import adam from "./adam.ts";
import adamw from "./adamw.ts";
import lamb from "./lamb.ts";
import qhadam from "./qhadam.ts";
import qhadamw from "./qhadamw.ts";
import qhm from "./qhm.ts";
import sgd from "./sgd.ts";

/** All optimizers by name. */
export const registry: ReadonlyMap<string, OptimizerDefinition> = new Map(
  ([adam, adamw, lamb, qhadam, qhadamw, qhm, sgd] as unknown as readonly OptimizerDefinition[]).map((definition) => [definition.name, definition]),
);
