/** Validates values against schemas/. Errors name the field, the expected and the found value. */
import type { ErrorObject, ValidateFunction } from "ajv";
import { Ajv2020 } from "ajv/dist/2020.js";
import { atOnce, type Task } from "../codec/turns.ts";
import { countCharacters } from "../errors/characters.ts";
import { describe as describeValue, pointerEscape, StepdError } from "../errors/errors.ts";
import { nearest } from "../errors/nearest.ts";
import { schemas } from "../generated/schemas.gen.ts";

// The last two options halve the time to compile the schemas, which is most of the time to start (measured).
const ajv = new Ajv2020({
  discriminator: true,
  strict: true,
  strictRequired: false,
  allowUnionTypes: true,
  verbose: true,
  inlineRefs: false,
  code: { optimize: false },
});
ajv.addKeyword({ keyword: "blob", validate: (_: unknown, value: unknown) => typeof value === "symbol" || typeof value === "string" });
ajv.addVocabulary(["tsType"]);
// ajv's own keywords count every character of a text, which blocked the main thread for 1.6 s at 250 MB of names (measured).
for (const [keyword, isMet] of [
  ["minLength", (least: number, text: string) => text.length >= 2 * least || countCharacters(text) >= least],
  ["maxLength", (most: number, text: string) => text.length <= most || countCharacters(text) <= most],
] as const) {
  ajv.removeKeyword(keyword);
  ajv.addKeyword({ keyword, type: "string", schemaType: "number", validate: isMet });
}
for (const schema of schemas) ajv.addSchema(schema);
// All schemas are compiled at the start, so that the first call is fast and an invalid schema prevents the start.
const validators = new Map(schemas.map(({ $id }) => [$id as string, ajv.getSchema($id)]));

/** Throws INVALID_PARAMS unless the schema accepts the value. `prefix` is the JSON pointer of the value. */
export const validate = (schema: string, value: unknown, prefix = ""): void => atOnce(validateInTurns(schema, value, prefix));

/** A long list is checked in chunks of this many items, with a yield after each. */
const MAX_CHUNK_ITEMS = 16384;

/** An object has at most this many fields. A map of tensors may have more, and is checked in chunks of this many tensors. */
const MAX_FIELDS = 1024;

/** All objects of a value together have at most this many fields, and all lists outside tensors at most this many items. */
const MAX_ALL_FIELDS = 2 ** 17;
const ALL_FIELDS = "fields and items of lists beside tensors";

/** These fields of a call may be maps of tensors. */
const MAP_FIELDS: readonly unknown[] = ["params", "grads", "tensors"];

/** The keys and indexes that lead to a part of a value. */
type Path = readonly (string | number)[];

/** A list or map that is too long for one turn. Its first chunk is checked with the rest of the value, its other chunks afterwards. */
interface LongPart {
  readonly path: Path;
  readonly value: readonly unknown[] | Readonly<Record<string, unknown>>;
  /** The keys of a map; empty for a list. */
  readonly keys: readonly string[];
}

/** Validates as `validate` does, but in chunks. That is possible because no schema relates the members of a list or map to each other. */
export function* validateInTurns(schema: string, value: unknown, prefix = ""): Task<void> {
  const check = validators.get(schema);
  if (!check) throw new Error(`there is no schema ${schema}`);
  const keys = new Map<object, readonly string[]>();
  if (isObject(value)) {
    const fields = Object.keys(value);
    if (fields.length > MAX_FIELDS) throw tooManyError(prefix, MAX_FIELDS, fields.length);
    for (const field of fields) {
      const member = (value as Readonly<Record<string, unknown>>)[field];
      if (!MAP_FIELDS.includes(field) || !isObject(member)) continue;
      const names = keysOf(member);
      keys.set(member, names);
      if (names.length > MAX_FIELDS) yield;
    }
  }
  const { copy, long, items } = withFirstChunks(value, [], prefix, 0, keys);
  if (!check(copy)) throw explain(wholeErrors(check.errors ?? [], long, [], 0), prefix);
  // The check comes first, so that a list with its own limit gets the error of that limit.
  if (items > MAX_ALL_FIELDS) throw tooManyError(prefix, MAX_ALL_FIELDS, items, ALL_FIELDS);
  yield* checkOtherChunks(check, copy, long, prefix);
}

/** Checks the other chunks of long lists and maps, one at a time. `whole` is the value with first chunks only. */
function* checkOtherChunks(check: ValidateFunction, whole: unknown, longParts: readonly LongPart[], prefix: string): Task<void> {
  for (const { path, value, keys } of longParts) {
    const isList = Array.isArray(value);
    const count = isList ? value.length : keys.length;
    const endOf = (at: number): number => (isList ? at + MAX_CHUNK_ITEMS : chunkEnd(value as Readonly<Record<string, unknown>>, keys, at));
    for (let at = endOf(0), end = at; at < count; at = end) {
      yield;
      end = endOf(at);
      const chunk = isList
        ? value.slice(at, end)
        : Object.fromEntries(keys.slice(at, end).map((key) => [key, (value as Readonly<Record<string, unknown>>)[key]]));
      const start = isList ? at : 0;
      const { copy, long } = withFirstChunks(chunk, path, prefix, start);
      const candidate = withOnlyPart(whole, path, copy);
      if (!check(candidate)) throw explain(wholeErrors(check.errors ?? [], long, path, start), prefix);
      yield* checkOtherChunks(check, candidate, long, prefix);
    }
  }
}

const isObject = (value: unknown): value is object => typeof value === "object" && value !== null && !Array.isArray(value) && !(value instanceof Uint8Array);

/** Lists the keys of a map. Members that are not objects come first, because schemas distinguish kinds of maps by these members. */
const keysOf = (map: object): readonly string[] => {
  const keys = Object.keys(map);
  const isMember = (key: string): boolean => isObject((map as Readonly<Record<string, unknown>>)[key]);
  return keys.every(isMember) ? keys : [...keys.filter((key) => !isMember(key)), ...keys.filter(isMember)];
};

/** Returns the index of the key after the chunk that starts at key index `start`. */
const chunkEnd = (map: Readonly<Record<string, unknown>>, keys: readonly string[], start: number): number => {
  const maxEnd = Math.min(start + MAX_FIELDS, keys.length);
  let items = 0;
  let end = start;
  for (; end < maxEnd; end++) {
    const member = map[keys[end] as string];
    // isObject excludes blobs, whose bytes are not members.
    if (isObject(member)) for (const key in member) items += lengthOf((member as Readonly<Record<string, unknown>>)[key]);
    if (items > MAX_CHUNK_ITEMS && end > start) break;
  }
  return end;
};

const lengthOf = (value: unknown): number => (Array.isArray(value) ? value.length : 0);

const tooManyError = (field: string, most: number, found: number, what = "fields"): StepdError =>
  StepdError.mismatch("INVALID_PARAMS", field, `at most ${most} ${what}`, String(found));

/** Copies a value with a new part at a path. All other lists and maps are emptied, because they are checked separately. */
const withOnlyPart = (whole: unknown, [field, ...path]: Path, part: unknown): unknown => {
  if (field === undefined) return part;
  const result = Object.fromEntries(Object.entries(whole as object).map(([name, value]) => [name, withoutMembers(name, value)]));
  const member = (whole as Readonly<Record<string, unknown>>)[field];
  // In a map of tensors, only the tensor that contains the part is kept.
  const [name, ...inner] = MAP_FIELDS.includes(field) ? path : [];
  result[field] = name === undefined ? withPart(member, path, part) : { [name]: withPart((member as Readonly<Record<string, unknown>>)[name], inner, part) };
  return result;
};

const withoutMembers = (field: string, value: unknown): unknown => {
  if (Array.isArray(value)) return [];
  return MAP_FIELDS.includes(field) && isObject(value) ? {} : value;
};

/** Copies a value with another part at a path. A list on the path keeps only that item. */
const withPart = (whole: unknown, [key, ...path]: Path, part: unknown): unknown => {
  if (key === undefined) return part;
  const inner = withPart((whole as Readonly<Record<string | number, unknown>> | undefined)?.[key], path, part);
  return typeof key === "number" ? [inner] : { ...(whole as object), [key]: inner };
};

/**
 * Copies a value with only the first chunk of each long list or map. `long` returns these lists and maps. Blobs become symbols, because
 * ajv would treat them as objects with a property per byte, at a hundred times their memory. `start` is the index of a list's first
 * item in its whole list. `known` contains the keys of some maps.
 */
const withFirstChunks = (
  value: unknown,
  path: Path,
  prefix: string,
  start: number,
  known: ReadonlyMap<object, readonly string[]> = new Map(),
): { readonly copy: unknown; readonly long: readonly LongPart[]; readonly items: number } => {
  const long: LongPart[] = [];
  let fields = 0;
  let items = 0;
  const visit = (item: unknown, place: Path): unknown => {
    if (typeof item !== "object" || item === null) return item;
    if (item instanceof Uint8Array) return Symbol(describeValue(item));
    if (Array.isArray(item)) {
      if (!MAP_FIELDS.includes(place[0])) {
        items += item.length;
        fields += Math.min(item.length, MAX_CHUNK_ITEMS);
        if (fields > MAX_ALL_FIELDS) throw tooManyError(prefix, MAX_ALL_FIELDS, fields, ALL_FIELDS);
      }
      if (item.length > MAX_CHUNK_ITEMS) long.push({ path: place, value: item, keys: [] });
      const chunk = item.length > MAX_CHUNK_ITEMS ? item.slice(0, MAX_CHUNK_ITEMS) : item;
      const first = place === path ? start : 0;
      return chunk.some((member) => typeof member === "object") ? chunk.map((member, index) => visit(member, [...place, first + index])) : chunk;
    }
    const isMap = place.length === 1 && MAP_FIELDS.includes(place[0]);
    const keys = isMap ? (known.get(item) ?? keysOf(item)) : Object.keys(item);
    if (!isMap && keys.length > MAX_FIELDS) throw tooManyError(prefix + pointerOf(place), MAX_FIELDS, keys.length);
    const end = isMap ? chunkEnd(item as Record<string, unknown>, keys, 0) : keys.length;
    const isLong = end < keys.length;
    fields += end;
    if (fields > MAX_ALL_FIELDS) throw tooManyError(prefix, MAX_ALL_FIELDS, fields, ALL_FIELDS);
    if (isLong) long.push({ path: place, value: item as Record<string, unknown>, keys });
    // An object is copied only if it is long or contains a blob.
    let copy: Record<string, unknown> | undefined = isLong ? {} : undefined;
    for (const key of isLong ? keys.slice(0, end) : keys) {
      const member = (item as Record<string, unknown>)[key];
      const visited = typeof member === "object" ? visit(member, [...place, key]) : member;
      if (!copy && visited === member) continue;
      copy ??= { ...item };
      copy[key] = visited;
    }
    return copy ?? item;
  };
  return { copy: visit(value, path), long, items };
};

const pointerOf = (path: Path): string => path.map((key) => `/${pointerEscape(String(key))}`).join("");

const describe = (value: unknown): string => (typeof value === "symbol" ? (value.description as string) : describeValue(value));

const COMPARISONS: Readonly<Record<string, string>> = {
  minimum: "at least",
  maximum: "at most",
  exclusiveMinimum: "more than",
  exclusiveMaximum: "less than",
};

type Alternative = { readonly type?: string | readonly string[]; readonly enum?: readonly unknown[]; readonly minimum?: number };

/** Describes the values that a schema accepts, from its types or its enum. */
const describeExpected = ({ type = [], enum: values }: Alternative): string => {
  if (values) return `one of ${values.join(", ")}`;
  return [type]
    .flat()
    .map((name) => (name === "number" ? "a finite number" : name))
    .join(" or ");
};

/** Converts errors of a chunk to errors of the whole value: adds `path` and `start` to the pointers, and uses whole lists as data. */
const wholeErrors = (errors: readonly ErrorObject[], long: readonly LongPart[], path: Path, start: number): readonly ErrorObject[] => {
  const place = pointerOf(path.map((key) => (typeof key === "number" ? 0 : key)));
  return errors.map((error) => {
    const inner = error.instancePath.slice(place.length);
    const instancePath = pointerOf(path) + (start === 0 ? inner : withIndexOffset(inner, start));
    return { ...error, instancePath, data: long.find((one) => pointerOf(one.path) === instancePath)?.value ?? error.data };
  });
};

/** Adds `start` to the index of a pointer into a list. */
const withIndexOffset = (pointer: string, start: number): string => {
  const [, index, ...rest] = pointer.split("/");
  return index === undefined ? pointer : ["", Number(index) + start, ...rest].join("/");
};

const explain = (found: readonly ErrorObject[], prefix: string): StepdError => {
  const [first] = found;
  if (!first) throw new Error("a schema was not met, and nothing says why");
  // ajv reports one error for each alternative and then one for the whole anyOf.
  const whole = found.find(({ keyword, instancePath }) => keyword === "anyOf" && instancePath === first.instancePath);
  if (!whole) return explainOne(first, prefix);
  const alternatives = (whole.schema as readonly Alternative[]).map(
    (one) => describeExpected(one) + (one.minimum === undefined ? "" : ` of at least ${one.minimum}`),
  );
  return StepdError.mismatch("INVALID_PARAMS", prefix + whole.instancePath, alternatives.join(" or "), describe(whole.data));
};

const explainOne = ({ keyword, instancePath, params, data, schema, parentSchema, propertyName }: ErrorObject, prefix: string): StepdError => {
  // ajv reports only the object's path for an invalid property name, so the name is appended.
  const field = prefix + instancePath + (propertyName === undefined ? "" : `/${pointerEscape(propertyName)}`);
  const invalid = (expected: string, found: string, at = field): StepdError => StepdError.mismatch("INVALID_PARAMS", at, expected, found);
  const comparison = COMPARISONS[keyword];
  if (comparison) return invalid(`${comparison} ${params["limit"]}`, describe(data));
  switch (keyword) {
    case "additionalProperties": {
      const name = String(params["additionalProperty"]);
      const known = Object.keys((parentSchema as { properties?: object }).properties ?? {});
      const near = nearest(name, known);
      const hint = near === undefined ? `one of ${known.join(", ")}` : `the nearest is ${near}`;
      return invalid(known.length > 0 ? `a known field (${hint})` : "no fields", describe(name), `${field}/${pointerEscape(name)}`);
    }
    case "required":
      return invalid("a value", "none", `${field}/${params["missingProperty"]}`);
    case "discriminator": {
      const names = ((parentSchema as { oneOf?: { properties: { name: { const: string } } }[] }).oneOf ?? []).map(({ properties }) => properties.name.const);
      const name: unknown = params["tagValue"];
      const near = typeof name === "string" ? nearest(name, names) : undefined;
      return invalid(
        `one of ${names.join(", ")}${near === undefined ? "" : ` (the nearest is ${near})`}`,
        name === undefined ? "none" : describe(name),
        `${field}/name`,
      );
    }
    case "type":
    case "enum":
      return invalid(describeExpected(parentSchema as Alternative), describe(data));
    case "const":
      return invalid(String(params["allowedValue"]), describe(data));
    case "not":
    case "pattern":
    case "minProperties":
      return invalid(String((parentSchema as { $comment?: string }).$comment), describe(data));
    case "false schema":
      return invalid("no value", describe(data));
    case "multipleOf":
      return invalid(`a multiple of ${schema}`, describe(data));
    case "minItems":
    case "maxItems":
      return invalid(`${keyword === "minItems" ? "at least" : "at most"} ${params["limit"]} items`, describe(data));
    case "minLength":
      return invalid(`at least ${schema} characters`, describe(data));
    case "maxLength":
      return invalid(`a name of at most ${schema} characters`, `${countCharacters(data as string)} characters`);
    case "blob":
      return invalid("a blob: bin in MessagePack, a base64 string in JSON", describe(data));
    default:
      return invalid(String(keyword), describe(data));
  }
};
