/** Tests invalid safetensors files, sent as tensors and as a state, and invalid base64. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { pack, readReply } from "../support/service.ts";
import { rawTensors, writeState, writeTensors } from "../support/tensors.ts";
import { CALLER_TEXT, checkNothingIsLeft, type Fields, refusesParams, requireRefusal, STATE, service, step, TENSORS, toJson, useService } from "./_harness.ts";

useService();

const entry = (fields: Fields = {}): string => JSON.stringify({ dtype: "F32", shape: [2], data_offsets: [0, 8], ...fields });
const one = (fields: Fields = {}, data = 8): Buffer => rawTensors(`{"w":${entry(fields)}}`, Buffer.alloc(data));
const length = (value: bigint, rest: string | Uint8Array = ""): Buffer => {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(value);
  return Buffer.concat([bytes, Buffer.from(rest as string)]);
};

/** The server refuses each of these files as params, as grads and as a state. */
const MALFORMED: Readonly<Record<string, readonly [Buffer, RegExp]>> = {
  "no bytes": [Buffer.alloc(0), /at least 8 bytes, found 0 bytes/],
  "seven bytes": [Buffer.alloc(7), /at least 8 bytes, found 7 bytes/],
  "a header of no bytes": [length(0n), /found an empty header/],
  "a header that ends early": [length(100n, "{}"), /a header of 100 bytes, as the first 8 bytes say, found 2 bytes/],
  "a header of 2^64 - 1 bytes": [length(2n ** 64n - 1n, "{}"), /at most 100000000 bytes, found a header length of 18446744073709551615/],
  "a header of 2^63 bytes": [length(2n ** 63n, "{}"), /at most 100000000 bytes/],
  "a header over the limit": [length(100_000_001n, "{}"), /at most 100000000 bytes/],
  "a header that is a list": [rawTensors("[]"), /starts with \{, found byte 91/],
  "a header with a space in front": [rawTensors(" {}"), /starts with \{, found byte 32/],
  "a header that is not JSON": [rawTensors("{w}"), /a header in JSON/],
  "a header that is cut off": [rawTensors('{"w":{"dtype":"F'), /a header in JSON/],
  "a header that is not UTF-8": [rawTensors("{}").fill(0xff, 9, 10), /not UTF-8/],
  "a header with two values": [rawTensors("{}{}"), /a header in JSON/],
  "a header with a zero byte after it": [rawTensors("{}\0"), /a header in JSON/],
  "a tensor that stands twice": [rawTensors(`{"w":${entry()},"w":${entry()}}`, Buffer.alloc(8)), /the key "w" stands twice/],
  "a tensor that stands twice, once escaped": [rawTensors(`{"w":${entry()},"\\u0077":${entry()}}`, Buffer.alloc(8)), /the key "w" stands twice/],
  "a dtype that stands twice": [
    rawTensors('{"w":{"dtype":"F32","dtype":"F64","shape":[2],"data_offsets":[0,8]}}', Buffer.alloc(8)),
    /the key "dtype" stands twice/,
  ],
  "a tensor called __proto__": [rawTensors(`{"__proto__":${entry()}}`, Buffer.alloc(8)), /"__proto__" is not allowed/],
  "a tensor whose name is half of a surrogate pair": [rawTensors(`{"\\ud83d":${entry()}}`, Buffer.alloc(8)), /surrogate/],
  "a header a million levels deep": [rawTensors(`{"w":${"[".repeat(1e6)}`), /nesting deeper than 64/],
  "a header of five million objects": [rawTensors(`{"w":[${"{},".repeat(5e6)}0]}`), /more than 262144 values in an entry/],
  "metadata that is a list": [rawTensors('{"__metadata__":[]}'), /__metadata__ to be an object/],
  "metadata that is null": [rawTensors('{"__metadata__":null}'), /__metadata__ to be an object/],
  "metadata that is a number": [rawTensors('{"__metadata__":{"k":1}}'), /__metadata__.k to be a string/],
  "metadata that stand twice": [rawTensors('{"__metadata__":{},"__metadata__":{}}'), /stands twice/],
  "a tensor that is null": [rawTensors('{"w":null}'), /tensor "w" to have dtype, shape and data_offsets, found null/],
  "a tensor that is a list": [rawTensors('{"w":[]}'), /tensor "w" to have dtype/],
  "a tensor without a dtype": [one({ dtype: undefined }), /found dtype undefined/],
  "a tensor whose dtype is a number": [one({ dtype: 32 }), /found dtype 32/],
  "a tensor without a shape": [one({ shape: undefined }), /found shape undefined/],
  "a shape that is a number": [one({ shape: 2 }), /found shape 2/],
  "a shape below zero": [one({ shape: [-2] }), /found shape \[-2\]/],
  "a shape that is a fraction": [one({ shape: [0.5, 4] }), /found shape \[0.5,4\]/],
  "a shape that is text": [one({ shape: ["2"] }), /found shape \["2"\]/],
  "a shape over 2^53": [one({ shape: [2 ** 53] }), /found shape/],
  "a shape whose product overflows 64 bits": [one({ shape: [2 ** 33, 2 ** 33] }), /elements to have/],
  "a shape whose product no number holds": [one({ shape: Array<number>(32).fill(2 ** 52) }), /elements to have/],
  "a shape whose product overflows in front of a zero": [
    rawTensors('{"w":{"dtype":"F32","shape":[4294967296,4294967296,0],"data_offsets":[0,0]}}'),
    /product is at most 2\^53 - 1, found shape \[4294967296,4294967296,0\]/,
  ],
  "a size with an exponent": [rawTensors('{"w":{"dtype":"F32","shape":[2e0],"data_offsets":[0,8]}}', Buffer.alloc(8)), /digits alone, found 2e0/],
  "a size with a fraction of zero": [rawTensors('{"w":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}}', Buffer.alloc(8)), /digits alone, found 2\.0/],
  "a size of minus zero": [rawTensors('{"w":{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}}'), /digits alone, found -0/],
  "an offset with an exponent": [rawTensors('{"w":{"dtype":"F32","shape":[2],"data_offsets":[0E0,8]}}', Buffer.alloc(8)), /digits alone, found 0E0/],
  "an offset of 0.0": [rawTensors('{"w":{"dtype":"F32","shape":[2],"data_offsets":[0.0,8]}}', Buffer.alloc(8)), /digits alone, found 0\.0/],
  "an offset with a sign in its exponent": [rawTensors('{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8e+0]}}', Buffer.alloc(8)), /found 8e\+0/],
  "a shape of 33 dimensions": [one({ shape: Array<number>(33).fill(1) }), /found shape/],
  "a tensor without offsets": [one({ data_offsets: undefined }), /found data_offsets undefined/],
  "one offset": [one({ data_offsets: [0] }), /found data_offsets \[0\]/],
  "three offsets": [one({ data_offsets: [0, 8, 8] }), /found data_offsets/],
  "offsets in the wrong order": [one({ data_offsets: [8, 0] }), /to have 8 bytes/],
  "an offset below zero": [one({ data_offsets: [-8, 0] }), /found data_offsets \[-8,0\]/],
  "an offset that is a fraction": [one({ data_offsets: [0.5, 8.5] }), /found data_offsets/],
  "fewer bytes than the shape has": [one({ data_offsets: [0, 4] }, 4), /2 F32 elements to have 8 bytes/],
  "an unknown field of a tensor": [one({ strides: [1] }), /and nothing else, found strides/],
  "a tensor past the end of the file": [one({}, 4), /8 bytes of tensors, as the header says, found 4 bytes/],
  "bytes after the last tensor": [one({}, 9), /8 bytes of tensors, as the header says, found 9 bytes/],
  "a gap in front of the first tensor": [one({ data_offsets: [4, 12] }, 12), /tensor "w" to start at offset 0, without gap or overlap, found offset 4/],
  "a gap between tensors": [rawTensors(`{"a":${entry()},"b":${entry({ data_offsets: [12, 20] })}}`, Buffer.alloc(20)), /tensor "b" to start at offset 8/],
  "tensors that overlap": [rawTensors(`{"a":${entry()},"b":${entry({ data_offsets: [4, 12] })}}`, Buffer.alloc(12)), /tensor "b" to start at offset 8/],
  "tensors that share all their bytes": [rawTensors(`{"a":${entry()},"b":${entry()}}`, Buffer.alloc(8)), /to start at offset 8/],
};

for (const [name, [blob, pattern]] of Object.entries(MALFORMED)) {
  for (const field of ["params", "grads", "state"]) {
    refusesParams(`${name}, as ${field}`, {
      params: step({ [field]: blob }),
      error: field === "state" ? "STATE_CORRUPT" : "TENSORS_CORRUPT",
      field: `/${field}`,
      pattern,
    });
  }
}

/** Returns a state with other metadata, or with extra entries. */
const stateOf = (metadata: string, entries = ""): Buffer =>
  rawTensors(`{"__metadata__":${metadata}${entries && `,${entries}`}}`, Buffer.alloc(entries === "" ? 0 : 8));
const good = '{"format":"stepd.state/1","optimizer":"adam","revision":"1"}';
const stepEntry = (key: string, fields: Fields = {}): string => `"${key}":${JSON.stringify({ dtype: "I64", shape: [], data_offsets: [0, 8], ...fields })}`;
const withStep = (value: bigint): Buffer => {
  const state = stateOf(good, stepEntry("step/w"));
  state.writeBigInt64LE(value, state.length - 8);
  return state;
};

const CORRUPT_STATES: Readonly<Record<string, readonly [Buffer, RegExp]>> = {
  "a state without metadata": [rawTensors("{}"), /__metadata__.format stepd.state\/1, found none/],
  "a state of tensors": [writeTensors(TENSORS), /__metadata__.format/],
  "a state of another format": [stateOf(good.replace("state/1", "state/2")), /found "stepd.state\/2"/],
  "a state without an optimizer": [stateOf('{"format":"stepd.state/1","revision":"1"}'), /__metadata__.optimizer .*found ""/],
  "a state of an unknown optimizer": [stateOf(good.replace("adam", CALLER_TEXT)), /__metadata__.optimizer .*found "hostile_mark"/],
  "a state of an optimizer called __proto__": [stateOf(good.replace("adam", "__proto__")), /__metadata__.optimizer/],
  "a state without a revision": [stateOf('{"format":"stepd.state/1","optimizer":"adam"}'), /__metadata__.revision .*found ""/],
  "a state of revision 0": [stateOf(good.replace('"1"', '"0"')), /__metadata__.revision .*found "0"/],
  "a state of revision 1e3": [stateOf(good.replace('"1"', '"1e3"')), /__metadata__.revision/],
  "a key without a slash": [stateOf(good, stepEntry("w")), /keys <slot>\/<parameter> .*found "w"/],
  "a slot that Adam does not have": [stateOf(good, stepEntry("momentum_buffer/w")), /found "momentum_buffer\/w"/],
  "a slot called constructor": [stateOf(good, stepEntry("constructor/w")), /found "constructor\/w"/],
  "a slot without its step": [stateOf(good, stepEntry("exp_avg/w", { dtype: "F32", shape: [2] })), /a key step\/w beside the slots of "w", found none/],
  "a step that is a float": [stateOf(good, stepEntry("step/w", { dtype: "F64" })), /step\/w to be an I64 scalar, found F64 \[\]/],
  "a step that is a vector": [stateOf(good, stepEntry("step/w", { shape: [1] })), /step\/w to be an I64 scalar, found I64 \[1\]/],
  "a step below zero": [withStep(-1n), /step\/w from 0 to 2\^53 - 1, found -1/],
  "a step of 2^53": [withStep(2n ** 53n), /step\/w from 0 to 2\^53 - 1, found 9007199254740992/],
};

for (const [name, [state, pattern]] of Object.entries(CORRUPT_STATES)) {
  refusesParams(name, { params: step({ state }), error: "STATE_CORRUPT", field: "/state", pattern });
  refusesParams(`${name}, inspected`, { method: "state.inspect", params: { state }, error: "STATE_CORRUPT", field: "/state", pattern });
}

refusesParams("a state of a later revision", {
  params: step({ state: stateOf(good.replace('"1"', '"999"'), stepEntry("step/w")) }),
  error: "STATE_MISMATCH",
  field: "/state",
  pattern: /revision \d+ or older, found revision 999/,
});

for (const field of ["params", "grads"]) {
  refusesParams(`a dtype that safetensors does not have, in ${field}`, {
    params: step({ [field]: one({ dtype: "Q4" }) }),
    error: "UNSUPPORTED_DTYPE",
    field: `/${field}/w`,
    pattern: /found "Q4"/,
  });
  for (const [dtype, data_offsets] of [
    ["I32", [0, 8]],
    ["BOOL", [0, 2]],
    ["F8_E4M3", [0, 2]],
    ["I64", [0, 16]],
  ] as const) {
    refusesParams(`${dtype} in ${field}`, {
      params: step({ [field]: one({ dtype, data_offsets }, data_offsets[1]) }),
      error: "UNSUPPORTED_DTYPE",
      field: `/${field}/w`,
      pattern: new RegExp(`F32.*found ${dtype}`),
    });
  }
}

const text = writeTensors(TENSORS).toString("base64");

/** A file whose base64 contains slashes. */
const slashed = rawTensors('{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', Buffer.alloc(8, 0xff)).toString("base64");
assert.ok(slashed.includes("/"));

/** Returns base64 that ends in `padding` equals signs, and whose last character has unused bits set. */
const withUnusedBits = (padding: number): string => {
  const files = [0, 1, 2].map((spaces) => rawTensors(`{}${" ".repeat(spaces)}`).toString("base64"));
  const file = files.find((candidate) => candidate.length - candidate.indexOf("=") === padding && candidate.includes("=")) as string;
  return file.replace(/[^=](?==)/, (char) => String.fromCharCode(char.charCodeAt(0) + 1));
};

const BASE64: Readonly<Record<string, readonly [string, RegExp]>> = {
  "base64 that is cut off": [text.slice(0, -1), /multiple of 4/],
  "base64 with a line break": [`${text.slice(0, 76)}\r\n${text.slice(76)}`, /expected base64/],
  "base64 with spaces, in a length that is right": [`    ${text.slice(4)}`, /expected base64/],
  "base64 with a foreign character": [`*${text.slice(1)}`, /expected base64/],
  "base64 with padding inside": [`${text.slice(0, 3)}=${text.slice(4)}`, /expected base64/],
  "base64 that is only padding": ["====", /expected base64/],
  "a single =": ["=", /multiple of 4/],
  "base64 whose characters are shifted to another code page": [
    text.replaceAll(/./g, (char) => String.fromCharCode(char.charCodeAt(0) + 0x100)),
    /expected base64/,
  ],
  "base64 with one shifted character": [`${String.fromCharCode(text.charCodeAt(0) + 0x2100)}${text.slice(1)}`, /expected base64/],
  "base64 in the alphabet for URLs": [slashed.replaceAll("/", "_"), /expected base64/],
  "base64 with bits that are left over": [withUnusedBits(1), /expected base64/],
  "base64 with more bits that are left over": [withUnusedBits(2), /expected base64/],
  "text outside of ASCII": ["ééé€", /expected base64/],
};

for (const [name, [value, pattern]] of Object.entries(BASE64)) {
  for (const [field, error] of [
    ["params", "TENSORS_CORRUPT"],
    ["state", "STATE_CORRUPT"],
  ] as const) {
    refusesParams(`${name}, as ${field}`, { params: step({ [field]: value }), error, field: `/${field}`, pattern, only: "json" });
  }
}

test("a state with one changed byte gives a result, or a refusal that names the state", async () => {
  const state = writeState(STATE);
  for (let at = 0; at < state.length; at += 3) {
    const broken = Buffer.from(state);
    broken[at] = (broken[at] as number) ^ (1 << (at % 8));
    const response = await service().post(
      "/rpc",
      pack({ jsonrpc: "2.0", id: 1, method: "optimizer.step", params: step({ state: broken }) }),
      "application/vnd.msgpack",
    );
    const { error } = (await readReply(response)) as { error?: { data: { name: string; field?: string } } };
    if (error) assert.match(`${error.data.name} ${error.data.field}`, /^STATE_(CORRUPT|MISMATCH) \/state$|^UNSUPPORTED_DTYPE \/state\//, `byte ${at}`);
  }
});

test("the valid files behind the refused ones are accepted", async () => {
  for (const fields of [{}, { state: undefined }, { state: stateOf(good, stepEntry("step/w")) }]) {
    const response = await service().post("/v1/step", toJson(step(fields)), "application/json");
    assert.equal(response.status, 200, await response.text());
  }
  await requireRefusal(await service().post("/v1/step", toJson(step({ state: "AA==" })), "application/json"), { error: "STATE_CORRUPT", field: "/state" }, 422);
});

test("a call with one tensor above the limit is refused, and one at the limit is accepted", async () => {
  for (const [count, status] of [
    [65_537, 413],
    [65_536, 200],
  ] as const) {
    const entries = Array.from({ length: count }, (_, index) => `"${index}":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}`);
    const file = rawTensors(`{${entries.join(",")}}`, Buffer.alloc(0));
    const body = pack({ optimizer: { name: "sgd" }, params: file, grads: rawTensors("{}", Buffer.alloc(0)) });
    const response = await service().post("/v1/step", body, "application/vnd.msgpack");
    assert.equal(response.status, status, (await response.text()).slice(0, 300));
  }
});

checkNothingIsLeft();
