/** Compiles and instantiates the kernels. All threads number the kernels by their order in the WebAssembly module. */
import { execFile } from "node:child_process";
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import v8 from "node:v8";
import type { Kernel } from "./_job.ts";
import { digestIn, digestOfSources } from "./sources.ts";

/**
 * Matches the V8 versions with which all tests have passed with revectorization. V8 calls this feature experimental. On a processor with
 * AVX2 it merges two 128-bit instructions into one of 256 bits: AdamW takes half the time in the cache and 0.85 of it in RAM (measured).
 * test/optimizers/determinism.test.ts compares the bits with those of 128-bit vectors.
 */
const WIDE_VERSIONS = /^13\.6\./;
const WIDE_FLAG = "--experimental-wasm-revectorize";

/** Describes the running V8. Builds for other processors lack the flag, and so do some x64 builds. */
export interface V8Build {
  readonly arch: string;
  readonly v8: string;
  /** Returns the output of `node --v8-options`. */
  options(): Promise<string>;
}

const thisV8: V8Build = {
  arch: process.arch,
  v8: process.versions.v8,
  // Node prints the options only at its start, so this starts another process.
  options: async () => (await promisify(execFile)(process.execPath, ["--v8-options"], { maxBuffer: 2 ** 24 })).stdout,
};

/** True if this V8 version is tested with wide vectors and has the flag. V8 prints an error for a flag that it lacks. */
export const supportsWideVectors = async ({ arch, v8, options }: V8Build = thisV8): Promise<boolean> => {
  if (arch !== "x64" || !WIDE_VERSIONS.test(v8)) return false;
  const help = await options().catch(() => "");
  return new RegExp(`^ +${WIDE_FLAG} `, "m").test(help);
};

/**
 * Lets V8 use wide vectors in every kernel that it optimizes from now on, in the whole process. Call this after the workers have
 * started: each thread takes twice as long to start if the flags differ from Node's build-time flags (measured).
 */
export const allowWideVectors = (): void => v8.setFlagsFromString(WIDE_FLAG);

const SOURCES = new URL("../kernels/", import.meta.url);

/** Thrown if the file of compiled kernels is missing, damaged, or built from other sources. */
export class KernelsError extends Error {
  override readonly name = "KernelsError";

  constructor(file: URL, reason: string) {
    super(`${fileURLToPath(file)} ${reason}; npm ci and npm start build it, or node scripts/build-kernels.ts by itself`);
  }
}

/**
 * Compiles the kernels. Throws KernelsError if the file was built from other sources than src/kernels, because a mismatch in the
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

/** Lists the names of the kernels in the module's order. */
export const kernelNames = (module: WebAssembly.Module): readonly string[] =>
  WebAssembly.Module.exports(module)
    .filter(({ kind }) => kind === "function")
    .map(({ name }) => name);

/** Instantiates the kernels on a memory, in the order of `kernelNames`. */
export const instantiate = (module: WebAssembly.Module, memory: WebAssembly.Memory): readonly Kernel[] => {
  const { exports } = new WebAssembly.Instance(module, { env: { memory } });
  return kernelNames(module).map((name) => exports[name] as Kernel);
};
