/**
 * Ids of calls, which must come back as they were sent. A JavaScript number keeps neither the digits beyond 2^53 nor the
 * difference between 1 and 1.0, so those ids are read from the body's own text or bytes.
 */

/** The bytes of a value from `start` to `end`. */
export interface Span {
  readonly start: number;
  readonly end: number;
}

/** A number with its spelling in both formats. */
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

/** Puts exact ids into a decoded call, or into the calls of a batch: `ids` are the numbers among their ids, in order. */
export const withIds = (body: unknown, ids: readonly unknown[]): void => {
  let next = 0;
  for (const call of Array.isArray(body) ? body : [body]) {
    if (typeof (call as { id?: unknown } | null)?.id === "number" && next < ids.length) (call as { id: unknown }).id = ids[next++];
  }
};

/** The id of a JSON number: a number or a bigint where those are spelled alike. */
export const idOfText = (text: string): unknown => {
  const value = Number(text);
  if (/^(?:0|-?[1-9]\d*)$/.test(text)) return Number.isSafeInteger(value) ? value : BigInt(text);
  return String(value) === text ? value : new SpelledNumber(value, text, float64(value));
};

const INT64 = 8;

/** The id of a MessagePack number. */
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
