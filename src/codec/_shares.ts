/** Splits large values into shares. Each share is encoded in one turn of the event loop. */
import { Members } from "./members.ts";
import { Parts } from "./parts.ts";

/** The most values of one share. */
const SHARE_VALUES = 2048;

/** Counts the values nested in a value, up to `limit`. Returns a number above `limit` if there are more. */
const countValues = (value: unknown, limit: number): number => {
  if (typeof value !== "object" || value === null || value instanceof Parts || value instanceof Uint8Array) return 1;
  if (value instanceof Members) return limit + 1;
  let sum = 1;
  if (Array.isArray(value)) {
    for (let at = 0; at < value.length && sum <= limit; at++) sum += countValues(value[at], limit - sum);
    return sum;
  }
  // Iterates instead of listing all keys, of which there may be very many.
  for (const key in value) {
    sum += countValues((value as Record<string, unknown>)[key], limit - sum);
    if (sum > limit) break;
  }
  return sum;
};

/** True if a value must be encoded in shares. */
export const isLarge = (value: unknown): value is object => countValues(value, SHARE_VALUES) > SHARE_VALUES;

/** Some members of an object or an array: several small ones, or a single large one with its key. */
export type Share = { readonly small: object } | { readonly large: object; readonly key: string | undefined };

/** The items of an array as members without keys. Object.entries would create a string for each index. */
function* unnamed(items: readonly unknown[]): Generator<[string, unknown]> {
  for (const item of items) yield ["", item];
}

/** Splits an object or an array into shares, in order. Omits undefined members of objects, as JSON does. */
export function* sharesOf(value: object): Generator<Share> {
  const isArray = Array.isArray(value);
  let members: [string, unknown][] = [];
  let values = 0;
  const flush = (): Share => {
    const small = isArray ? members.map(([, item]) => item) : Object.fromEntries(members);
    members = [];
    values = 0;
    return { small };
  };
  for (const [key, item] of value instanceof Members ? value : isArray ? unnamed(value) : Object.entries(value)) {
    if (item === undefined && !isArray) continue;
    const count = countValues(item, SHARE_VALUES);
    if (members.length > 0 && values + count > SHARE_VALUES) yield flush();
    if (count > SHARE_VALUES) yield { large: item as object, key: isArray ? undefined : key };
    else {
      members.push([key, item]);
      values += count;
    }
  }
  if (members.length > 0) yield flush();
}
