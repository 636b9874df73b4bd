/** What this process may use of its machine: memory and processors, within its control groups (of a container, or of systemd). */
import { readFileSync } from "node:fs";
import os from "node:os";

/** The text of a file; undefined where there is none. */
export type ReadText = (path: string) => string | undefined;

export interface Machine {
  /** Bytes of memory that there are. */
  readonly memory: number;
  /** Bytes of memory beyond which the process is killed; undefined without a limit. */
  readonly memoryLimit: number | undefined;
  /** Processors that can be kept busy, at least 1. */
  readonly processors: number;
}

const ROOT = "/sys/fs/cgroup";

const readText: ReadText = (path) => {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return undefined;
  }
};

/** This machine. The limits of a group are also those of the groups around it. */
export const readMachine = (read: ReadText = readText, memory = os.totalmem(), processors = os.availableParallelism()): Machine => {
  const limit = least([...valuesOf(read, "memory", "memory.max"), ...valuesOf(read, "memory", "memory.limit_in_bytes")].map(Number));
  const quotas = [
    ...valuesOf(read, "cpu", "cpu.max").map((text) => text.split(" ").map(Number)),
    ...valuesOf(read, "cpu", "cpu.cfs_quota_us", "cpu.cfs_period_us").map((text) => text.split(" ").map(Number)),
  ];
  const quota = least(quotas.map(([most = Number.NaN, period = Number.NaN]) => most / period));
  return {
    memory,
    memoryLimit: limit !== undefined && limit < memory ? limit : undefined,
    // A part of a processor keeps one worker busy for that part of the time.
    processors: quota === undefined ? processors : Math.max(1, Math.min(processors, Math.ceil(quota))),
  };
};

/** The least of the numbers that are positive and finite: "max", -1 and files that are not there are no limit. */
const least = (values: readonly number[]): number | undefined => {
  const limits = values.filter((value) => value > 0 && Number.isFinite(value));
  return limits.length === 0 ? undefined : Math.min(...limits);
};

/** What files of a controller say in the group of this process and in those around it, with a space between. */
const valuesOf = (read: ReadText, controller: string, ...files: readonly string[]): readonly string[] =>
  foldersOf(read, controller).flatMap((folder) => {
    const texts = files.map((file) => read(`${folder}/${file}`)?.trim());
    return texts.includes(undefined) ? [] : [texts.join(" ")];
  });

/**
 * The folders of this process's groups under a controller, from its own to the root. Version 2 has one tree for all controllers,
 * version 1 one for each. In a container the path may be that of the host, which is not there: its root is the container's group.
 */
const foldersOf = (read: ReadText, controller: string): readonly string[] =>
  (read("/proc/self/cgroup") ?? "").split("\n").flatMap((line) => {
    const [, controllers, path] = /^\d+:([^:]*):(\/.*)$/.exec(line) ?? [];
    if (controllers === undefined || path === undefined) return [];
    if (controllers !== "" && !controllers.split(",").includes(controller)) return [];
    const root = controllers === "" ? ROOT : `${ROOT}/${controller}`;
    const names = path.split("/").filter((name) => name !== "");
    return Array.from({ length: names.length + 1 }, (_, up) => [root, ...names.slice(0, names.length - up)].join("/"));
  });
