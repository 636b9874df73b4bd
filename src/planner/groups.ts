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

/** Turns a name with * for any characters into a test of names. */
const matcher = (pattern: string): ((name: string) => boolean) => {
  const [head = "", ...tail] = pattern.split("*");
  const last = tail.pop() ?? "";
  return (name) => {
    if (!name.startsWith(head)) return false;
    let at = head.length;
    for (const piece of tail) {
      const found = name.indexOf(piece, at);
      if (found < 0) return false;
      at = found + piece.length;
    }
    return name.length - at >= last.length && name.endsWith(last);
  };
};

/** Each tensor is held against each pattern, so there is a limit; names without * are looked up, however many. */
const MAX_PATTERNS = 256;

const isPattern = (name: string): boolean => name.includes("*");

/** Throws INVALID_PARAMS for groups with more patterns than a call may have. */
export const requireFewPatterns = (groups: readonly { readonly tensors: readonly string[] }[]): void => {
  const patterns = groups.reduce((sum, { tensors }) => sum + tensors.filter(isPattern).length, 0);
  if (patterns > MAX_PATTERNS) throw StepdError.mismatch("INVALID_PARAMS", "/groups", `at most ${MAX_PATTERNS} names with * in all groups`, `${patterns}`);
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
