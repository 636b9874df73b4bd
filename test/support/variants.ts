/** Lists all variants of all optimizers (`variants` in src/optimizers/), for the tests of the whole registry. */
import { registry } from "../../src/optimizers/registry.ts";

export interface Variant {
  readonly label: string;
  readonly optimizer: { readonly name: string; readonly [hyperparameter: string]: unknown };
  /** True if tensors depend on each other, so that a step of some of them has other bits. */
  readonly isGlobal: boolean;
  /** True if a step of some tensors has other bits even with the global norm. */
  readonly isShared: boolean;
}

const variantsOf = (takesMatrices: boolean): readonly Variant[] =>
  [...registry.values()]
    .filter(({ matrices }) => (matrices !== undefined) === takesMatrices)
    .flatMap(({ name, normLimit, shared, variants }) =>
      Object.entries(variants).map(([label, settings]) => ({
        label,
        optimizer: { name, ...settings },
        isShared: shared !== undefined,
        isGlobal: shared !== undefined || (normLimit !== undefined && (settings[normLimit] ?? null) !== null),
      })),
    );

/** The variants of optimizers that take tensors of any shape. */
export const variants: readonly Variant[] = variantsOf(false);

/** The last variant of each optimizer, for tests of what does not depend on hyperparameters. */
export const oneOfEach: readonly Variant[] = [...new Map(variants.map((variant) => [variant.optimizer.name, variant])).values()];

/** The variants of optimizers that take only matrices. */
export const matrixVariants: readonly Variant[] = variantsOf(true);

/** One variant of each optimizer with moments, in each narrow format. These variants accept no F64 parameters. */
export const narrowVariants: readonly Variant[] = [...registry.values()].flatMap(({ name, moments, matrices, variants: ofOptimizer }) => {
  if (!moments || matrices) return [];
  const [label, settings] = Object.entries(ofOptimizer).findLast(([, { centered }]: [string, { centered?: unknown }]) => centered !== true) ?? [name, {}];
  return ["BF16", "Q8"].map((state_dtype) => ({
    label: `${label}, moments in ${state_dtype}`,
    optimizer: { name, ...settings, state_dtype },
    isShared: variants.some((variant) => variant.label === label && variant.isShared),
    isGlobal: variants.some((variant) => variant.label === label && variant.isGlobal),
  }));
});
