/** Measures the resident memory of a server, and computes the limit that its settings promise. */
import { readFileSync, writeFileSync } from "node:fs";
import type { TestService } from "../support/service.ts";

/** The memory of the process itself, and the memory per byte of JSON, from docs/operations.md, "Sizing". */
const PROCESS_MIB = 320;
const PER_JSON_BYTE = 10;

/** The limit is multiplied by this factor for garbage that is not collected yet. */
const GARBAGE_FACTOR = 1.5;

export const memoryLimitMib = ({ STEPD_ARENA_MIB, STEPD_MAX_JSON_MIB }: { readonly STEPD_ARENA_MIB: string; readonly STEPD_MAX_JSON_MIB: string }): number =>
  GARBAGE_FACTOR * (Number(STEPD_ARENA_MIB) + PROCESS_MIB + PER_JSON_BYTE * Number(STEPD_MAX_JSON_MIB));

/** Returns the peak resident memory in MiB since the last call of this function. */
export const peakMib = ({ process: { pid } }: TestService): number => {
  const peak = Number(/VmHWM:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1]) / 1024;
  writeFileSync(`/proc/${pid}/clear_refs`, "5");
  return peak;
};
