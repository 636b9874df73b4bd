/** Determines the memory and processors that this process may use, within its control groups (of a container or systemd). */
import { readFileSync } from "node:fs";
import os from "node:os";

/** Reads a file as text, or returns undefined if the file does not exist. */
export type ReadText = (path: string) => string | undefined;

export interface Machine {
  /** The physical memory in bytes. */
  readonly memory: number;
  /** The kernel kills the process if it exceeds this limit in bytes. Undefined without a limit. */
  readonly memoryLimit: number | undefined;
  /** The number of usable processors, at least 1. */
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

/** Reads the limits of this process's control group and of all enclosing groups. */
export const readMachine = (read: ReadText = readText, memory = os.totalmem(), processors = os.availableParallelism()): Machine => {
  const limit = smallestLimit([...valuesOf(read, "memory", "memory.max"), ...valuesOf(read, "memory", "memory.limit_in_bytes")].map(Number));
  const quotas = [
    ...valuesOf(read, "cpu", "cpu.max").map((text) => text.split(" ").map(Number)),
    ...valuesOf(read, "cpu", "cpu.cfs_quota_us", "cpu.cfs_period_us").map((text) => text.split(" ").map(Number)),
  ];
  const quota = smallestLimit(quotas.map(([most = Number.NaN, period = Number.NaN]) => most / period));
  return {
    memory,
    memoryLimit: limit !== undefined && limit < memory ? limit : undefined,
    // A fraction of a processor still runs one worker for a part of the time, so this rounds up.
    processors: quota === undefined ? processors : Math.max(1, Math.min(processors, Math.ceil(quota))),
  };
};

/** Returns the smallest positive finite number. "max", -1 and missing files mean no limit. */
const smallestLimit = (values: readonly number[]): number | undefined => {
  const limits = values.filter((value) => value > 0 && Number.isFinite(value));
  return limits.length === 0 ? undefined : Math.min(...limits);
};

/** Reads a controller's files in this process's group and in each enclosing group. Joins the contents of a group's files with a space. */
const valuesOf = (read: ReadText, controller: string, ...files: readonly string[]): readonly string[] =>
  foldersOf(read, controller).flatMap((folder) => {
    const texts = files.map((file) => read(`${folder}/${file}`)?.trim());
    return texts.includes(undefined) ? [] : [texts.join(" ")];
  });

/**
 * Lists the folders of this process's control groups, from its own to the root. Version 2 has one tree for all controllers, version 1
 * has one tree per controller. In a container the path may be a host path that does not exist there. The root is then the container's group.
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
