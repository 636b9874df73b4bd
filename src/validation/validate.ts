/** Checks values against schemas/, and says of what does not pass which field it is, what was expected and what was found. */
import type { ErrorObject, ValidateFunction } from "ajv";
import { Ajv2020 } from "ajv/dist/2020.js";
import { atOnce, type Turns } from "../codec/turns.ts";
import { describe as describeValue, pointerEscape, StepdError } from "../errors/errors.ts";
import { nearest } from "../errors/nearest.ts";
import { schemas } from "../generated/schemas.gen.ts";

const ajv = new Ajv2020({ discriminator: true, strict: true, strictRequired: false, allowUnionTypes: true, verbose: true });
ajv.addKeyword({ keyword: "blob", validate: (_: unknown, value: unknown) => typeof value === "symbol" || typeof value === "string" });
ajv.addVocabulary(["tsType"]);
for (const schema of schemas) ajv.addSchema(schema);
// All at boot, so that the first call is as fast as the next and a wrong schema stops the start.
const checks = new Map(schemas.map(({ $id }) => [$id as string, ajv.getSchema($id)]));

/** Throws INVALID_PARAMS unless the value passes the schema. `prefix` is the JSON pointer of the value. */
export const validate = (schema: string, value: unknown, prefix = ""): void => atOnce(validateInTurns(schema, value, prefix));

/** Values of lists that are checked between two yields. */
const SHARE_ITEMS = 16384;

/** Fields of an object. A map of tensors may have more: so many of its members are checked between two yields. */
const MAX_FIELDS = 1024;

/** Fields of all objects that are checked at once. */
const MAX_ALL_FIELDS = 2 ** 17;

/** The fields of calls that may be maps of tensors. */
const MAPS: readonly unknown[] = ["params", "grads", "tensors"];

/** Where a part of a value is: the keys that lead to it. */
type Path = readonly (string | number)[];

/** A list or a map of which a share has been checked: the rest is to be. */
interface Long {
  readonly path: Path;
  readonly value: readonly unknown[] | Readonly<Record<string, unknown>>;
  /** Of a map. */
  readonly keys: readonly string[];
}

/** As `validate`, a share of each long list and map at a time: in the schemas, their members say nothing of each other. */
export function* validateInTurns(schema: string, value: unknown, prefix = ""): Turns<void> {
  const check = checks.get(schema);
  if (!check) throw new Error(`there is no schema ${schema}`);
  const keys = new Map<object, readonly string[]>();
  if (isObject(value)) {
    const fields = Object.keys(value);
    if (fields.length > MAX_FIELDS) throw tooMany(prefix, MAX_FIELDS, fields.length);
    for (const field of fields) {
      const member = (value as Readonly<Record<string, unknown>>)[field];
      if (!MAPS.includes(field) || !isObject(member)) continue;
      const names = keysOf(member);
      keys.set(member, names);
      if (names.length > MAX_FIELDS) yield;
    }
  }
  const { copy, long } = firstShares(value, [], prefix, 0, keys);
  if (!check(copy)) throw explain(wholeErrors(check.errors ?? [], long, [], 0), prefix);
  yield* checkRest(check, copy, long, prefix);
}

/** Checks what first shares have left, a share at a time. `whole` is the value with the first shares. */
function* checkRest(check: ValidateFunction, whole: unknown, rest: readonly Long[], prefix: string): Turns<void> {
  for (const { path, value, keys } of rest) {
    const isList = Array.isArray(value);
    const count = isList ? value.length : keys.length;
    const endOf = (at: number): number => (isList ? at + SHARE_ITEMS : shareEnd(value as Readonly<Record<string, unknown>>, keys, at));
    for (let at = endOf(0), end = at; at < count; at = end) {
      yield;
      end = endOf(at);
      const share = isList
        ? value.slice(at, end)
        : Object.fromEntries(keys.slice(at, end).map((key) => [key, (value as Readonly<Record<string, unknown>>)[key]]));
      const start = isList ? at : 0;
      const { copy, long } = firstShares(share, path, prefix, start);
      const around = alone(whole, path, copy);
      if (!check(around)) throw explain(wholeErrors(check.errors ?? [], long, path, start), prefix);
      yield* checkRest(check, around, long, prefix);
    }
  }
}

const isObject = (value: unknown): value is object => typeof value === "object" && value !== null && !Array.isArray(value) && !(value instanceof Uint8Array);

/** The keys of a map. Members that are no objects come first: a schema tells by them what the map is. */
const keysOf = (map: object): readonly string[] => {
  const keys = Object.keys(map);
  const isMember = (key: string): boolean => isObject((map as Readonly<Record<string, unknown>>)[key]);
  return keys.every(isMember) ? keys : [...keys.filter((key) => !isMember(key)), ...keys.filter(isMember)];
};

/** Where the share of a map ends that starts at an index of its keys. */
const shareEnd = (map: Readonly<Record<string, unknown>>, keys: readonly string[], start: number): number => {
  const most = Math.min(start + MAX_FIELDS, keys.length);
  let items = 0;
  let end = start;
  for (; end < most; end++) {
    const member = map[keys[end] as string];
    // A blob may be here, whose bytes are no members.
    if (isObject(member)) for (const key in member) items += lengthOf((member as Readonly<Record<string, unknown>>)[key]);
    if (items > SHARE_ITEMS && end > start) break;
  }
  return end;
};

const lengthOf = (value: unknown): number => (Array.isArray(value) ? value.length : 0);

const tooMany = (field: string, most: number, found: number): StepdError =>
  StepdError.mismatch("INVALID_PARAMS", field, `at most ${most} fields`, String(found));

/** A part in what is around it, without what is long there and checked by itself. Of a list, the part's item is the only one. */
const alone = (whole: unknown, [field, ...path]: Path, part: unknown): unknown => {
  if (field === undefined) return part;
  const around = Object.fromEntries(Object.entries(whole as object).map(([name, value]) => [name, shortened(name, value)]));
  const member = (whole as Readonly<Record<string, unknown>>)[field];
  // Of a map of tensors, one is enough.
  const [name, ...inner] = MAPS.includes(field) ? path : [];
  around[field] = name === undefined ? placed(member, path, part) : { [name]: placed((member as Readonly<Record<string, unknown>>)[name], inner, part) };
  return around;
};

const shortened = (field: string, value: unknown): unknown => {
  if (Array.isArray(value)) return [];
  return MAPS.includes(field) && isObject(value) ? {} : value;
};

/** A value with another part in a place. */
const placed = (whole: unknown, [key, ...path]: Path, part: unknown): unknown => {
  if (key === undefined) return part;
  const inner = placed((whole as Readonly<Record<string | number, unknown>> | undefined)?.[key], path, part);
  return typeof key === "number" ? [inner] : { ...(whole as object), [key]: inner };
};

/**
 * A value with the first shares of what is long in it, the rest of which is in `long`, and with symbols for its blobs. To a schema
 * bytes would be an object with a property for each byte, and to look at these takes a hundred times the memory of the bytes.
 * A list starts at an index of its whole. Of some maps the keys are known already.
 */
const firstShares = (
  value: unknown,
  path: Path,
  prefix: string,
  start: number,
  known: ReadonlyMap<object, readonly string[]> = new Map(),
): { readonly copy: unknown; readonly long: readonly Long[] } => {
  const long: Long[] = [];
  let fields = 0;
  const visit = (item: unknown, place: Path): unknown => {
    if (typeof item !== "object" || item === null) return item;
    if (item instanceof Uint8Array) return Symbol(describeValue(item));
    if (Array.isArray(item)) {
      if (item.length > SHARE_ITEMS) long.push({ path: place, value: item, keys: [] });
      const share = item.length > SHARE_ITEMS ? item.slice(0, SHARE_ITEMS) : item;
      const first = place === path ? start : 0;
      return share.some((member) => typeof member === "object") ? share.map((member, index) => visit(member, [...place, first + index])) : share;
    }
    const isMap = place.length === 1 && MAPS.includes(place[0]);
    const keys = isMap ? (known.get(item) ?? keysOf(item)) : Object.keys(item);
    if (!isMap && keys.length > MAX_FIELDS) throw tooMany(prefix + pointerOf(place), MAX_FIELDS, keys.length);
    const end = isMap ? shareEnd(item as Record<string, unknown>, keys, 0) : keys.length;
    const isLong = end < keys.length;
    fields += end;
    if (fields > MAX_ALL_FIELDS) throw tooMany(prefix, MAX_ALL_FIELDS, fields);
    if (isLong) long.push({ path: place, value: item as Record<string, unknown>, keys });
    // What holds no blob and is not long is not copied.
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
  return { copy: visit(value, path), long };
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

/** What a schema of some types or of some values asks for. */
const expectedBy = ({ type = [], enum: values }: Alternative): string => {
  if (values) return `one of ${values.join(", ")}`;
  return [type]
    .flat()
    .map((name) => (name === "number" ? "a finite number" : name))
    .join(" or ");
};

/** Errors of a share as errors of the whole value: long lists are found whole, and the share stands at its path, in a list from `start` on. */
const wholeErrors = (errors: readonly ErrorObject[], long: readonly Long[], path: Path, start: number): readonly ErrorObject[] => {
  const place = pointerOf(path.map((key) => (typeof key === "number" ? 0 : key)));
  return errors.map((error) => {
    const inner = error.instancePath.slice(place.length);
    const instancePath = pointerOf(path) + (start === 0 ? inner : moved(inner, start));
    return { ...error, instancePath, data: long.find((one) => pointerOf(one.path) === instancePath)?.value ?? error.data };
  });
};

/** A pointer into a list with its index further on. */
const moved = (pointer: string, start: number): string => {
  const [, index, ...rest] = pointer.split("/");
  return index === undefined ? pointer : ["", Number(index) + start, ...rest].join("/");
};

const explain = (found: readonly ErrorObject[], prefix: string): StepdError => {
  const [first] = found;
  if (!first) throw new Error("a schema was not met, and nothing says why");
  // Of alternatives each has its error; that of the whole follows.
  const whole = found.find(({ keyword, instancePath }) => keyword === "anyOf" && instancePath === first.instancePath);
  if (!whole) return explainOne(first, prefix);
  const alternatives = (whole.schema as readonly Alternative[]).map(
    (one) => expectedBy(one) + (one.minimum === undefined ? "" : ` of at least ${one.minimum}`),
  );
  return StepdError.mismatch("INVALID_PARAMS", prefix + whole.instancePath, alternatives.join(" or "), describe(whole.data));
};

const explainOne = ({ keyword, instancePath, params, data, parentSchema, propertyName }: ErrorObject, prefix: string): StepdError => {
  // Of a member's name the error is the object's.
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
      return invalid(expectedBy(parentSchema as Alternative), describe(data));
    case "const":
      return invalid(String(params["allowedValue"]), describe(data));
    case "not":
    case "pattern":
    case "minProperties":
      return invalid(String((parentSchema as { $comment?: string }).$comment), describe(data));
    case "false schema":
      return invalid("no value", describe(data));
    case "minItems":
    case "maxItems":
      return invalid(`${keyword === "minItems" ? "at least" : "at most"} ${params["limit"]} items`, describe(data));
    case "minLength":
      return invalid(`at least ${params["limit"]} characters`, describe(data));
    case "maxLength":
      return invalid(`a name of at most ${params["limit"]} characters`, typeof data === "string" ? `${data.length} characters` : describe(data));
    case "blob":
      return invalid("a blob: bin in MessagePack, a base64 string in JSON", describe(data));
    default:
      return invalid(String(keyword), describe(data));
  }
};
