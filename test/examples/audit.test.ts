/** Tests the audit example as a user runs it, and repeats steps of its ledger on arm64. */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import os from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { arm64Node } from "../support/arm64.ts";
import { runCommand } from "../support/command.ts";
import { root } from "../support/tree.ts";
import { runExample } from "./_run.ts";

const folder = mkdtempSync(join(os.tmpdir(), "stepd-audit-"));
after(() => rmSync(folder, { recursive: true, force: true }));

test("the audit example verifies a run of 200 steps, and finds a changed byte of a gradient, a state and a receipt", async () => {
  const { code, out, log } = await runExample("audit", [folder]);
  assert.equal(code, 0, out + log);
  assert.match(out, /^repeated: 200 lines\nverified$/m);
  assert.match(out, /a gradient of step 57 changed: exit code 1\n {2}step 57: blob: .*the blob of grads was changed\n {2}step 57: repeat: output\.bias:/);
  assert.match(out, /the state before step 121 changed: exit code 1\n {2}step 121: blob: exp_avg_sq\/output\.weight: .*the blob of state was changed/);
  assert.match(out, /the receipt of step 150 changed: exit code 1\n {2}step 150: signature: /);
});

test("steps of the run have the same bits on arm64", async () => {
  const [program, ...args] = await arm64Node(process.versions.node);
  const verify = ["--no-liftoff", join(root, "src/cli/main.ts"), "verify", join(folder, "run.jsonl"), "--key", join(folder, "public.pem")];
  const { code, out, log } = await runCommand(program, [...args, ...verify, "--blobs", join(folder, "blobs"), "--sample", "10", "--arena-mib", "16"]);
  assert.equal(code, 0, out + log);
  assert.match(out, /^repeated: 10 lines\nverified$/m);
});
