/**
 * Converts large integers of results to bigint, guided by their schemas. The MessagePack writer encodes numbers from 2^32 on as
 * float64, which typed readers refuse for an integer; it encodes a bigint as an integer. Real numbers are left unchanged.
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

/** The range of numbers that msgpackr writes as integers by itself. */
const [LEAST, MOST] = [-(2 ** 31), 2 ** 32 - 1];

const asInteger: Convert = (value) => (typeof value === "number" && Number.isInteger(value) && (value > MOST || value < LEAST) ? BigInt(value) : value);

/** Compiles a schema into a function that converts a result's large integers to bigint. Undefined for a schema without integers. */
export const integersOf = (id: string): Convert | undefined => compile(schemas.find(({ $id }) => $id === id) as Schema, id);

const compile = (schema: Schema | boolean | undefined, file: string): Convert | undefined => {
  if (typeof schema !== "object") return undefined;
  if (schema.$ref !== undefined) return compile(...resolve(schema.$ref, file));
  const { type, properties, additionalProperties, items, then, else: otherwise, anyOf = [], oneOf = [] } = schema;
  // Applies all alternatives: one that a value does not match leaves it unchanged.
  const converts = [
    [type].flat().includes("integer") ? asInteger : undefined,
    members(Object.entries(properties ?? {}).map(([key, member]) => [key, compile(member, file)])),
    everyMember(compile(additionalProperties, file)),
    everyItem(compile(items, file)),
    ...[then, otherwise, ...anyOf, ...oneOf].map((alternative) => compile(alternative, file)),
  ].filter((convert) => convert !== undefined);
  return converts.length === 0 ? undefined : (value) => converts.reduce((converted, convert) => convert(converted), value);
};

/** The schema that a reference names, and the file that contains it. */
const resolve = (ref: string, from: string): [Schema, string] => {
  const [file = "", pointer = ""] = ref.split("#");
  const id = file === "" ? from : file;
  let found: unknown = schemas.find(({ $id }) => $id === id);
  for (const key of pointer.split("/").slice(1)) found = (found as Record<string, unknown>)[key];
  return [found as Schema, id];
};

/** True for plain objects, and false for class instances such as Parts. */
const isPlain = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && Object.getPrototypeOf(value) === Object.prototype;

const changed = (value: Record<string, unknown>, entries: Iterable<readonly [string, Convert]>): Record<string, unknown> => {
  let copy: Record<string, unknown> | undefined;
  for (const [key, convert] of entries) {
    const item = convert(value[key]);
    if (item === value[key]) continue;
    copy ??= { ...value };
    copy[key] = item;
  }
  return copy ?? value;
};

const members = (all: readonly (readonly [string, Convert | undefined])[]): Convert | undefined => {
  const converts = all.filter((entry): entry is readonly [string, Convert] => entry[1] !== undefined);
  return converts.length === 0 ? undefined : (value) => (isPlain(value) ? changed(value, converts) : value);
};

const everyMember = (convert: Convert | undefined): Convert | undefined =>
  convert &&
  ((value) => {
    if (value instanceof Members) return value.map(convert);
    if (!isPlain(value)) return value;
    return changed(
      value,
      Object.keys(value).map((key) => [key, convert] as const),
    );
  });

const everyItem = (convert: Convert | undefined): Convert | undefined =>
  convert && ((value) => (Array.isArray(value) && value.some((item) => convert(item) !== item) ? value.map(convert) : value));
