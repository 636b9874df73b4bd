/** Programs of Debian packages: installed where they are missing and this user may. */
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";

const FOLDERS = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"];

const find = (program: string): string | undefined => FOLDERS.map((folder) => `${folder}/${program}`).find((path) => existsSync(path));

const apt = (...values: readonly string[]): void => {
  const environment = { PATH: FOLDERS.join(":"), DEBIAN_FRONTEND: "noninteractive" };
  // Another test file may be installing too: apt-get waits for its lock.
  const { status, stderr } = spawnSync("apt-get", ["-qq", "-o", "DPkg::Lock::Timeout=300", ...values], { env: environment, encoding: "utf8" });
  if (status !== 0) throw new Error(`apt-get ${values.join(" ")}: ${stderr}`);
};

/** The path of a program, from a package that is installed if need be. */
export const debianProgram = (program: string, packageName: string = program): string => {
  const path = find(program);
  if (path) return path;
  if (process.getuid?.() !== 0) throw new Error(`${program} is missing, and only root can install it: apt-get install ${packageName}`);
  apt("update");
  apt("install", "-y", "--no-install-recommends", packageName);
  const installed = find(program);
  if (!installed) throw new Error(`the package ${packageName} brought no ${program}`);
  return installed;
};
