/** Assigns tensors to parameter groups by name. */
import { StepdError } from "../errors/errors.ts";
import type { Hyperparameters, OptimizerDefinition, Values } from "../optimizers/registry.ts";

/** The optimizer object of a validated request. It has only the hyperparameters that the caller gave. */
export type OptimizerInput = Readonly<Record<string, unknown>> & { readonly name: string };

/** Returns all hyperparameters of an optimizer: the given values, and defaults for the others. */
export const withDefaults = ({ hyperparameters }: OptimizerDefinition, given: OptimizerInput): Values<Hyperparameters> => {
  const values: Record<string, unknown> = {};
  for (const name of Object.keys(hyperparameters)) values[name] = given[name] === undefined ? hyperparameters[name]?.default : given[name];
  values["ema"] = given["ema"] ?? null;
  return values as Values<Hyperparameters>;
};

/** Compiles a pattern to a function that tests a name. In a pattern, * matches any characters. */
const compilePattern = (pattern: string): ((name: string) => boolean) => {
  const [head = "", ...tail] = pattern.split(/\*+/);
  const last = tail.pop() ?? "";
  return (name) => {
    // The ends are tested first: most names fail there, and a search costs more.
    if (name.length < head.length + last.length || !name.endsWith(last) || !name.startsWith(head)) return false;
    let at = head.length;
    for (const piece of tail) {
      const found = name.indexOf(piece, at);
      if (found < 0) return false;
      at = found + piece.length;
    }
    return name.length - at >= last.length;
  };
};

/** A call has at most this many patterns, because each is tested against every tensor's name. Exact names have no limit. */
const MAX_PATTERNS = 256;

/** All patterns together have at most this many wildcards (*). Each wildcard costs a search in every tensor's name. */
const MAX_WILDCARDS = 1024;

const isPattern = (name: string): boolean => name.includes("*");

/** Throws INVALID_PARAMS if the groups have too many patterns or too many wildcards. */
export const requireFewPatterns = (groups: readonly { readonly tensors: readonly string[] }[]): void => {
  const patterns = groups.flatMap(({ tensors }) => tensors.filter(isPattern));
  if (patterns.length > MAX_PATTERNS)
    throw StepdError.mismatch("INVALID_PARAMS", "/groups", `at most ${MAX_PATTERNS} names with * in all groups`, `${patterns.length}`);
  const wildcards = patterns.reduce((sum, pattern) => sum + pattern.split("*").length - 1, 0);
  if (wildcards > MAX_WILDCARDS) throw StepdError.mismatch("INVALID_PARAMS", "/groups", `at most ${MAX_WILDCARDS} * in all groups`, `${wildcards}`);
};

/** Returns a function that maps a tensor's name to the index of the first matching group, or to -1. */
export const groupFinder = (groups: readonly { readonly tensors: readonly string[] }[]): ((name: string) => number) => {
  const exact = new Map<string, number>();
  const patterns: (readonly [group: number, matches: (name: string) => boolean])[] = [];
  groups.forEach(({ tensors }, index) => {
    for (const name of tensors) {
      if (isPattern(name)) patterns.push([index, compilePattern(name)]);
      else if (!exact.has(name)) exact.set(name, index);
    }
  });
  return (name) => {
    const exactGroup = exact.get(name) ?? groups.length;
    const firstGroup = patterns.find(([group, matches]) => group < exactGroup && matches(name))?.[0] ?? exactGroup;
    return firstGroup < groups.length ? firstGroup : -1;
  };
};
