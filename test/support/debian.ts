/** Finds programs of Debian packages. Installs missing packages if this user may. */
import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { delimiter, join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { promisify } from "node:util";
import { preparing } from "./prepared.ts";

const run = promisify(execFile);

const FOLDERS = [...(process.env["PATH"] ?? "").split(delimiter), "/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

const UPDATE_TRIES = 20;
const UPDATE_PAUSE_MS = 3000;

/** Returns the path of a program. The search includes the folders for system services. */
export const findProgram = (name: string): string | undefined => FOLDERS.map((folder) => join(folder, name)).find((path) => existsSync(path));

/** Runs apt-get, which waits for the lock if another test file is installing too. */
const apt = (...values: readonly string[]) =>
  run("apt-get", ["-qq", "-o", "DPkg::Lock::Timeout=300", ...values], { env: { ...process.env, DEBIAN_FRONTEND: "noninteractive" }, maxBuffer: 2 ** 26 });

/** Updates the package lists, which a bare machine lacks. apt-get does not wait for the lock of the lists. */
export const updateLists = async (): Promise<void> => {
  for (let tries = 1; ; tries++) {
    try {
      await apt("update");
      return;
    } catch (error) {
      if (tries === UPDATE_TRIES) throw error;
      await delay(UPDATE_PAUSE_MS);
    }
  }
};

/** Installs packages, or throws if this user may not. */
export const installPackages = async (...names: readonly string[]): Promise<void> => {
  if (!existsSync("/etc/debian_version") || process.getuid?.() !== 0)
    throw new Error(`expected Debian's ${names.join(", ")} or the like on this machine, or root on Debian to install them; found neither`);
  await preparing(`Installing Debian's ${names.join(", ")}`, async () => {
    await updateLists();
    await apt("install", "--yes", "--no-install-recommends", ...names);
  });
};

/** Returns the paths of programs, each given with its package. Installs all missing packages at once. */
export const debianPrograms = async <Name extends string>(packages: Readonly<Record<Name, string>>): Promise<Readonly<Record<Name, string>>> => {
  const names = Object.keys(packages) as Name[];
  const missing = names.filter((name) => findProgram(name) === undefined);
  if (missing.length > 0) await installPackages(...missing.map((name) => packages[name]));
  const paths = names.map((name) => {
    const path = findProgram(name);
    if (!path) throw new Error(`the package ${packages[name]} brought no ${name}`);
    return [name, path] as const;
  });
  return Object.fromEntries(paths) as Record<Name, string>;
};

/** Returns the path of one program. */
export const debianProgram = async (name: string, packageName: string = name): Promise<string> =>
  (await debianPrograms({ [name]: packageName }))[name] as string;
