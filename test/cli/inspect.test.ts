/** Tests `stepd inspect` on states and other files: its output, the bytes that it reads, and the files that it refuses. */
import assert from "node:assert/strict";
import { closeSync, ftruncateSync, mkdirSync, openSync, readFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { rawTensors, writeState, writeTensors } from "../support/tensors.ts";
import { root } from "../support/tree.ts";
import { Command, Folder, main, stepd } from "./_command.ts";

const FIXTURE = join(root, "test/fixtures/adamw.safetensors");

test("inspect reads a state written by another library", async () => {
  const { code, stdout, stderr } = await stepd("inspect", FIXTURE);
  assert.equal(code, 0, stderr);
  const expected = `${FIXTURE}: state of adamw, revision 2, 616 B
steps:      41
parameters: 2
slots:      exp_avg, exp_avg_sq
elements:   18

parameter     slot        step  dtype   shape  elements  bytes
------------  ----------  ----  -----  ------  --------  -----
layer.bias    exp_avg       41    F32     [3]         3     12
layer.bias    exp_avg_sq    41    F32     [3]         3     12
layer.weight  exp_avg       41    F32  [2, 3]         6     24
layer.weight  exp_avg_sq    41    F32  [2, 3]         6     24
`;
  assert.equal(stdout, expected);
});

test("statistics match the tensor's values", async () => {
  using folder = new Folder();
  const w = { shape: [2, 2], data: Float32Array.of(3, -4, Number.NaN, 0) };
  const path = folder.write("params", writeTensors({ w, none: { shape: [0], data: new Float32Array() } }));
  const { stdout, stderr } = await stepd("inspect", path, "--stats", "--json");
  assert.deepEqual(
    JSON.parse(stdout),
    {
      format: "safetensors",
      metadata: {},
      bytes: readFileSync(path).length,
      elements: 4,
      tensors: {
        w: { dtype: "F32", shape: [2, 2], elements: 4, bytes: 16, min: -4, max: 3, norm: 5, non_finite: 1 },
        none: { dtype: "F32", shape: [0], elements: 0, bytes: 0, min: null, max: null, norm: 0, non_finite: 0 },
      },
    },
    stderr,
  );
});

test("statistics are exact for a tensor read in several chunks, in float64 and narrower dtypes", async () => {
  using folder = new Folder();
  const elements = 3_000_001;
  const wide = Float64Array.from({ length: elements }, (_, index) => index);
  const header = {
    bits: { dtype: "BF16", shape: [2], data_offsets: [0, 4] },
    half: { dtype: "F16", shape: [2], data_offsets: [4, 8] },
    wide: { dtype: "F64", shape: [elements], data_offsets: [8, 8 + elements * 8] },
    ids: { dtype: "I64", shape: [1], data_offsets: [8 + elements * 8, 16 + elements * 8] },
  };
  const small = Buffer.from(Uint16Array.of(0x3f80, 0xc000, 0x3c00, 0xc000).buffer);
  const path = folder.write("tensors", rawTensors(JSON.stringify(header), Buffer.concat([small, Buffer.from(wide.buffer), Buffer.alloc(8)])));
  const { stdout, stderr } = await stepd("inspect", path, "--stats", "--json");
  const { tensors } = JSON.parse(stdout || stderr) as { tensors: Record<string, { min?: number; max?: number; norm?: number }> };
  const last = elements - 1;
  // The expected norm is the root of the sum of squares up to `last`, in closed form.
  const norm = Math.sqrt((last * (last + 1) * (2 * last + 1)) / 6);
  const { wide: found, bits, half, ids } = tensors;
  assert.deepEqual([found?.min, found?.max], [0, last]);
  assert.ok(Math.abs((found?.norm ?? 0) / norm - 1) < 1e-12, `${found?.norm}, not ${norm}`);
  for (const narrow of [bits, half]) assert.deepEqual([narrow?.min, narrow?.max, narrow?.norm], [-2, 1, Math.sqrt(5)]);
  assert.equal(ids?.min, undefined);
});

test("inspect shows parameters at different steps, without slots, and with a scalar slot", async () => {
  using folder = new Folder();
  const one = { shape: [1], data: Float32Array.of(1) };
  const slots = { exp_avg: { a: one }, exp_avg_sq: { a: one } };
  const path = folder.write("state", writeState({ optimizer: "nadam", steps: { a: 3, b: 0 }, slots, scalars: { mu_product: { a: 0.25 } } }));
  const { stdout } = await stepd("inspect", path, "--stats");
  assert.match(stdout, /^steps: {6}0 to 3$/m);
  assert.match(stdout, /^a +mu_product +3 +F64 +\[\] +1 +8 +0\.25 +0\.25 +0\.25 +0$/m);
  assert.match(stdout, /^b +- +0$/m);
});

test("inspect reads only the header and the steps of a 6 GiB state", async () => {
  using folder = new Folder();
  const elements = 6 * 2 ** 27;
  const end = 8 + elements * 4;
  const header = {
    __metadata__: { format: "stepd.state/1", optimizer: "adamw", revision: "1" },
    "step/w": { dtype: "I64", shape: [], data_offsets: [0, 8] },
    "exp_avg/w": { dtype: "F32", shape: [elements], data_offsets: [8, end] },
    "exp_avg_sq/w": { dtype: "F32", shape: [elements], data_offsets: [end, end + elements * 4] },
  };
  const step = Buffer.alloc(8);
  step.writeBigInt64LE(77n);
  const head = rawTensors(JSON.stringify(header), step);
  const fd = openSync(folder.at("large"), "w");
  writeSync(fd, head);
  ftruncateSync(fd, head.length + 2 * elements * 4);
  closeSync(fd);
  const atEnd = "process.on('exit', () => console.error(process.resourceUsage().maxRSS))";
  await using command = new Command(["inspect", folder.at("large"), "--json"], {}, [process.execPath, "--import", `data:text/javascript,${atEnd}`, main]);
  const { stdout, stderr, code } = await command.ended;
  assert.equal(code, 0, stderr);
  const { elements: found, tensors } = JSON.parse(stdout) as { elements: number; tensors: { w: { step: number } } };
  assert.deepEqual([found, tensors.w.step], [2 * elements, 77]);
  assert.ok(Number(stderr) < 512 * 1024, `${stderr} KiB`);
});

test("an unreadable file is a one-line error that names it", async () => {
  using folder = new Folder();
  mkdirSync(folder.at("folder"));
  const state = readFileSync(FIXTURE);
  const cases: readonly (readonly [string, string])[] = [
    [folder.at("missing"), "expected a file that can be read, found none"],
    [folder.at("folder"), "expected a file, found a folder"],
    [folder.write("empty", ""), "expected a safetensors file of at least 8 bytes, found 0 bytes"],
    [folder.write("text", "# a page, and no file of tensors"), "expected a header of at most 100000000 bytes, found a header length of"],
    [folder.write("short", state.subarray(0, -1)), "bytes of tensors, as the header says, found"],
    [folder.write("cut", state.subarray(0, 100)), "as the first 8 bytes say, found 92 bytes after them"],
    [folder.write("$&", writeState({ optimizer: "none", steps: {}, slots: {} })), '__metadata__.optimizer to be an optimizer of this server, found "none"'],
    [folder.write("negative", writeState({ optimizer: "sgd", steps: { w: -1 }, slots: {} })), "expected step/w from 0 to 2^53 - 1, found -1"],
  ];
  for (const [path, expected] of cases) {
    const { code, stdout, stderr } = await stepd("inspect", path);
    assert.equal(code, 1, stderr);
    assert.equal(stdout, "");
    assert.match(stderr, /^[^\n]+\n$/, "one line");
    assert.ok(stderr.startsWith(`stepd: ${path}: expected `) && stderr.includes(expected), stderr);
  }
});

test("control characters in names and metadata are escaped", async () => {
  using folder = new Folder();
  const name = "w\u001b[2J\n\u202efake";
  const header = JSON.stringify({ __metadata__: { note: "a\u0007b" }, [name]: { dtype: "F32", shape: [1], data_offsets: [0, 4] } });
  const { code, stdout } = await stepd("inspect", folder.write("names", rawTensors(header, Buffer.alloc(4))));
  assert.equal(code, 0);
  assert.match(stdout, /^note: a\\u0007b$/m);
  assert.match(stdout, /^w\\u001b\[2J\\u000a\\u202efake +F32/m);
});

test("a header length near the size of a large file is refused before the header is read", async () => {
  using folder = new Folder();
  const path = folder.write("sparse", Buffer.alloc(8));
  const size = 2 ** 31;
  const file = openSync(path, "r+");
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(size - 8));
  writeSync(file, length);
  ftruncateSync(file, size);
  closeSync(file);
  const { code, stderr } = await stepd("inspect", path);
  assert.equal(code, 1);
  assert.match(stderr, /at most 100000000 bytes/);
});
