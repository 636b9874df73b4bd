/**
 * Keeps ids of calls exact, because a reply must repeat its call's id. JavaScript numbers lose digits beyond 2^53 and the difference between 1
 * and 1.0, so numeric ids are read from the text or bytes of the body.
 */

/** The byte range of a value; `end` is exclusive. */
export interface Span {
  readonly start: number;
  readonly end: number;
}

/** A number with its exact spelling in JSON and MessagePack. */
export class SpelledNumber extends Number {
  readonly json: string;
  readonly packed: Uint8Array;

  constructor(value: number, json: string, packed: Uint8Array) {
    super(value);
    this.json = json;
    this.packed = packed;
  }

  override toString(): string {
    return this.json;
  }
}

/** Replaces the numeric ids of a decoded call or batch by the exact `ids`, in order. */
export const withIds = (body: unknown, ids: readonly unknown[]): void => {
  let next = 0;
  for (const call of Array.isArray(body) ? body : [body]) {
    if (typeof (call as { id?: unknown } | null)?.id === "number" && next < ids.length) (call as { id: unknown }).id = ids[next++];
  }
};

/** Converts the text of a JSON number to an id: a number or a bigint if it prints as the same text, else a SpelledNumber. */
export const idOfText = (text: string): unknown => {
  const value = Number(text);
  if (/^(?:0|-?[1-9]\d*)$/.test(text)) return Number.isSafeInteger(value) ? value : BigInt(text);
  return String(value) === text ? value : new SpelledNumber(value, text, float64(value));
};

const INT64 = 8;

/** Converts an encoded MessagePack number to an id. */
export const idOfBytes = (bytes: Buffer, { start, end }: Span): unknown => {
  const at = start + 1;
  const wide = (value: bigint): unknown => (Number.isSafeInteger(Number(value)) ? Number(value) : value);
  switch (bytes[start]) {
    case 0xca:
    case 0xcb: {
      const value = end - at === INT64 ? bytes.readDoubleBE(at) : bytes.readFloatBE(at);
      const text = Object.is(value, -0) ? "-0" : String(value);
      return new SpelledNumber(value, Number.isInteger(value) && !text.includes("e") ? `${text}.0` : text, new Uint8Array(bytes.subarray(start, end)));
    }
    case 0xcf:
      return wide(bytes.readBigUInt64BE(at));
    case 0xd3:
      return wide(bytes.readBigInt64BE(at));
    default:
      return end === at
        ? bytes.readInt8(start)
        : [0xcc, 0xcd, 0xce].includes(bytes[start] as number)
          ? bytes.readUIntBE(at, end - at)
          : bytes.readIntBE(at, end - at);
  }
};

const float64 = (value: number): Buffer => {
  const bytes = Buffer.alloc(1 + INT64, 0xcb);
  bytes.writeDoubleBE(value, 1);
  return bytes;
};
