/** That V8 does make 256-bit instructions of the kernels that are written in pairs of vectors, and none where it may not. */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import os from "node:os";
import { suite, test } from "node:test";
import { promisify } from "node:util";

const kernelsTs = new URL("../../src/pool/kernels.ts", import.meta.url);
const kernelsWasm = new URL("../../build/kernels.wasm", import.meta.url);

/** How often V8 says in compiling a kernel that it makes one vector of two. */
const widened = async (kernel: string, wideVectors: boolean, flags: readonly string[] = []): Promise<number> => {
  const script = `
    import { compile, instantiate, kernelNames } from ${JSON.stringify(kernelsTs.href)};
    const module = await compile(new URL(${JSON.stringify(kernelsWasm.href)}), ${wideVectors});
    const memory = new WebAssembly.Memory({ initial: 1, maximum: 65536, shared: true });
    const run = instantiate(module, memory)[kernelNames(module).indexOf(${JSON.stringify(kernel)})];
    run(...new Array(run.length).fill(0));`;
  // Each kernel is compiled when it is called, so that this says what became of one.
  const args = ["--no-liftoff", "--trace-wasm-revectorize", ...flags, "--input-type=module", "--eval", script];
  const { stdout } = await promisify(execFile)(process.execPath, args, { maxBuffer: 2 ** 28 });
  return stdout.matchAll(/Decide to vectorize/g).toArray().length;
};

const hasAvx2 = os.arch() === "x64" && / avx2 /.test(readFileSync("/proc/cpuinfo", "utf8"));
const isKnown = process.versions.v8.startsWith("13.6.");

suite("kernels in pairs of vectors", () => {
  for (const kernel of [
    "adam_f32",
    "adamw_f32",
    "adamw_f64",
    "qhadam_f32",
    "qhadamw_f32",
    "sgd_f32",
    "sgd_momentum_f32",
    "lamb_moments_f32",
    "lamb_apply_f32",
    "adagrad_f32",
    "adagrad_f64",
    "rmsprop_f32",
    "adadelta_f32",
    "adamax_f32",
    "radam_f32",
    "lion_f32",
    "lion_cautious_f32",
    "lion_apply_f32",
    "lars_apply_f64",
    "qhm_f32",
    "qhm_f64",
    "convert_bf16_f32",
    "convert_f16_f32",
    "convert_f32_bf16",
    "convert_f32_f16",
    "convert_stochastic_f32_bf16",
  ]) {
    test(`${kernel}: 256 bits where this processor and this Node have them`, async () => {
      const count = await widened(kernel, true);
      if (hasAvx2 && isKnown) assert.ok(count > 0, "V8 kept all of it at 128 bits");
      else assert.equal(count, 0);
    });
  }

  test("128 bits where wide vectors are off", async () => {
    assert.equal(await widened("adamw_f32", false), 0);
  });

  test("128 bits on a processor without AVX2", async () => {
    assert.equal(await widened("adamw_f32", true, ["--no-enable-avx2"]), 0);
  });
});
