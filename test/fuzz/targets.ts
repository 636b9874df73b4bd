/** What `npm run fuzz` runs: the readers of bytes that strangers send. A target throws if a reader does what it must not do. */
import assert from "node:assert/strict";
import { decode } from "@msgpack/msgpack";
import { decodeJson, encodeJson } from "../../src/codec/json.ts";
import { decodeMsgpack, MsgpackReader } from "../../src/codec/msgpack.ts";
import { readSafetensors } from "../../src/codec/safetensors.ts";
import { atOnce } from "../../src/codec/turns.ts";
import { readState } from "../../src/engine/state.ts";
import { StepdError } from "../../src/errors/errors.ts";

export interface Target {
  /** Inputs from which to start. */
  readonly seeds: readonly Uint8Array[];
  /** Texts that the reader knows. */
  readonly words: readonly string[];
  run(bytes: Buffer): void;
}

/** Returns the outcome of a reader: its result, or its refusal. Any other error passes through. */
const readBy = <T>(read: () => T): { readonly value: T } | { readonly refusal: StepdError } => {
  try {
    return { value: read() };
  } catch (error) {
    if (error instanceof StepdError) return { refusal: error };
    throw error;
  }
};

/** What JSON.parse takes, and stepd does not. */
const STRICTER = /stands twice|not allowed|nesting deeper|half of a surrogate|more than \d+ keys|not UTF-8/;

const json: Target = {
  seeds: ['{"a":[1,-2.5e3,true,null,"\\u00e9\\n"]}', '[[{"k":{}}],"",0]', '"\\ud834\\udd1e"', "-0.0e+1 "].map((text) => Buffer.from(text)),
  words: ["{}", "[]", '"a":', "null", "true", "1e9", "\\u0061", "\\ud800", "__proto__", ",", "\n", "\xef\xbb\xbf", "\xc3\xa9"],
  run(bytes) {
    const found = readBy(() => atOnce(decodeJson(bytes)));
    const native = (() => {
      try {
        return { value: JSON.parse(new TextDecoder("utf8", { fatal: true, ignoreBOM: true }).decode(bytes)) as unknown };
      } catch {
        return undefined;
      }
    })();
    if ("refusal" in found) {
      assert.equal(found.refusal.code, "PARSE_ERROR");
      assert.ok(native === undefined || STRICTER.test(found.refusal.message), `refused for: ${found.refusal.message}`);
      return;
    }
    assert.ok(native, "taken, but JSON.parse refuses it");
    assert.deepEqual(found.value, native.value);
    const text = Buffer.concat(atOnce(encodeJson(found.value)).pieces).toString();
    // What JSON has no number for is written as text, such as "Infinity".
    assert.equal(
      JSON.stringify(JSON.parse(text)),
      JSON.stringify(native.value, (_, value) => (typeof value === "number" && !Number.isFinite(value) ? String(value) : value)),
    );
  },
};

/** Returns a decoded value without the marks of integers, for the comparison with another decoder. */
const plain = (value: unknown): unknown => {
  if (typeof value === "bigint") return Number(value);
  if (value instanceof Uint8Array) return Buffer.from(value).toString("hex");
  if (Array.isArray(value)) return value.map(plain);
  if (typeof value !== "object" || value === null) return value;
  // An id keeps its digits in an object of its own.
  if (Object.getPrototypeOf(value) !== Object.prototype) return Number(String(value));
  return Object.fromEntries(Object.entries(value).map(([key, member]) => [key, plain(member)]));
};

const hex = (text: string): Buffer => Buffer.from(text, "hex");

const msgpack: Target = {
  seeds: [
    hex("83a76a736f6e727063a3322e30a26964cd0102a6706172616d7381a5677261647302"),
    hex("82a176c4030a0b0ca16c93cb3ff8000000000000d3ffffffffffffffffca3f800000"),
    hex("dd00000002de000101c3d90161df0000000102c2"),
  ],
  words: ["\xc4\x02ab", "\xd9\x03abc", "\xdc\x00\x02", "\xde\x00\x01", "\xcf\xff\xff\xff\xff\xff\xff\xff\xff", "\xa2id", "\xa9__proto__", "\xc0", "\xd4\x01a"],
  run(bytes) {
    const found = readBy(() => atOnce(decodeMsgpack(bytes)));
    // A reader that knows a template of these bytes gives the same as one that does not.
    const reader = new MsgpackReader();
    const first = readBy(() => atOnce(reader.decode(bytes, () => {})).value);
    const again = readBy(() => atOnce(reader.decode(Buffer.from(bytes), () => {})).value);
    if ("refusal" in found) {
      assert.equal(found.refusal.code, "PARSE_ERROR");
      for (const other of [first, again]) assert.equal("refusal" in other && other.refusal.message, found.refusal.message);
      return;
    }
    for (const other of [first, again]) assert.deepEqual("value" in other && other.value, found.value);
    assert.deepEqual(plain(found.value), plain(decode(bytes, { useBigInt64: true })));
  },
};

const file = (header: string, data: number): Buffer => {
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(Buffer.byteLength(header)));
  return Buffer.concat([length, Buffer.from(header), Buffer.alloc(data, 1)]);
};

const STATE =
  '{"__metadata__":{"format":"stepd.state/1","optimizer":"adamw","revision":"1"},"step/w":{"dtype":"I64","shape":[],"data_offsets":[0,8]},"exp_avg/w":{"dtype":"F32","shape":[2],"data_offsets":[8,16]},"exp_avg_sq/w":{"dtype":"F32","shape":[2],"data_offsets":[16,24]}}';

const WORDS = [
  '"dtype":"F32"',
  '"shape":[',
  '"data_offsets":[0,4]',
  '"__metadata__":{',
  "BF16",
  "I64",
  "9007199254740993",
  "1e3",
  "-0",
  "[]",
  "{}",
  ",",
  "step/",
  "exp_avg.scale/",
  "optimizer/w",
];

const safetensors: Target = {
  seeds: [file('{"w":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}}', 8), file("{}  ", 0), file(STATE, 24)],
  words: WORDS,
  run(bytes) {
    const found = readBy(() => readSafetensors(bytes, "/params", "TENSORS_CORRUPT"));
    if ("refusal" in found) {
      assert.ok(["TENSORS_CORRUPT", "UNSUPPORTED_DTYPE"].includes(found.refusal.code), found.refusal.code);
      return;
    }
    const { header, tensors } = found.value;
    let end = header?.length ?? 0;
    for (const { offset, bytes: length, elements, shape } of [...tensors].sort((a, b) => a.offset - b.offset || a.bytes - b.bytes)) {
      assert.equal(offset, end);
      assert.equal(
        elements,
        shape.reduce((product, size) => product * size, 1),
      );
      end += length;
    }
    assert.equal(end, bytes.length);
    assert.equal(new Set(tensors.map(({ name }) => name)).size, tensors.length);
  },
};

const state: Target = {
  seeds: [file(STATE, 24), file(STATE.replaceAll("adamw", "sgd").replace(/,"exp_avg\/w.*/, "}"), 8)],
  words: [...WORDS, "adamw", "sgd", "lamb", "stepd.state/1", '"revision":"1"'],
  run(bytes) {
    const found = readBy(() => atOnce(readState(bytes)));
    if ("refusal" in found) assert.ok(["STATE_CORRUPT", "STATE_MISMATCH", "UNSUPPORTED_DTYPE"].includes(found.refusal.code), found.refusal.code);
  },
};

export const targets: Readonly<Record<string, Target>> = { json, msgpack, safetensors, state };
