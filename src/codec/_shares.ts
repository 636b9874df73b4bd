/** Values of many members, in shares that are each encoded between two turns of the event loop. */
import { Members } from "./members.ts";
import { Parts } from "./parts.ts";

/** Values that are encoded at once. */
const SHARE_VALUES = 2048;

/** The values in a value, or a number over `most` where there are more. */
const weigh = (value: unknown, most: number): number => {
  if (typeof value !== "object" || value === null || value instanceof Parts || value instanceof Uint8Array) return 1;
  if (value instanceof Members) return most + 1;
  let sum = 1;
  if (Array.isArray(value)) {
    for (let at = 0; at < value.length && sum <= most; at++) sum += weigh(value[at], most - sum);
    return sum;
  }
  // No list of all keys or values: there may be many.
  for (const key in value) {
    sum += weigh((value as Record<string, unknown>)[key], most - sum);
    if (sum > most) break;
  }
  return sum;
};

/** Whether a value is encoded in shares. */
export const isLarge = (value: unknown): value is object => weigh(value, SHARE_VALUES) > SHARE_VALUES;

/** Members of an object or an array: several small ones, or one that is large itself, with its key in an object. */
export type Share = { readonly small: object } | { readonly large: object; readonly key: string | undefined };

/** Items of an array as members; to ask for its keys would make a string of each index. */
function* unnamed(items: readonly unknown[]): Generator<[string, unknown]> {
  for (const item of items) yield ["", item];
}

/** All members of an object or an array, in order. Members without a value are left out of an object, as JSON does. */
export function* sharesOf(value: object): Generator<Share> {
  const isArray = Array.isArray(value);
  let members: [string, unknown][] = [];
  let weight = 0;
  const flush = (): Share => {
    const small = isArray ? members.map(([, item]) => item) : Object.fromEntries(members);
    members = [];
    weight = 0;
    return { small };
  };
  for (const [key, item] of value instanceof Members ? value : isArray ? unnamed(value) : Object.entries(value)) {
    if (item === undefined && !isArray) continue;
    const own = weigh(item, SHARE_VALUES);
    if (members.length > 0 && weight + own > SHARE_VALUES) yield flush();
    if (own > SHARE_VALUES) yield { large: item as object, key: isArray ? undefined : key };
    else {
      members.push([key, item]);
      weight += own;
    }
  }
  if (members.length > 0) yield flush();
}
