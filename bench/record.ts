/** Reads and writes the results in bench/ratios.json. docs/performance.md shows these results, and --check compares with them. */
import { execFile, execFileSync } from "node:child_process";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import os from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { formatTable } from "../src/cli/terminal.ts";
import type { Report } from "./rounds.ts";

const FILE = join(import.meta.dirname, "ratios.json");

/** A ratio above this multiple of its committed value is a regression. */
const TOLERANCE = 1.2;

export interface Measured extends Report {
  readonly date: string;
  readonly machine: string;
  /** The share of the runs that began while other processes used the machine. */
  readonly disturbed: number;
}

/** The results, by part of the benchmark. */
export type Results = Readonly<Record<string, Measured>>;

export const readRecord = (): Results => (existsSync(FILE) ? JSON.parse(readFileSync(FILE, "utf8")) : {});

/** Writes the parts in the given order. */
export const writeRecord = (record: Results, order: readonly string[]): void => {
  const sorted = Object.fromEntries(order.flatMap((part) => (record[part] ? [[part, record[part]]] : [])));
  writeFileSync(FILE, JSON.stringify(sorted, null, 2));
  // The linter's formatter gives the file the form of all JSON in the repository.
  execFileSync(join(import.meta.dirname, "../node_modules/.bin/biome"), ["format", "--write", FILE], { stdio: "ignore" });
};

/** Describes the machine in one line: processor, cores, memory, Node and, with peers, the versions of torch and the other packages. */
export const describeMachine = async (python: string | undefined): Promise<string> => {
  const words = [
    os.cpus()[0]?.model ?? "unknown processor",
    `${os.availableParallelism()} cores`,
    `${Math.round(os.totalmem() / 2 ** 30)} GiB`,
    `Linux ${os.release().split("-")[0]}`,
    `Node ${process.version.slice(1)}`,
  ];
  if (python !== undefined) {
    const script = "import fastapi, platform, torch, uvicorn; print(platform.python_version(), torch.__version__, fastapi.__version__, uvicorn.__version__)";
    const [version, torch, fastapi, uvicorn] = (await promisify(execFile)(python, ["-c", script])).stdout.trim().split(" ");
    words.push(`Python ${version}`, `torch ${torch}`, `FastAPI ${fastapi}`, `uvicorn ${uvicorn}`);
  }
  return words.join(", ");
};

/**
 * Compares ratios by name. Other load changes the medians, and chance changes the minima, so a ratio counts as slower only if
 * both exceed the tolerance.
 */
export const compare = (measured: Results, record: Results): { readonly text: string; readonly slower: number } => {
  const committed = new Map(Object.values(record).flatMap(({ ratios }) => ratios.map((ratio) => [ratio.name, ratio] as const)));
  let slower = 0;
  const rows = Object.values(measured)
    .flatMap(({ ratios }) => ratios)
    .map(({ name, median, min }) => {
      const before = committed.get(name);
      committed.delete(name);
      const isSlower = before !== undefined && median > before.median * TOLERANCE && min > before.min * TOLERANCE;
      if (isSlower) slower++;
      const verdict = before === undefined ? "new" : isSlower ? "SLOWER" : "ok";
      return [name, median.toFixed(2), min.toFixed(2), before?.median.toFixed(2) ?? "", before?.min.toFixed(2) ?? "", verdict];
    });
  const head = ["ratio", "now", "of minima", "committed", "of minima", ""];
  const missing = committed.size > 0 ? `\n\n${committed.size} committed ratios were not measured in this run` : "";
  return { text: `${formatTable(head, rows)}${missing}\n\n${slower} of ${rows.length} slower by more than ${Math.round((TOLERANCE - 1) * 100)} %`, slower };
};
