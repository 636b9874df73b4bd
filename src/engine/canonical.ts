/**
 * Serializes a value to a canonical text for cache keys: JSON with sorted object keys. Unlike in JSON, -0, NaN and infinities have
 * distinct texts. Returns undefined if the text would exceed `maxLength` characters.
 */
export const canonicalText = (value: unknown, maxLength: number): string | undefined => {
  let room = maxLength;
  const serialize = (item: unknown): string | undefined => {
    if (typeof item !== "object" || item === null) {
      const text = serializeScalar(item);
      room -= text.length;
      return room < 0 ? undefined : text;
    }
    const parts: string[] = [];
    const isList = Array.isArray(item);
    for (const key of isList ? item.keys() : Object.keys(item).sort()) {
      const text = serialize((item as Readonly<Record<string | number, unknown>>)[key]);
      if (text === undefined) return undefined;
      const part = isList ? text : `${JSON.stringify(key)}:${text}`;
      room -= part.length - text.length + 1;
      if (room < 0) return undefined;
      parts.push(part);
    }
    return isList ? `[${parts.join(",")}]` : `{${parts.join(",")}}`;
  };
  return serialize(value);
};

const serializeScalar = (value: unknown): string => {
  if (typeof value === "number") return Object.is(value, -0) ? "-0" : String(value);
  return typeof value === "bigint" ? `${value}n` : (JSON.stringify(value) ?? "undefined");
};
