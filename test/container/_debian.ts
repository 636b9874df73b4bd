/** Commands that a bare Debian machine gets from its packages. */
import { execFile } from "node:child_process";
import { accessSync, constants, existsSync } from "node:fs";
import { delimiter, join } from "node:path";
import { promisify } from "node:util";

const run = promisify(execFile);

/** The file that a command's name stands for. */
export const findCommand = (name: string): string | undefined =>
  (process.env["PATH"] ?? "")
    .split(delimiter)
    .map((folder) => join(folder, name))
    .find((file) => {
      try {
        accessSync(file, constants.X_OK);
        return true;
      } catch {
        return false;
      }
    });

/** Installs the packages of the commands that are not there, or says what is missing. */
export const install = async (packages: Readonly<Record<string, string>>): Promise<void> => {
  const missing = Object.keys(packages).filter((command) => findCommand(command) === undefined);
  if (missing.length === 0) return;
  if (!existsSync("/etc/debian_version") || process.getuid?.() !== 0)
    throw new Error(`expected ${missing.join(" and ")} on this machine, found neither that nor root on Debian, who could install it`);
  const env = { ...process.env, DEBIAN_FRONTEND: "noninteractive" };
  const options = ["-qq", "-o", "DPkg::Lock::Timeout=300"];
  await run("apt-get", [...options, "update"], { env });
  const names = missing.map((command) => packages[command] as string);
  await run("apt-get", [...options, "install", "--yes", "--no-install-recommends", ...names], { env, maxBuffer: 2 ** 26 });
};
