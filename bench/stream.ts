/**
 * Measures the memory limit with kernels that read and write an optimizer's arrays and compute nothing. Compiles the kernels
 * into build/.
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import asc from "assemblyscript/asc";
import type { Unit } from "../src/pool/pool.ts";
import type { Memory } from "./harness.ts";

const root = join(import.meta.dirname, "..");
const output = "build/bench-stream.wasm";

/**
 * Returns the source of a kernel. It adds `zero` times the gradient, which changes nothing. The compiler does not know that `zero`
 * is 0, so it keeps all loads and stores.
 */
const kernelSource = (arrays: number): string => {
  const names = ["param", "grad", "slot0", "slot1"].slice(0, arrays);
  const stored = names.filter((name) => name !== "grad");
  return `export function stream${arrays}(${names.map((name) => `${name}: usize, `).join("")}count: usize, zero: f64): void {
  const mask = i32x4.splat(<i32>zero);
  const bytes = count * 4;
  for (let i: usize = 0; i < bytes; i += 32) {
    const g = v128.and(v128.load(grad + i), mask), h = v128.and(v128.load(grad + i, 16), mask);
${stored.map((name) => `    const ${name}0 = v128.load(${name} + i), ${name}1 = v128.load(${name} + i, 16);`).join("\n")}
${stored.map((name) => `    v128.store(${name} + i, v128.or(${name}0, g));\n    v128.store(${name} + i, v128.or(${name}1, h), 16);`).join("\n")}
  }
}`;
};

/** Compiles stream2, stream3 and stream4 (named by the number of arrays) and returns the module's URL. */
export const buildStream = async (): Promise<URL> => {
  const source = [2, 3, 4].map(kernelSource).join("\n");
  mkdirSync(join(root, "build"), { recursive: true });
  const options = ["-O3", "--runtime", "stub", "--use", "abort=", "--enable", "simd,threads", "--importMemory", "--sharedMemory"];
  const { error, stderr } = await asc.main(["stream.ts", ...options, "--initialMemory", "1", "--maximumMemory", "65536", "--outFile", "stream.wasm"], {
    readFile: (name) => (name === "stream.ts" ? source : null),
    writeFile: (name, contents) => {
      if (name.endsWith(".wasm")) writeFileSync(join(root, output), contents);
    },
    listFiles: () => [],
  });
  if (error) throw new Error(`the stream kernel does not compile: ${error.message}\n${stderr.toString()}`);
  return new URL(`../${output}`, import.meta.url);
};

/** Returns one job for each pass. `passes` lists the number of arrays in each pass. */
export const streamJobs = (
  passes: readonly number[],
  elements: number,
  { param, grad, slot0, slot1 }: Memory,
  kernel: (name: string) => number,
): readonly Unit[] =>
  passes.map((arrays) => ({
    elements,
    calls: [
      {
        kernel: kernel(`stream${arrays}`),
        pointers: [param, grad, slot0, slot1].slice(0, arrays).map((address) => ({ address, stride: Float32Array.BYTES_PER_ELEMENT })),
        scalars: [0],
      },
    ],
  }));
