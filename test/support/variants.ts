/** Lists all variants of all optimizers (`variants` in src/optimizers/), for the tests of the whole registry. */
import { registry } from "../../src/optimizers/registry.ts";

export interface Variant {
  readonly label: string;
  readonly optimizer: { readonly name: string; readonly [hyperparameter: string]: unknown };
  /** True if tensors depend on each other, so that a sharded step needs the global norm first. */
  readonly isGlobal: boolean;
}

export const variants: readonly Variant[] = [...registry.values()].flatMap(({ name, normLimit, variants }) =>
  Object.entries(variants).map(([label, settings]) => ({
    label,
    optimizer: { name, ...settings },
    isGlobal: normLimit !== undefined && (settings[normLimit] ?? null) !== null,
  })),
);
