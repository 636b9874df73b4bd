/** Runs an example as a user does. */
import { join } from "node:path";
import { type Ended, runCommand } from "../support/command.ts";
// This import installs Python on a machine without it, because the examples need Python.
import "../support/python.ts";
import { root } from "../support/tree.ts";

/** Runs an example. Without an address, the example starts its own server. */
export const runExample = (example: string, options: readonly string[], url = ""): Promise<Ended> =>
  runCommand(join(root, "examples", example, "run"), options, { env: { ...process.env, STEPD_URL: url } });
