/** The built kernels: their names, in the order that all threads number them by. */
import type { Kernel } from "./_job.ts";

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
