/** Parameter groups: finds the hyperparameters of each tensor by its name. */
import { StepdError } from "../errors/errors.ts";
import type { Hyperparameters, OptimizerDefinition, Values } from "../optimizers/registry.ts";

/** An optimizer of a valid request: its name and the given hyperparameters, without defaults. */
export type OptimizerInput = Readonly<Record<string, unknown>> & { readonly name: string };

export interface Group {
  readonly tensors: readonly string[];
  readonly optimizer: OptimizerInput;
}

/** The hyperparameters of an optimizer, with defaults for those not given. */
export const withDefaults = ({ hyperparameters }: OptimizerDefinition, given: OptimizerInput): Values<Hyperparameters> => {
  const values: Record<string, unknown> = {};
  for (const name of Object.keys(hyperparameters)) values[name] = given[name] === undefined ? hyperparameters[name]?.default : given[name];
  return values as Values<Hyperparameters>;
};

/** Compiles a pattern, in which * matches any characters, into a test of names. */
const matcher = (pattern: string): ((name: string) => boolean) => {
  const [head = "", ...tail] = pattern.split(/\*+/);
  const last = tail.pop() ?? "";
  return (name) => {
    // Tests the ends first: most patterns fail there, at less cost than a search.
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

/** The most names with *, because each is compared with every tensor's name. Names without * are looked up in a map and not limited. */
const MAX_PATTERNS = 256;

/** The most * in all patterns, because the part between two * is searched for in every tensor's name. */
const MAX_WILDCARDS = 1024;

const isPattern = (name: string): boolean => name.includes("*");

/** Throws INVALID_PARAMS if the groups have too many patterns or too many *. */
export const requireFewPatterns = (groups: readonly { readonly tensors: readonly string[] }[]): void => {
  const patterns = groups.flatMap(({ tensors }) => tensors.filter(isPattern));
  if (patterns.length > MAX_PATTERNS)
    throw StepdError.mismatch("INVALID_PARAMS", "/groups", `at most ${MAX_PATTERNS} names with * in all groups`, `${patterns.length}`);
  const wildcards = patterns.reduce((sum, pattern) => sum + pattern.split("*").length - 1, 0);
  if (wildcards > MAX_WILDCARDS) throw StepdError.mismatch("INVALID_PARAMS", "/groups", `at most ${MAX_WILDCARDS} * in all groups`, `${wildcards}`);
};

/** Returns a function from a tensor's name to the index of the first matching group, or -1. */
export const groupFinder = (groups: readonly Group[]): ((name: string) => number) => {
  const exact = new Map<string, number>();
  const patterns: (readonly [group: number, matches: (name: string) => boolean])[] = [];
  groups.forEach(({ tensors }, index) => {
    for (const name of tensors) {
      if (isPattern(name)) patterns.push([index, matcher(name)]);
      else if (!exact.has(name)) exact.set(name, index);
    }
  });
  return (name) => {
    const exactGroup = exact.get(name) ?? groups.length;
    const firstGroup = patterns.find(([group, matches]) => group < exactGroup && matches(name))?.[0] ?? exactGroup;
    return firstGroup < groups.length ? firstGroup : -1;
  };
};
