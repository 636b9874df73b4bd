/** Tests that V8 compiles kernels written as pairs of vectors to 256-bit instructions, except where it must not. */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import { suite, test } from "node:test";
import { promisify } from "node:util";
import { registry } from "../../src/optimizers/registry.ts";
import { supportsWideVectors } from "../../src/pool/kernels.ts";

const kernelsTs = new URL("../../src/pool/kernels.ts", import.meta.url);
const kernelsWasm = new URL("../../build/kernels.wasm", import.meta.url);

/** The address of a kernel call's scalars. */
const SCALARS = 1024;

interface Call {
  readonly kernel: string;
  /** The number of operands in memory. All operands are null pointers, and there are no elements. */
  readonly pointers: number;
  readonly scalars: readonly number[];
}

interface Options {
  readonly allowed?: boolean;
  readonly flags?: readonly string[];
}

/** Returns how often V8 reports that it merges two vectors while it compiles the kernel for such a call. */
const countMergedVectors = async ({ kernel, pointers, scalars }: Call, { allowed = true, flags = [] }: Options = {}): Promise<number> => {
  const operands = [...Array<number>(pointers + 1).fill(0), SCALARS];
  const script = `
    import { allowWideVectors, compile, instantiate, kernelNames } from ${JSON.stringify(kernelsTs.href)};
    const module = await compile(new URL(${JSON.stringify(kernelsWasm.href)}));
    const memory = new WebAssembly.Memory({ initial: 1, maximum: 65536, shared: true });
    const kernels = instantiate(module, memory);
    new Float64Array(memory.buffer, ${SCALARS}).set(${JSON.stringify(scalars)});
    if (${allowed}) allowWideVectors();
    kernels[kernelNames(module).indexOf(${JSON.stringify(kernel)})](...${JSON.stringify(operands)});`;
  // V8 compiles a function at its first call, so the count belongs to the loop that these scalars select.
  const args = ["--no-liftoff", "--trace-wasm-revectorize", ...flags, "--input-type=module", "--eval", script];
  const { stdout } = await promisify(execFile)(process.execPath, args, { maxBuffer: 2 ** 28 });
  return stdout.matchAll(/Decide to vectorize/g).toArray().length;
};

/** Returns the kernel calls of an optimizer's step, with the default hyperparameters except for `values`. */
const callsOf = (optimizer: string, values: Readonly<Record<string, unknown>> = {}, dtype = "f32"): readonly Call[] => {
  const definition = registry.get(optimizer);
  assert.ok(definition);
  const defaults = Object.entries(definition.hyperparameters).map(([name, { default: initial }]: [string, { default?: unknown }]) => [name, initial]);
  return definition.stages({ ...Object.fromEntries(defaults), ...values } as never, []).map(({ kernel, operands, scalars }) => ({
    kernel: `${kernel}_${dtype}`,
    pointers: operands.length,
    scalars: scalars({ step: 10, lr: 1e-3, isFirst: false, elements: 1, sums: [[1, 1]], allSums: [[1, 1]], scalarSlots: {} }),
  }));
};

const decayed = { weight_decay: 0.1 };

const STEPS: Readonly<Record<string, readonly Call[]>> = {
  sgd: callsOf("sgd"),
  "sgd, weight decay": callsOf("sgd", decayed),
  "sgd, momentum": callsOf("sgd", { momentum: 0.9 }),
  "sgd, nesterov": callsOf("sgd", { momentum: 0.9, nesterov: true, ...decayed }),
  qhm: callsOf("qhm", { momentum: 0.9 }),
  adam: callsOf("adam"),
  "adam, weight decay": callsOf("adam", decayed),
  adamw: callsOf("adamw"),
  "adamw, float64": callsOf("adamw", {}, "f64"),
  qhadam: callsOf("qhadam"),
  qhadamw: callsOf("qhadamw", decayed),
  lamb: callsOf("lamb", decayed),
  "lamb, caution": callsOf("lamb", { caution: true }).slice(0, 1),
  nadam: callsOf("nadam"),
  radam: callsOf("radam"),
  adamax: callsOf("adamax"),
  adagrad: callsOf("adagrad"),
  adadelta: callsOf("adadelta"),
  rmsprop: callsOf("rmsprop"),
  lion: callsOf("lion"),
  "lion, caution": callsOf("lion", { caution: true, ...decayed }),
  yogi: callsOf("yogi"),
  adabelief: callsOf("adabelief"),
  adopt: callsOf("adopt"),
  signum: callsOf("signum"),
  asgd: callsOf("asgd", { t0: 0 }),
  rprop: callsOf("rprop"),
  schedule_free_adamw: callsOf("schedule_free_adamw"),
  schedule_free_sgd: callsOf("schedule_free_sgd"),
  adan: callsOf("adan", decayed),
  ademamix: callsOf("ademamix", decayed),
};

/** Kernels that pass over gradients, and kernels that convert between dtypes. */
const PASSES: readonly Call[] = [
  ...["scale", "divide", "clamp"].map((name) => ({ kernel: `gradient_${name}_f32`, pointers: 1, scalars: [2] })),
  ...["bf16_f32", "f16_f32", "f32_bf16", "f32_f16"].map((name) => ({ kernel: `convert_${name}`, pointers: 2, scalars: [] })),
  { kernel: "convert_stochastic_f32_bf16", pointers: 3, scalars: [1, 2] },
  { kernel: "moments_f32_bf16", pointers: 4, scalars: [1, 2] },
  ...["signed", "square"].map((kind) => ({ kernel: `moments_${kind}_f32_q8`, pointers: 5, scalars: [1, 2] })),
  ...["signed", "square"].map((kind) => ({ kernel: `moments_${kind}_q8_f32`, pointers: 3, scalars: [] })),
];

const hasAvx2 = process.arch === "x64" && process.platform === "linux" && / avx2 /.test(readFileSync("/proc/cpuinfo", "utf8"));
const isWide = hasAvx2 && process.versions.v8.startsWith("13.6.");

const requireWide = async (call: Call): Promise<void> => {
  const count = await countMergedVectors(call);
  if (isWide) assert.ok(count > 0, `V8 kept all of ${call.kernel} at 128 bits`);
  else assert.equal(count, 0);
};

suite("kernels use 256 bits if the processor and Node support them", () => {
  for (const [label, calls] of Object.entries(STEPS)) {
    test(label, async () => {
      for (const call of calls) await requireWide(call);
    });
  }
  for (const call of PASSES) test(call.kernel, () => requireWide(call));
});

suite("kernels use 128 bits", () => {
  const [adamw] = callsOf("adamw");
  assert.ok(adamw);
  test("without wide vectors", async () => {
    assert.equal(await countMergedVectors(adamw, { allowed: false }), 0);
  });
  test("without AVX2 in the processor", async () => {
    assert.equal(await countMergedVectors(adamw, { flags: ["--no-enable-avx2"] }), 0);
  });
});

test("wide vectors are requested only if V8 has the flag", async () => {
  const options = async (): Promise<string> => "Options:\n  --experimental-wasm-revectorize (enable it)\n        type: bool\n";
  const engine = { arch: "x64", v8: "13.6.233.17-node.53", options };
  const none = async (): Promise<never> => assert.fail("its options are not asked for");
  assert.equal(await supportsWideVectors(engine), true);
  assert.equal(await supportsWideVectors({ ...engine, arch: "arm64", options: none }), false);
  assert.equal(await supportsWideVectors({ ...engine, v8: "14.1.1", options: none }), false);
  assert.equal(await supportsWideVectors({ ...engine, options: async () => "  --trace-wasm-revectorize (trace)\n" }), false);
  assert.equal(await supportsWideVectors({ ...engine, options: () => Promise.reject(new Error("no process can be started")) }), false);
});

test("supportsWideVectors() agrees with the flags that this Node's V8 lists", async () => {
  const { stdout } = await promisify(execFile)(process.execPath, ["--v8-options"], { maxBuffer: 2 ** 24 });
  const isKnown = process.arch === "x64" && process.versions.v8.startsWith("13.6.") && / --experimental-wasm-revectorize /.test(stdout);
  assert.equal(await supportsWideVectors(), isKnown);
});
