/** Parameter groups: which hyperparameters each tensor's step has. Pure. */
import { StepdError } from "../errors/errors.ts";
import type { Hyperparameters, OptimizerDefinition, Values } from "../optimizers/registry.ts";

/** An optimizer as it came, checked: its name and the hyperparameters that were given. */
export type Given = Readonly<Record<string, unknown>> & { readonly name: string };

export interface Group {
  readonly tensors: readonly string[];
  readonly optimizer: Given;
}

/** All hyperparameters of an optimizer, defaults filled in. */
export const withDefaults = ({ hyperparameters }: OptimizerDefinition, given: Given): Values<Hyperparameters> => {
  const values: Record<string, unknown> = {};
  for (const name of Object.keys(hyperparameters)) values[name] = given[name] === undefined ? hyperparameters[name]?.default : given[name];
  return values as Values<Hyperparameters>;
};

/** Compiles a name in which * stands for any characters into a test of names. */
const matcher = (pattern: string): ((name: string) => boolean) => {
  const [head = "", ...tail] = pattern.split(/\*+/);
  const last = tail.pop() ?? "";
  return (name) => {
    // Most patterns differ from a name at its ends, which costs less to see than a search.
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

/** Every tensor's name is compared with every pattern, which bounds their number. Names without * are looked up, so any number may come. */
const MAX_PATTERNS = 256;

/** Every piece between two * is a search through every name. */
const MAX_WILDCARDS = 1024;

const isPattern = (name: string): boolean => name.includes("*");

/** Throws INVALID_PARAMS if there are more patterns or * than a call may have. */
export const requireFew = (groups: readonly { readonly tensors: readonly string[] }[]): void => {
  const patterns = groups.flatMap(({ tensors }) => tensors.filter(isPattern));
  if (patterns.length > MAX_PATTERNS)
    throw StepdError.mismatch("INVALID_PARAMS", "/groups", `at most ${MAX_PATTERNS} names with * in all groups`, `${patterns.length}`);
  const wildcards = patterns.reduce((sum, pattern) => sum + pattern.split("*").length - 1, 0);
  if (wildcards > MAX_WILDCARDS) throw StepdError.mismatch("INVALID_PARAMS", "/groups", `at most ${MAX_WILDCARDS} * in all groups`, `${wildcards}`);
};

/** For a tensor's name the index of the first group that matches, or -1. */
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
    const named = exact.get(name) ?? groups.length;
    const found = patterns.find(([group, matches]) => group < named && matches(name))?.[0] ?? named;
    return found < groups.length ? found : -1;
  };
};
