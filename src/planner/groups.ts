/** Parameter groups: which hyperparameters each tensor's step has. Pure. */
import type { Hyperparameters, OptimizerDefinition, Values } from "../optimizers/registry.ts";

/** An optimizer as it came, checked: its name and the hyperparameters that were given. */
export type Given = Readonly<Record<string, unknown>> & { readonly name: string };

export interface Group {
  readonly tensors: readonly string[];
  readonly optimizer: Given;
}

/** All hyperparameters of an optimizer, defaults filled in. */
export const withDefaults = ({ hyperparameters }: OptimizerDefinition, given: Given): Values<Hyperparameters> =>
  Object.fromEntries(
    Object.entries(hyperparameters).map(([name, { default: initial }]) => [name, given[name] === undefined ? initial : given[name]]),
  ) as Values<Hyperparameters>;

/** Turns a name with * for any characters into a test of names. */
const matcher = (pattern: string): ((name: string) => boolean) => {
  if (!pattern.includes("*")) return (name) => name === pattern;
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

/** For a tensor's name the index of the first group that matches, or -1. */
export const groupFinder = (groups: readonly Group[]): ((name: string) => number) => {
  const matchers = groups.map(({ tensors }) => tensors.map(matcher));
  return (name) => matchers.findIndex((group) => group.some((matches) => matches(name)));
};
