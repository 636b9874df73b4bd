/** Compiles and instantiates the built kernels. All threads number the kernels by their order in the module. */
import { execFile } from "node:child_process";
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import v8 from "node:v8";
import type { Kernel } from "./_job.ts";
import { digestIn, digestOfSources } from "./sources.ts";

/**
 * V8 versions for which all tests have passed with revectorization, which V8 calls experimental. On a processor with AVX2 it merges
 * two 128-bit instructions into one of 256 bits: AdamW takes half the time in the cache and 0.85 of it in RAM (measured).
 * test/optimizers/determinism.test.ts compares the bits with those of 128-bit vectors.
 */
const WIDE_VERSIONS = /^13\.6\./;
const WIDE_FLAG = "--experimental-wasm-revectorize";

/** The facts that decide whether V8 has the flag. V8 for other processors lacks it, and so do some x64 builds. */
export interface Engine {
  readonly arch: string;
  readonly v8: string;
  /** The output of `node --v8-options`. */
  options(): Promise<string>;
}

const thisEngine: Engine = {
  arch: process.arch,
  v8: process.versions.v8,
  // Node prints them only at start, so this runs another process.
  options: async () => (await promisify(execFile)(process.execPath, ["--v8-options"], { maxBuffer: 2 ** 24 })).stdout,
};

/** True if this V8 version is tested with wide vectors and has the flag. V8 prints an error for a flag that it lacks. */
export const knowsWideVectors = async ({ arch, v8, options }: Engine = thisEngine): Promise<boolean> => {
  if (arch !== "x64" || !WIDE_VERSIONS.test(v8)) return false;
  const help = await options().catch(() => "");
  return new RegExp(`^ +${WIDE_FLAG} `, "m").test(help);
};

/**
 * Lets V8 use wide vectors in every kernel that it optimizes from now on, in the whole process. Call it after the workers have
 * started: with flags other than Node's build-time ones, each thread takes twice as long to start (measured).
 */
export const allowWideVectors = (): void => v8.setFlagsFromString(WIDE_FLAG);

const SOURCES = new URL("../kernels/", import.meta.url);

/** The kernels file is missing, damaged, or built from other sources. */
export class KernelsError extends Error {
  override readonly name = "KernelsError";

  constructor(file: URL, reason: string) {
    super(`${fileURLToPath(file)} ${reason}; npm ci and npm start build it, or node scripts/build-kernels.ts by itself`);
  }
}

/**
 * Compiles the kernels. Throws KernelsError if they were built from other sources than those beside this code: a mismatch in the
 * arguments would give wrong results.
 */
export const compile = async (file: URL, sources: URL = SOURCES): Promise<WebAssembly.Module> => {
  const wasm = await readFile(file).catch((error: NodeJS.ErrnoException) => {
    throw new KernelsError(file, `cannot be read (${error.code})`);
  });
  const module = await WebAssembly.compile(wasm).catch((error: Error) => {
    throw new KernelsError(file, `is damaged (${error.message})`);
  });
  const expected = digestOfSources(fileURLToPath(sources));
  if (expected !== undefined && digestIn(module) !== expected) throw new KernelsError(file, "was built from other sources than those in src/kernels");
  return module;
};

/** The names of the kernel exports, in the module's order. */
export const kernelNames = (module: WebAssembly.Module): readonly string[] =>
  WebAssembly.Module.exports(module)
    .filter(({ kind }) => kind === "function")
    .map(({ name }) => name);

/** Instantiates the kernels over a memory, in the order of `kernelNames`. */
export const instantiate = (module: WebAssembly.Module, memory: WebAssembly.Memory): readonly Kernel[] => {
  const { exports } = new WebAssembly.Instance(module, { env: { memory } });
  return kernelNames(module).map((name) => exports[name] as Kernel);
};
