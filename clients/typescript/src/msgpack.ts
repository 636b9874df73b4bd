/** MessagePack: encodes blobs without a copy, and rejects extension types and trailing bytes. */
import { Decoder, type EncoderOptions, type ExtensionCodec, encode } from "@msgpack/msgpack";

/** Bytes that the encoder writes as one bin value. */
export class Bin {
  readonly bytes: Blob;
  constructor(bytes: Blob) {
    this.bytes = bytes;
  }
}

/**
 * Rejects extension types, because stepd sends none. The encoder calls this codec only for objects and for types that
 * MessagePack lacks.
 */
const noExtensions: Pick<ExtensionCodec, "tryToEncode" | "decode"> = {
  tryToEncode(value) {
    if (typeof value !== "object") throw new TypeError(`expected numbers, texts, lists and objects, found a ${typeof value}`);
    return null;
  },
  decode(_, type) {
    throw new RangeError(`extension type ${type}`);
  },
};

const encoding: EncoderOptions = { extensionCodec: noExtensions, ignoreUndefined: true };
const decoder = new Decoder({ extensionCodec: noExtensions });

const MAX_BIN_BYTES = 2 ** 32 - 1;
const ARRAY_32 = 0xdd;
const MAP_32 = 0xdf;
const BIN_32 = 0xc6;

/** Encodes a map, as a list of parts. Throws RangeError for a blob beyond the 4 GiB that MessagePack allows. */
export const encodeParts = (params: object): BlobPart[] => mapParts(params, "");

const mapParts = (map: object, path: string): BlobPart[] => {
  const entries = Object.entries(map).filter(([, value]) => value !== undefined);
  return [header(MAP_32, entries.length), ...entries.flatMap(([key, value]) => [encode(key), ...valueParts(value, path === "" ? key : `${path}.${key}`)])];
};

const valueParts = (value: unknown, path: string): BlobPart[] => {
  if (value instanceof Bin) {
    const length = value.bytes.size;
    if (length > MAX_BIN_BYTES)
      throw new RangeError(`${path}: expected at most ${MAX_BIN_BYTES} bytes in one call, found ${length}; a ShardedClient makes several calls of it`);
    return [header(BIN_32, length), value.bytes];
  }
  // Only values with blobs are encoded member by member.
  if (!hasBin(value)) return [encodeValue(path, value)];
  if (!Array.isArray(value)) return mapParts(value as object, path);
  return [header(ARRAY_32, value.length), ...value.flatMap((item, index) => valueParts(item, `${path}[${index}]`))];
};

const hasBin = (value: unknown): boolean =>
  value instanceof Bin || (Array.isArray(value) ? value.some(hasBin) : value?.constructor === Object && Object.values(value).some(hasBin));

const encodeValue = (key: string, value: unknown): Uint8Array<ArrayBuffer> => {
  try {
    return encode(value, encoding);
  } catch (error) {
    throw new TypeError(`${key}: ${(error as Error).message}`, { cause: error });
  }
};

/** Decodes a body. Its blobs are views. Throws for invalid MessagePack and for extension types. */
export const decode = (bytes: Uint8Array): unknown => decoder.decode(bytes);

/** Returns a type byte followed by a big-endian length of four bytes. */
const header = (type: number, length: number): Uint8Array<ArrayBuffer> => {
  const bytes = new Uint8Array(5);
  bytes[0] = type;
  new DataView(bytes.buffer).setUint32(1, length);
  return bytes;
};
