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

/** Items of a list that are checked between two yields. */
const SHARE_ITEMS = 16384;

/** Fields of an object. A map of tensors may have more: so many of its members are checked between two yields. */
const MAX_FIELDS = 1024;

/** Fields of all objects that are checked at once. */
const MAX_ALL_FIELDS = 2 ** 17;

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
  yield* checkPart(check, undefined, [], value, prefix, 0);
}

/** Checks a part of a value in what is around it: `whole` is the value with the first shares. Of a list, the part starts at an index. */
function* checkPart(check: ValidateFunction, whole: unknown, path: Path, part: unknown, prefix: string, start: number): Turns<void> {
  const long: Long[] = [];
  const keys = new Map<object, readonly string[]>();
  if (path.length === 0 && isObject(part)) {
    const fields = Object.keys(part);
    keys.set(part, fields);
    if (fields.length > MAX_FIELDS) throw tooMany(prefix, MAX_FIELDS, fields.length);
    for (const field of fields) {
      const member = (part as Readonly<Record<string, unknown>>)[field];
      if (!isObject(member)) continue;
      keys.set(member, Object.keys(member));
      if ((keys.get(member)?.length ?? 0) > MAX_FIELDS) yield;
    }
  }
  const around = placed(whole, path, firstShares(part, path, keys, long, prefix));
  if (!check(around)) throw explain(wholeErrors(check.errors ?? [], long, pointerOf(path), start), prefix);
  for (const { path: place, value, keys } of long) {
    const isList = Array.isArray(value);
    const step = isList ? SHARE_ITEMS : MAX_FIELDS;
    for (let at = step; at < (isList ? value.length : keys.length); at += step) {
      yield;
      const share = isList
        ? value.slice(at, at + step)
        : Object.fromEntries(keys.slice(at, at + step).map((key) => [key, (value as Readonly<Record<string, unknown>>)[key]]));
      yield* checkPart(check, around, place, share, prefix, isList ? at : 0);
    }
  }
}

const isObject = (value: unknown): value is object => typeof value === "object" && value !== null && !Array.isArray(value) && !(value instanceof Uint8Array);

const tooMany = (field: string, most: number, found: number): StepdError =>
  StepdError.mismatch("INVALID_PARAMS", field, `at most ${most} fields`, String(found));

/** A value with another part in a place. */
const placed = (whole: unknown, [key, ...path]: Path, part: unknown): unknown => {
  if (key === undefined) return part;
  const copy = (Array.isArray(whole) ? [...whole] : { ...(whole as object) }) as Record<string | number, unknown>;
  copy[key] = placed(copy[key], path, part);
  return copy;
};

/**
 * A value with the first shares of what is long in it, which `long` gets, and with symbols for its blobs. To a schema bytes would be
 * an object with a property for each byte, and to look at these takes a hundred times the memory of the bytes. Of some objects the
 * keys are known already.
 */
const firstShares = (value: unknown, path: Path, known: ReadonlyMap<object, readonly string[]>, long: Long[], prefix: string): unknown => {
  let fields = 0;
  const visit = (item: unknown, place: Path): unknown => {
    if (typeof item !== "object" || item === null) return item;
    if (item instanceof Uint8Array) return Symbol(describeValue(item));
    if (Array.isArray(item)) {
      if (item.length > SHARE_ITEMS) long.push({ path: place, value: item, keys: [] });
      const share = item.length > SHARE_ITEMS ? item.slice(0, SHARE_ITEMS) : item;
      return share.some((member) => typeof member === "object") ? share.map((member, index) => visit(member, [...place, index])) : share;
    }
    const keys = known.get(item) ?? Object.keys(item);
    const isLong = keys.length > MAX_FIELDS;
    // Maps of tensors are fields of the call itself.
    if (isLong && place.length !== 1) throw tooMany(prefix + pointerOf(place), MAX_FIELDS, keys.length);
    fields += Math.min(keys.length, MAX_FIELDS);
    if (fields > MAX_ALL_FIELDS) throw tooMany(prefix, MAX_ALL_FIELDS, fields);
    if (isLong) long.push({ path: place, value: item as Record<string, unknown>, keys });
    // What holds no blob and is not long is not copied.
    let copy: Record<string, unknown> | undefined = isLong ? {} : undefined;
    for (const key of isLong ? keys.slice(0, MAX_FIELDS) : keys) {
      const member = (item as Record<string, unknown>)[key];
      const visited = typeof member === "object" ? visit(member, [...place, key]) : member;
      if (!copy && visited === member) continue;
      copy ??= { ...item };
      copy[key] = visited;
    }
    return copy ?? item;
  };
  return visit(value, path);
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

/** Errors of shares as errors of the whole value: long lists are found whole, and indexes into `list` count from `start`. */
const wholeErrors = (errors: readonly ErrorObject[], long: readonly Long[], list: string, start: number): readonly ErrorObject[] =>
  errors.map((error) => ({
    ...error,
    data: long.find(({ path }) => pointerOf(path) === error.instancePath)?.value ?? error.data,
    instancePath: start === 0 ? error.instancePath : moved(error.instancePath, list, start),
  }));

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

/** A pointer into a list with its index further on. */
const moved = (pointer: string, list: string, start: number): string => {
  if (!pointer.startsWith(`${list}/`)) return pointer;
  const [index = "", ...rest] = pointer.slice(list.length + 1).split("/");
  return [list, Number(index) + start, ...rest].join("/");
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
