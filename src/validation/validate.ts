/** Checks values against schemas/, and says of what does not pass which field it is, what was expected and what was found. */
import type { ErrorObject } from "ajv";
import { Ajv2020 } from "ajv/dist/2020.js";
import type { Turns } from "../codec/turns.ts";
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
export const validate = (schema: string, value: unknown, prefix = ""): void => {
  const check = checks.get(schema);
  if (!check) throw new Error(`there is no schema ${schema}`);
  if (check(withoutBlobs(value))) return;
  throw explain(check.errors ?? [], prefix);
};

/** Members of a map of tensors that are checked between two yields. */
const SHARE_MEMBERS = 1024;

/**
 * As `validate`, a share of each long map at a time: in the schemas, members of a map of tensors say nothing of each other.
 * Only the map's own name and its first share are in the value that the rest is checked with.
 */
export function* validateInTurns(schema: string, value: unknown): Turns<void> {
  const long = isObject(value) ? Object.entries(value).filter(([, member]) => isObject(member) && Object.keys(member).length > SHARE_MEMBERS) : [];
  if (long.length === 0) return validate(schema, value);
  const shares = new Map(long.map(([key, member]) => [key, sharesOf(member as object)] as const));
  const first = { ...(value as object), ...Object.fromEntries([...shares].map(([key, share]) => [key, share.next().value])) };
  validate(schema, first);
  for (const [key, rest] of shares) {
    for (const share of rest) {
      yield;
      validate(schema, { ...first, [key]: share });
    }
  }
}

const isObject = (value: unknown): value is object => typeof value === "object" && value !== null && !Array.isArray(value) && !(value instanceof Uint8Array);

function* sharesOf(map: object): Generator<object> {
  const keys = Object.keys(map);
  for (let at = 0; at < keys.length; at += SHARE_MEMBERS) {
    const share: Record<string, unknown> = {};
    for (const key of keys.slice(at, at + SHARE_MEMBERS)) share[key] = (map as Record<string, unknown>)[key];
    yield share;
  }
}

/**
 * A value with symbols for its blobs. To a schema bytes would be an object with a property for each byte, and to look at
 * these takes a hundred times the memory of the bytes.
 */
const withoutBlobs = (value: unknown): unknown => {
  if (typeof value !== "object" || value === null) return value;
  if (value instanceof Uint8Array) return Symbol(describeValue(value));
  if (Array.isArray(value)) return value.some((item) => typeof item === "object") ? value.map(withoutBlobs) : value;
  // What holds no blob is not copied.
  let copy: Record<string, unknown> | undefined;
  for (const key of Object.keys(value)) {
    const item = (value as Record<string, unknown>)[key];
    const plain = withoutBlobs(item);
    if (plain === item) continue;
    copy ??= { ...value };
    copy[key] = plain;
  }
  return copy ?? value;
};

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

const explainOne = ({ keyword, instancePath, params, data, parentSchema }: ErrorObject, prefix: string): StepdError => {
  const field = prefix + instancePath;
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
    case "blob":
      return invalid("a blob: bin in MessagePack, a base64 string in JSON", describe(data));
    default:
      return invalid(String(keyword), describe(data));
  }
};
