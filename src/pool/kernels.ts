/** The built kernels: how they are compiled, and their names, in the order that all threads number them by. */
import { execFile } from "node:child_process";
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import v8 from "node:v8";
import type { Kernel } from "./_job.ts";
import { digestIn, digestOfSources } from "./sources.ts";

/**
 * Versions of V8 that may make one instruction of 256 bits of two of 128, where the processor has AVX2: AdamW takes half of
 * the time in the cache and 0.85 of it in RAM (measured). V8 calls it experimental, so it is on only where all tests have passed
 * with it; test/optimizers/determinism.test.ts compares the bits with those of 128.
 */
const WIDE_VERSIONS = /^13\.6\./;
const WIDE_FLAG = "--experimental-wasm-revectorize";

/** What says whether a V8 knows the flag: those for other processors do not, nor do all builds for this one. */
export interface Engine {
  readonly arch: string;
  readonly v8: string;
  /** The help of V8's options. */
  options(): Promise<string>;
}

const thisEngine: Engine = {
  arch: process.arch,
  v8: process.versions.v8,
  // Only a process that is starting prints them.
  options: async () => (await promisify(execFile)(process.execPath, ["--v8-options"], { maxBuffer: 2 ** 24 })).stdout,
};

/** Whether V8 is known to do well with wide vectors and has the flag: it prints an error for one that it has not. */
export const knowsWideVectors = async ({ arch, v8, options }: Engine = thisEngine): Promise<boolean> => {
  if (arch !== "x64" || !WIDE_VERSIONS.test(v8)) return false;
  const text = await options().catch(() => "");
  return new RegExp(`^ +${WIDE_FLAG} `, "m").test(text);
};

/**
 * Lets V8 use wide vectors in all kernels that it optimizes from now on, in all of the process. To be called when the workers are there:
 * with flags that node was not built with, each thread starts in twice the time (measured).
 */
export const allowWideVectors = (): void => v8.setFlagsFromString(WIDE_FLAG);

const SOURCES = new URL("../kernels/", import.meta.url);

/** There are no kernels that this code can run. */
export class KernelsError extends Error {
  override readonly name = "KernelsError";

  constructor(file: URL, reason: string) {
    super(`${fileURLToPath(file)} ${reason}; npm ci and npm start build it, or node scripts/build-kernels.ts by itself`);
  }
}

/**
 * Compiles the kernels, at first without optimizing them. Throws KernelsError where they are not those of the sources beside this
 * code: what kernels read of a job is decided there, so others would compute nonsense.
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

/** Kernel exports in the module's order. */
export const kernelNames = (module: WebAssembly.Module): readonly string[] =>
  WebAssembly.Module.exports(module)
    .filter(({ kind }) => kind === "function")
    .map(({ name }) => name);

/** The kernels over a memory, in the order of `kernelNames`. */
export const instantiate = (module: WebAssembly.Module, memory: WebAssembly.Memory): readonly Kernel[] => {
  const { exports } = new WebAssembly.Instance(module, { env: { memory } });
  return kernelNames(module).map((name) => exports[name] as Kernel);
};
