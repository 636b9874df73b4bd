import { EMA } from "../engine/engine.ts";
import { StepdError } from "../errors/errors.ts";
import type { DescribeParams } from "../generated/wire.gen.ts";
import { optimizerSchema, registry, slotsPerElement } from "../optimizers/registry.ts";
import { validate } from "../validation/validate.ts";
import type { Method } from "./method.ts";

const F32_BYTES = 4;

/** Method optimizer.describe: returns the formula, references, hyperparameters and cost of one optimizer. */
export const describe: Method<DescribeParams> = {
  name: "optimizer.describe",
  summary: "Describes one optimizer: formula, references, hyperparameters, slots and bytes per parameter",
  params: "describe.schema.json",
  result: "describe-result.schema.json",
  rest: { verb: "GET", path: "/v1/optimizers/{name}" },

  handle({ name }) {
    const definition = registry.get(name);
    if (!definition) {
      validate("optimizer.schema.json", { name });
      throw new StepdError("INTERNAL_ERROR", `the schema has an optimizer ${name} that the registry lacks`);
    }
    const { title, revision, family, formula, references, hyperparameters, allSlots } = definition;
    const defaults = Object.fromEntries(Object.entries(hyperparameters).map(([key, { default: value }]) => [key, value]));
    const values = defaults as Parameters<typeof definition.slots>[0];
    const slots = definition.slots(values);
    const state = slotsPerElement(definition, values) * F32_BYTES;
    return {
      name,
      title,
      revision,
      family,
      formula,
      references,
      hyperparameters: optimizerSchema(definition),
      slots: { default: slots, all: [...allSlots, EMA] },
      bytes_per_parameter: { in: 2 * F32_BYTES + state, out: F32_BYTES + state, state },
    };
  },
};
