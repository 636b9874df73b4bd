/** Tests safetensors: the reader accepts every valid file and no other, and the writer gives equal tensors equal bytes. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { compareCanonical, compareUtf8, readSafetensors, writeHeader } from "../../src/codec/safetensors.ts";
import { random, rawTensors } from "../support/tensors.ts";

const read = (file: Buffer) => readSafetensors(file, "/params", "TENSORS_CORRUPT");

test("reads the writer's output, in shared memory at an odd address", () => {
  const described = [
    { name: "w", dtype: "F32", shape: [2, 3] },
    { name: "step/w", dtype: "I64", shape: [] },
    { name: "none", dtype: "F64", shape: [0, 7] },
    { name: 'é"\\\n', dtype: "BF16", shape: [3] },
  ].toSorted(compareCanonical);
  const header = writeHeader({ b: "2", a: "1" }, described);
  assert.equal(header.length % 8, 0);
  const file = Buffer.concat([header, Buffer.alloc(8 + 24 + 6)]);
  const memory = Buffer.from(new SharedArrayBuffer(file.length + 3));
  memory.fill(file, 3);
  const { metadata, tensors } = read(memory.subarray(3));
  assert.deepEqual(
    [...metadata],
    [
      ["a", "1"],
      ["b", "2"],
    ],
  );
  assert.deepEqual(
    tensors.map(({ name, dtype, shape }) => ({ name, dtype, shape })),
    described,
  );
  const at = (name: string) => tensors.find((tensor) => tensor.name === name);
  assert.deepEqual(at("step/w")?.offset, header.length);
  assert.deepEqual(at("w"), { name: "w", dtype: "F32", shape: [2, 3], elements: 6, bytes: 24, offset: header.length + 8 });
});

test("accepts entries in any order, spaces after the header, and a file without tensors", () => {
  const header = '{"b":{"data_offsets":[4,8],"shape":[1],"dtype":"F32"},"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}   ';
  assert.deepEqual(
    read(rawTensors(header, Buffer.alloc(8))).tensors.map(({ name }) => name),
    ["b", "a"],
  );
  assert.deepEqual(read(rawTensors("{}")).tensors, []);
});

test("accepts 32 dimensions, and a header length of 100,000,000", () => {
  const of = (rank: number): Buffer =>
    rawTensors(JSON.stringify({ w: { dtype: "U8", shape: Array<number>(rank).fill(1), data_offsets: [0, 1] } }), Buffer.alloc(1));
  assert.equal(read(of(32)).tensors[0]?.shape.length, 32);
  assert.throws(() => read(of(33)), { code: "TENSORS_CORRUPT", message: /found shape/ });
  const withLength = (length: number): Buffer => {
    const file = Buffer.alloc(8);
    file.writeUInt32LE(length);
    return file;
  };
  // The length itself is valid, so the error is about the missing bytes.
  assert.throws(() => read(withLength(100_000_000)), { code: "TENSORS_CORRUPT", message: /as the first 8 bytes say, found 0 bytes/ });
  assert.throws(() => read(withLength(100_000_001)), { code: "TENSORS_CORRUPT", message: /at most 100000000 bytes/ });
});

test("the canonical order compares UTF-8 bytes, also above U+FFFF", () => {
  const next = random(11);
  const points = [0x2f, 0x41, 0x7f, 0x80, 0x7ff, 0x800, 0xd7ff, 0xe000, 0xfffd, 0xffff, 0x10000, 0x1f600, 0x10ffff];
  const name = (): string =>
    Array.from({ length: Math.floor(Math.abs(next()) * 5) }, () => String.fromCodePoint(points[Math.floor(Math.abs(next()) * points.length)] as number)).join(
      "",
    );
  for (let i = 0; i < 5000; i++) {
    const [a, b] = [name(), name()];
    assert.equal(Math.sign(compareUtf8(a, b)), Buffer.compare(Buffer.from(a), Buffer.from(b)), `${JSON.stringify(a)} ${JSON.stringify(b)}`);
  }
});

test("the canonical order puts wide dtypes first, so that every tensor is aligned", () => {
  const names = [
    { name: "a", dtype: "BF16", shape: [] },
    { name: "b", dtype: "F32", shape: [] },
    { name: "d", dtype: "I64", shape: [] },
    { name: "c", dtype: "I64", shape: [] },
    { name: "a", dtype: "F64", shape: [] },
  ]
    .toSorted(compareCanonical)
    .map(({ name, dtype }) => `${dtype} ${name}`);
  assert.deepEqual(names, ["I64 c", "I64 d", "F64 a", "F32 b", "BF16 a"]);
});

test("equal tensors and metadata give equal bytes, in any order", () => {
  const tensors = ["z", "a", "\u{10000}", "\uffff"].map((name) => ({ name, dtype: "F32", shape: [1] }));
  const first = writeHeader({ x: "1", y: "2" }, tensors.toSorted(compareCanonical));
  const second = writeHeader({ y: "2", x: "1" }, tensors.toReversed().toSorted(compareCanonical));
  assert.ok(first.equals(second));
});

test("any corrupted header byte gives a refusal or a consistent file", () => {
  const header = '{"__metadata__":{"k":"v"},"w":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}';
  const file = rawTensors(header, Buffer.alloc(16));
  const next = random(3);
  for (let at = 0; at < 8 + header.length; at++) {
    for (const value of [0, 0x22, 0x30, 0x2d, 0x7b, 0xff, Math.floor(Math.abs(next()) * 256)]) {
      const broken = Buffer.from(file);
      broken[at] = value;
      try {
        const bytes = read(broken).tensors.reduce((sum, tensor) => sum + tensor.bytes, 0);
        assert.equal(bytes + 8 + header.length, file.length);
      } catch (error) {
        const { code } = error as { code?: string };
        assert.ok(code === "TENSORS_CORRUPT" || code === "UNSUPPORTED_DTYPE", `byte ${at} as ${value}: ${error}`);
      }
    }
  }
});

test("headers that differ in one byte stay distinct, and every file has the length in its header", () => {
  const file = Buffer.concat([writeHeader({ a: "1" }, [{ name: "w", dtype: "F32", shape: [2] }]), Buffer.alloc(8)]);
  const first = read(file);
  assert.deepEqual(read(Buffer.from(file)), first);
  const at = file.indexOf('"w"') + 1;
  for (let byte = 0; byte < 256; byte++) {
    const other = Buffer.from(file);
    other[at] = byte;
    if (byte === 0x77) continue;
    // A byte of printable ASCII, except quote and backslash, is a complete name.
    if (byte < 0x20 || byte > 0x7f || byte === 0x22 || byte === 0x5c) assert.throws(() => read(other), { code: "TENSORS_CORRUPT" });
    else assert.equal(read(other).tensors[0]?.name, String.fromCharCode(byte));
  }
  assert.throws(() => read(file.subarray(0, -1)), { code: "TENSORS_CORRUPT", message: /8 bytes of tensors, as the header says, found 7/ });
  assert.throws(() => read(Buffer.concat([file, Buffer.alloc(1)])), { code: "TENSORS_CORRUPT", message: /found 9 bytes/ });
  assert.deepEqual(read(file), first);
});

test("similar headers of different meaning give different bytes", () => {
  const one = (name: string, shape: readonly number[]) => ({ name, dtype: "F32", shape });
  const files: readonly (readonly [Readonly<Record<string, string>>, readonly ReturnType<typeof one>[]])[] = [
    [{}, [one("a", [1])]],
    [{}, [one("aF32[1]", [1])]],
    [{}, [one("a", [1]), one("a", [1])]],
    [{}, [one("aF32[1]1:a", [1])]],
    [{}, [one("", [1]), one("0:F32[1]", [1])]],
    [{}, [one("", [1, 1])]],
    [{ a: "" }, [one("a", [1])]],
    [{ a: "}1:aF32[1]" }, []],
    [{}, [one("a", [11])]],
  ];
  const texts = files.flatMap((file) => [writeHeader(...file).toString(), writeHeader(...file).toString()]);
  assert.equal(new Set(texts).size, files.length);
});

test("long headers are read in pieces, and an error anywhere is refused", () => {
  const entry = (index: number): string => `"w${index}":{"dtype":"F32","shape":[1],"data_offsets":[${4 * index},${4 * index + 4}]}`;
  const COUNT = 10_000;
  const entries = Array.from({ length: COUNT }, (_, index) => entry(index));
  const file = (header: string): Buffer => rawTensors(header, Buffer.alloc(4 * COUNT));
  const { tensors } = read(file(`{${entries.join(",")}}`));
  assert.deepEqual(
    tensors.map(({ name }) => name),
    entries.map((_, index) => `w${index}`),
  );
  const quoted = entries.map((text, index) => (index === 5000 ? text.replace("w5000", '},{\\"w') : text));
  assert.equal(read(file(`{${quoted.join(",")}}`)).tensors[5000]?.name, '},{"w');
  const spaces = " ".repeat(70_000);
  for (const [what, header] of [
    ["a comma at the end", `{${entries.join(",")},}`],
    ["a comma at the start", `{,${entries.join(",")}}`],
    ["a comma behind spaces", `{${spaces},${entries.join(",")}}`],
    ["two commas", `{${entries.slice(0, 5000).join(",")},${spaces},${entries.slice(5000).join(",")}}`],
    ["a brace in the middle", `{${entries.slice(0, 5000).join(",")}},{${entries.slice(5000).join(",")}}`],
    ["no brace at the end", `{${entries.join(",")}`],
    ["a name in two pieces", `{${[...entries.slice(0, -1), entry(COUNT - 1).replace(`w${COUNT - 1}`, "w0")].join(",")}}`],
    ["a half of a string", `{${entries.join(",")},"w`],
  ] as const) {
    assert.throws(() => read(file(header)), { code: "TENSORS_CORRUPT" }, what);
  }
});
