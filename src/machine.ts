/** The memory and processors that this process may use, within the limits of its control groups (of a container or systemd). */
import { readFileSync } from "node:fs";
import os from "node:os";

/** Reads a file as text. Returns undefined if it does not exist. */
export type ReadText = (path: string) => string | undefined;

export interface Machine {
  /** Physical memory in bytes. */
  readonly memory: number;
  /** The memory limit in bytes, beyond which the process is killed. Undefined without a limit. */
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

/** Reads the limits. The limits of the enclosing control groups apply too. */
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
    // Rounds up, because a fraction of a processor still runs one worker for a fraction of the time.
    processors: quota === undefined ? processors : Math.max(1, Math.min(processors, Math.ceil(quota))),
  };
};

/** The smallest positive finite number. "max", -1 and missing files mean no limit. */
const least = (values: readonly number[]): number | undefined => {
  const limits = values.filter((value) => value > 0 && Number.isFinite(value));
  return limits.length === 0 ? undefined : Math.min(...limits);
};

/** The contents of a controller's files, joined by a space, for this process's group and each enclosing group. */
const valuesOf = (read: ReadText, controller: string, ...files: readonly string[]): readonly string[] =>
  foldersOf(read, controller).flatMap((folder) => {
    const texts = files.map((file) => read(`${folder}/${file}`)?.trim());
    return texts.includes(undefined) ? [] : [texts.join(" ")];
  });

/**
 * The folders of this process's control groups, from its own to the root. Version 2 has one tree for all controllers, version 1
 * one per controller. In a container the path may be the host's and not exist; the root is then the container's group.
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
