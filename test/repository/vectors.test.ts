/**
 * Tests the golden vectors: each file follows the format, has a recorder that names it, and contains the inputs that its seeds
 * give.
 */
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { suite, test } from "node:test";
import { Ajv } from "ajv";
import { slotShape } from "../../src/engine/state.ts";
import { registry } from "../../src/optimizers/registry.ts";
import { runPython } from "../support/python.ts";
import { root } from "../support/tree.ts";

const folder = join(root, "test/vectors");
const json = (path: string): unknown => JSON.parse(readFileSync(join(folder, path), "utf8"));

interface Raw {
  readonly dtype: "f32" | "f64";
  readonly shape: readonly number[];
  readonly b64: string;
}

interface Run {
  readonly params: Readonly<Record<string, Raw>>;
  readonly state: Readonly<Record<string, Readonly<Record<string, Raw | number>>>>;
}

interface Case {
  readonly name: string;
  readonly optimizer: string;
  readonly peer: string;
  readonly tensors: readonly { readonly name: string; readonly shape: readonly number[] }[];
  readonly initial: Readonly<Record<string, Raw>>;
  readonly steps: readonly { readonly grads: Readonly<Record<string, Raw>>; readonly f32: Run; readonly f64: Run }[];
}

const files = readdirSync(folder, { recursive: true, encoding: "utf8" })
  .filter((path) => path.endsWith(".json") && !path.startsWith("record/"))
  .sort();

const validate = new Ajv({ strictTypes: false, allErrors: true }).compile(json("record/format.schema.json") as object);

/** Checks rules that a schema cannot express: names, shapes and sizes agree with each other. */
const requireConsistent = (file: string, { name, optimizer, peer, tensors, initial, steps }: Case): void => {
  assert.equal(`${optimizer}.${peer}.json`, file, name);
  assert.ok(name.startsWith(`${optimizer}.${peer}.`), name);
  const shapes = new Map(tensors.map((tensor) => [tensor.name, tensor.shape]));
  const definition = registry.get(optimizer);
  const requireArrays = (where: string, arrays: Readonly<Record<string, Raw>>, dtype: string): void => {
    for (const [tensor, raw] of Object.entries(arrays)) {
      assert.deepEqual(raw.shape, shapes.get(tensor), `${name} ${where} ${tensor}`);
      assert.equal(raw.dtype, dtype, `${name} ${where} ${tensor}`);
    }
  };
  const requireSizes = (raw: Raw, where: string): void => {
    const count = raw.shape.reduce((product, size) => product * size, 1);
    assert.equal(Buffer.from(raw.b64, "base64").length, count * (raw.dtype === "f32" ? 4 : 8), `${name} ${where}`);
  };
  requireArrays("initial", initial, "f32");
  for (const [index, { grads, f32, f64 }] of steps.entries()) {
    const where = `step ${index + 1}`;
    requireArrays(where, grads, "f32");
    for (const raw of Object.values(grads)) requireSizes(raw, where);
    for (const [dtype, { params, state }] of Object.entries({ f32, f64 })) {
      assert.deepEqual(Object.keys(params).sort(), [...shapes.keys()].sort(), `${name} ${where}`);
      requireArrays(where, params, dtype);
      for (const raw of Object.values(params)) requireSizes(raw, where);
      for (const [tensor, slots] of Object.entries(state)) {
        for (const [slot, raw] of Object.entries(slots)) {
          if (typeof raw === "number") continue;
          requireSizes(raw, `${where} ${slot}/${tensor}`);
          const expected = definition && slotShape(definition, slot, shapes.get(tensor) ?? []);
          if (raw.shape.length > 0) assert.deepEqual(raw.shape, expected, `${name} ${where} ${slot}/${tensor}`);
        }
      }
    }
  }
};

for (const file of files) {
  suite(file, () => {
    test("follows the format", () => {
      const content = json(file) as { readonly cases: readonly Case[] };
      const isValid = validate(content);
      // A failed oneOf lists errors for both formats. The errors with the deepest paths belong to the intended format.
      const errors = (validate.errors ?? []).toSorted((a, b) => b.instancePath.length - a.instancePath.length).slice(0, 5);
      assert.ok(isValid, errors.map(({ instancePath, message, params }) => `${instancePath} ${message} ${JSON.stringify(params)}`).join("\n"));
      if (file.includes("/")) return;
      for (const testCase of content.cases) requireConsistent(file, testCase);
      const names = content.cases.map(({ name }) => name);
      assert.equal(new Set(names).size, names.length, "two cases have one name");
    });

    test("has a recorder that names it and that run starts", () => {
      // The recorder of a folder has the folder's name, that of another file the name of its peer.
      const peer = file.includes("/") ? file.split("/")[0] : file.split(".")[1];
      const recorder = readFileSync(join(folder, `record/record_${peer}.py`), "utf8");
      assert.ok(recorder.includes(`"${file}"`) || recorder.includes(`"${file.replace(/\.json$/, "")}"`));
      const peers = readFileSync(join(folder, "record/run"), "utf8")
        .match(/^peers=\((.*)\)$/m)?.[1]
        ?.split(" ");
      assert.ok(peers?.includes(peer as string), `run starts ${peers}, not ${peer}`);
    });
  });
}

test("the inputs of each case follow from its seed", async () => {
  assert.match(await runPython("test/vectors/record/recording.py"), /^\d{2,} cases have the inputs of their seeds\n$/);
});
