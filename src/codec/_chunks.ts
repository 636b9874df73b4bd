/** Splits a large value into chunks, so that each chunk is encoded in one turn of the event loop. */
import { Members } from "./members.ts";
import { Parts } from "./parts.ts";

const MAX_CHUNK_VALUES = 2048;

/** Counts a value and all values nested in it. The count stops soon after it exceeds `limit`. */
const countValues = (value: unknown, limit: number): number => {
  if (typeof value !== "object" || value === null || value instanceof Parts || value instanceof Uint8Array) return 1;
  if (value instanceof Members) return limit + 1;
  let sum = 1;
  if (Array.isArray(value)) {
    for (let at = 0; at < value.length && sum <= limit; at++) sum += countValues(value[at], limit - sum);
    return sum;
  }
  // An object may have very many keys, so this loop does not list them.
  for (const key in value) {
    sum += countValues((value as Record<string, unknown>)[key], limit - sum);
    if (sum > limit) break;
  }
  return sum;
};

/** True if a value is too large to encode in one turn. */
export const isLarge = (value: unknown): value is object => countValues(value, MAX_CHUNK_VALUES) > MAX_CHUNK_VALUES;

/** A chunk is a container of several small members, or one large member. `key` is undefined for an array's item. */
export type Chunk = { readonly small: object } | { readonly large: object; readonly key: string | undefined };

/** Pairs array items with an empty key. Object.entries would create a string for each index. */
function* withEmptyKeys(items: readonly unknown[]): Generator<[string, unknown]> {
  for (const item of items) yield ["", item];
}

/** Splits an object or an array into chunks, in order. Undefined members of objects are omitted, as in JSON. */
export function* splitIntoChunks(value: object): Generator<Chunk> {
  const isArray = Array.isArray(value);
  let members: [string, unknown][] = [];
  let values = 0;
  const flush = (): Chunk => {
    const small = isArray ? members.map(([, item]) => item) : Object.fromEntries(members);
    members = [];
    values = 0;
    return { small };
  };
  for (const [key, item] of value instanceof Members ? value : isArray ? withEmptyKeys(value) : Object.entries(value)) {
    if (item === undefined && !isArray) continue;
    const count = countValues(item, MAX_CHUNK_VALUES);
    if (members.length > 0 && values + count > MAX_CHUNK_VALUES) yield flush();
    if (count > MAX_CHUNK_VALUES) yield { large: item as object, key: isArray ? undefined : key };
    else {
      members.push([key, item]);
      values += count;
    }
  }
  if (members.length > 0) yield flush();
}
