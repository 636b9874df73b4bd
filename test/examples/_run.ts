/** Runs an example as a user does. */
import { join } from "node:path";
import { type Ended, runCommand } from "../support/command.ts";
// The examples need Python, which a bare machine gets here.
import "../support/python.ts";
import { root } from "../support/tree.ts";

/** Without an address the example starts a server of its own. */
export const runExample = (example: string, options: readonly string[], url = ""): Promise<Ended> =>
  runCommand(join(root, "examples", example, "run"), options, { env: { ...process.env, STEPD_URL: url } });
