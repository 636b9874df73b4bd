/** The go command for tests: the one that clients/go/toolchain.sh finds, or installs on a bare machine. */
import { execFile } from "node:child_process";
import { join } from "node:path";
import { promisify } from "node:util";
import { root } from "./tree.ts";

const run = promisify(execFile);

let found: Promise<string> | undefined;

/** The path of go, which is as new as the Go client asks. */
export const goCommand = (): Promise<string> => {
  found ??= run("bash", ["-c", "source ./toolchain.sh && use_go >&2 && command -v go"], { cwd: join(root, "clients/go") }).then(({ stdout }) => stdout.trim());
  return found;
};
