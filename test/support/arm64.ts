/** Runs Node for arm64 on an x64 machine: the binary from npm, its libraries from Debian, in qemu's user-mode emulation. */
import { execFile } from "node:child_process";
import { mkdirSync, readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import { debianPrograms } from "./debian.ts";
import { cached, nodeBinary } from "./nodes.ts";

const run = promisify(execFile);

/** Debian packages of the libraries that Node's binary links to. */
const LIBRARIES = ["libc6", "libstdc++6", "libgcc-s1"];

/** Downloads and unpacks arm64 packages of Debian, with separate package lists. */
const unpackLibraries = async (target: string): Promise<void> => {
  const work = join(target, "apt");
  for (const path of ["lists/partial", "cache/archives/partial"]) mkdirSync(join(work, path), { recursive: true });
  const settings = {
    "APT::Architecture": "arm64",
    "APT::Architectures": "arm64",
    "APT::Sandbox::User": "root",
    "Acquire::Languages": "none",
    "Dir::State::Lists": join(work, "lists"),
    "Dir::Cache": join(work, "cache"),
  };
  const options = Object.entries(settings).flatMap(([name, value]) => ["-o", `${name}=${value}`]);
  await run("apt-get", ["-qq", ...options, "update"], { cwd: work, maxBuffer: 2 ** 26 });
  await run("apt-get", ["-qq", ...options, "download", ...LIBRARIES], { cwd: work, maxBuffer: 2 ** 26 });
  for (const file of readdirSync(work).filter((name) => name.endsWith(".deb"))) await run("dpkg-deb", ["-x", join(work, file), target]);
  rmSync(work, { recursive: true });
};

/** Returns the command that runs Node for arm64. Installs missing programs, which needs root on Debian. */
export const arm64Node = async (version: string): Promise<readonly [string, ...string[]]> => {
  const { "qemu-aarch64": qemu } = await debianPrograms({ "qemu-aarch64": "qemu-user", "dpkg-deb": "dpkg" });
  const [libraries, node] = await Promise.all([cached("debian-arm64", unpackLibraries), nodeBinary(version, "linux-arm64")]);
  return [qemu, "-L", libraries, node];
};
