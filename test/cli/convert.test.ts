/** Tests `stepd convert`: it converts files as the service does, and overwrites files only on request. */
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { TestService } from "../support/service.ts";
import { readFile, writeState } from "../support/tensors.ts";
import { root } from "../support/tree.ts";
import { Folder, stepd } from "./_command.ts";

const FIXTURE = join(root, "test/fixtures/adamw.safetensors");

/** Runs a conversion that must succeed. */
const convert = async (...args: readonly string[]): Promise<string> => {
  const { code, stdout, stderr } = await stepd("convert", ...args);
  assert.equal(code, 0, stderr);
  return stdout;
};

test("converting to torch by index and back gives the same bytes", async () => {
  using folder = new Folder();
  const names = folder.write("names", "layer.weight\nlayer.bias\n");
  await convert(FIXTURE, folder.at("torch"), "--to", "torch", "--names", names);
  const { metadata, entries } = readFile(readFileSync(folder.at("torch")));
  assert.equal(metadata["format"], "torch");
  assert.deepEqual(entries.get("state.0.exp_avg")?.shape, [2, 3]);
  assert.deepEqual(entries.get("state.1.exp_avg")?.shape, [3]);
  await convert(folder.at("torch"), folder.at("back"), "--from", "torch", "--optimizer", "adamw", "--names", names);
  assert.ok(readFileSync(folder.at("back")).equals(readFileSync(FIXTURE)));
});

test("converting between foreign formats gives the same bytes as the server", async () => {
  using folder = new Folder();
  await using service = await TestService.start();
  await convert(FIXTURE, folder.at("torch"), "--to", "torch");
  const names = folder.write("names", "layer.bias\nlayer.weight");
  await convert(
    ...[folder.at("torch"), folder.at("qhoptim"), "--from", "torch", "--from-optimizer", "adamw", "--optimizer", "qhadamw"],
    ...["--to", "qhoptim", "--to-names", names, "--to-betas", "0.9,0.999"],
  );
  const { state } = await service.call<{ state: Uint8Array }>("state.convert", {
    state: readFileSync(folder.at("torch")),
    from: { format: "torch", optimizer: "adamw" },
    to: { format: "qhoptim", names: ["layer.bias", "layer.weight"], betas: [0.9, 0.999] },
    optimizer: "qhadamw",
  });
  assert.ok(readFileSync(folder.at("qhoptim")).equals(state));
});

test("convert fills missing slots and reports losses", async () => {
  using folder = new Folder();
  await convert(FIXTURE, folder.at("filled"), "--optimizer", "adam", "--fill", "max_exp_avg_sq");
  const { metadata, entries } = readFile(readFileSync(folder.at("filled")));
  assert.equal(metadata["optimizer"], "adam");
  assert.ok(entries.get("max_exp_avg_sq/layer.bias")?.bytes.equals(entries.get("exp_avg_sq/layer.bias")?.bytes ?? Buffer.alloc(0)));
  const lossy = await stepd("convert", folder.at("filled"), folder.at("optax"), "--to", "optax");
  assert.equal(lossy.code, 0);
  assert.match(lossy.stderr, /^lost: .*max_exp_avg_sq.*\n$/);
  const { out, bytes, lost } = JSON.parse(await convert(folder.at("filled"), folder.at("optax"), "--to", "optax", "--force", "--json")) as {
    out: string;
    bytes: number;
    lost: string[];
  };
  assert.deepEqual([out, bytes, lost.length], [folder.at("optax"), readFileSync(folder.at("optax")).length, 1]);
});

test("convert overwrites only with --force, which also allows the input as output", async () => {
  using folder = new Folder();
  const path = folder.write("state", readFileSync(FIXTURE));
  const { code, stderr } = await stepd("convert", path, path, "--optimizer", "adam");
  assert.equal(code, 1);
  assert.equal(stderr, `stepd: ${path}: expected a path where nothing is, or --force, found a file\n`);
  assert.ok(readFileSync(path).equals(readFileSync(FIXTURE)));
  await convert(path, path, "--optimizer", "adam", "--force");
  assert.equal(readFile(readFileSync(path)).metadata["optimizer"], "adam");
  assert.deepEqual(readdirSync(folder.path), ["state"]);
});

test("a refused conversion prints one line with the option or file, and leaves no output", async () => {
  using folder = new Folder();
  const names = folder.write("names", "only");
  const sgd = folder.write(
    "sgd",
    writeState({ optimizer: "sgd", steps: { w: 1 }, slots: { momentum_buffer: { w: { shape: [1], data: Float32Array.of(1) } } } }),
  );
  await convert(FIXTURE, folder.at("torch"), "--to", "torch", "--names", folder.write("both", "layer.weight\nlayer.bias"));
  const kept = readdirSync(folder.path).sort();
  const out = folder.at("out");
  const cases: readonly (readonly [readonly string[], number, string])[] = [
    [[FIXTURE, "--names", names], 2, "--names: expected no value where the new format is stepd, found an array of 1"],
    [[FIXTURE, "--optimizer", "nope"], 2, "--optimizer: expected one of adabelief,"],
    [[FIXTURE, "--optimizer", "sgd"], 1, "--optimizer: expected adam,"],
    [[FIXTURE, "--to", "torch", "--state-dtype", "Q8"], 2, "--state-dtype: expected F32 or none for a file of torch, which has no narrow moments, found"],
    [[FIXTURE, "--fill", "momentum_buffer"], 2, "--fill: expected one of the slots of adamw that can be added: max_exp_avg_sq, found"],
    [[folder.at("torch"), "--from", "torch"], 2, "--from-optimizer: expected the optimizer of the state, because files of torch do not say it, found none"],
    [
      [folder.at("torch"), "--from", "torch", "--optimizer", "adamw", "--names", names],
      1,
      "--names: expected a name for index 1, which the state has, found 1 names",
    ],
    [[FIXTURE, "--to", "qhoptim"], 2, "--betas: expected the betas of the run"],
    [[FIXTURE, "--names", folder.at("nowhere"), "--to", "torch"], 1, "--names: expected a file of names, found"],
    [[folder.at("nowhere")], 1, `${folder.at("nowhere")}: expected a file that can be read, found none`],
    [[names], 1, `${names}: expected a safetensors file of at least 8 bytes, found 4 bytes`],
    [[sgd, "--from", "torch", "--optimizer", "sgd"], 1, `${sgd}: expected keys state.<parameter>.<slot>`],
  ];
  for (const [[input = "", ...args], code, expected] of cases) {
    const ended = await stepd("convert", input, out, ...args);
    assert.equal(ended.code, code, ended.stderr);
    assert.equal(ended.stdout, "");
    assert.match(ended.stderr, /^[^\n]+\n$/, "one line");
    assert.ok(ended.stderr.startsWith(`stepd: ${expected}`), ended.stderr);
  }
  assert.deepEqual(readdirSync(folder.path).sort(), kept);
  const { code, stderr } = await stepd("convert", FIXTURE, folder.at("no/folder"));
  assert.equal(code, 1);
  assert.equal(stderr, `stepd: ${folder.at("no/folder")}: expected a folder that can be written to, found none\n`);
});
