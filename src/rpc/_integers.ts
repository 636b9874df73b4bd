/**
 * Converts large integers in results to bigint, guided by the result's schema. msgpackr encodes a number from 2^32 on as float64,
 * but typed readers need an integer there. msgpackr encodes a bigint as an integer.
 */
import { Members } from "../codec/members.ts";
import { schemas } from "../generated/schemas.gen.ts";

type Convert = (value: unknown) => unknown;

interface Schema {
  readonly $ref?: string;
  readonly type?: string | readonly string[];
  readonly properties?: Readonly<Record<string, Schema>>;
  readonly additionalProperties?: Schema | boolean;
  readonly items?: Schema;
  readonly if?: Schema;
  readonly then?: Schema | boolean;
  readonly else?: Schema | boolean;
  readonly anyOf?: readonly Schema[];
  readonly oneOf?: readonly Schema[];
}

/** msgpackr encodes whole numbers in this range as integers. */
const [MIN_PACKED_INTEGER, MAX_PACKED_INTEGER] = [-(2 ** 31), 2 ** 32 - 1];

const asInteger: Convert = (value) =>
  typeof value === "number" && Number.isInteger(value) && (value > MAX_PACKED_INTEGER || value < MIN_PACKED_INTEGER) ? BigInt(value) : value;

/** Compiles the schema `id` to a function that converts a result. Returns undefined if the schema has no integers. */
export const integersOf = (id: string): Convert | undefined => compile(schemas.find(({ $id }) => $id === id) as Schema, id);

const compile = (schema: Schema | boolean | undefined, file: string): Convert | undefined => {
  if (typeof schema !== "object") return undefined;
  if (schema.$ref !== undefined) return compile(...resolveReference(schema.$ref, file));
  const { type, properties, additionalProperties, items, then, else: otherwise, anyOf = [], oneOf = [] } = schema;
  // All alternatives apply, because an alternative that does not match a value leaves it unchanged.
  const converts = [
    [type].flat().includes("integer") ? asInteger : undefined,
    convertProperties(Object.entries(properties ?? {}).map(([key, member]) => [key, compile(member, file)])),
    convertMembers(compile(additionalProperties, file)),
    convertItems(compile(items, file)),
    ...[then, otherwise, ...anyOf, ...oneOf].map((alternative) => compile(alternative, file)),
  ].filter((convert) => convert !== undefined);
  return converts.length === 0 ? undefined : (value) => converts.reduce((converted, convert) => convert(converted), value);
};

/** Finds the schema of a reference. Returns it with the id of its file. */
const resolveReference = (ref: string, from: string): [Schema, string] => {
  const [file = "", pointer = ""] = ref.split("#");
  const id = file === "" ? from : file;
  let found: unknown = schemas.find(({ $id }) => $id === id);
  for (const key of pointer.split("/").slice(1)) found = (found as Record<string, unknown>)[key];
  return [found as Schema, id];
};

/** True for plain objects, false for class instances such as Parts. */
const isPlain = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && Object.getPrototypeOf(value) === Object.prototype;

const withConverted = (value: Record<string, unknown>, entries: Iterable<readonly [string, Convert]>): Record<string, unknown> => {
  let copy: Record<string, unknown> | undefined;
  for (const [key, convert] of entries) {
    const item = convert(value[key]);
    if (item === value[key]) continue;
    copy ??= { ...value };
    copy[key] = item;
  }
  return copy ?? value;
};

const convertProperties = (all: readonly (readonly [string, Convert | undefined])[]): Convert | undefined => {
  const converts = all.filter((entry): entry is readonly [string, Convert] => entry[1] !== undefined);
  return converts.length === 0 ? undefined : (value) => (isPlain(value) ? withConverted(value, converts) : value);
};

const convertMembers = (convert: Convert | undefined): Convert | undefined =>
  convert &&
  ((value) => {
    if (value instanceof Members) return value.map(convert);
    if (!isPlain(value)) return value;
    return withConverted(
      value,
      Object.keys(value).map((key) => [key, convert] as const),
    );
  });

const convertItems = (convert: Convert | undefined): Convert | undefined =>
  convert && ((value) => (Array.isArray(value) && value.some((item) => convert(item) !== item) ? value.map(convert) : value));
