/** The resident memory of a server, and what its settings say of it. */
import { readFileSync, writeFileSync } from "node:fs";
import type { TestService } from "../support/service.ts";

/** Of docs/operations.md, "Sizing": the process itself, and what a byte of JSON takes. */
const PROCESS_MIB = 270;
const PER_JSON_BYTE = 10;

/** The part over the sum of sizing that garbage may take until it is collected. */
const SLACK = 1.3;

export const mostMib = ({ STEPD_ARENA_MIB, STEPD_MAX_JSON_MIB }: { readonly STEPD_ARENA_MIB: string; readonly STEPD_MAX_JSON_MIB: string }): number =>
  SLACK * (Number(STEPD_ARENA_MIB) + PROCESS_MIB + PER_JSON_BYTE * Number(STEPD_MAX_JSON_MIB));

/** The most resident memory since the last look, in MiB. */
export const peakMib = ({ process: { pid } }: TestService): number => {
  const peak = Number(/VmHWM:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1]) / 1024;
  writeFileSync(`/proc/${pid}/clear_refs`, "5");
  return peak;
};
