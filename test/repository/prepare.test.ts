/** Tests that requirements are prepared and announced before the tests start. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { runCommand } from "../support/command.ts";
import { root } from "../support/tree.ts";

const { TESTS_PREPARED: _, ...env } = process.env;

/** Calls preparing() as a test file does. */
const prepare = (prepared: boolean) => {
  const script = `import { preparing } from ${JSON.stringify(join(root, "test/support/prepared.ts"))}; console.log(await preparing("Making tea", async () => "tea"));`;
  return runCommand(process.execPath, ["--input-type=module", "--eval", script], { env: { ...env, ...(prepared && { TESTS_PREPARED: "1" }) } });
};

test("work is announced before it is done", async () => {
  const { code, out, log } = await prepare(false);
  assert.deepEqual({ code, out }, { code: 0, out: "tea\n" });
  assert.match(log, /^Making tea \.\.\.\nMaking tea: done in \d+ s\n$/);
});

test("with TESTS_PREPARED set, a test names a missing requirement and does not install it", async () => {
  const { code, out, log } = await prepare(true);
  assert.deepEqual({ code, out }, { code: 1, out: "" });
  assert.match(log, /this test needs what is missing \(Making tea\)/);
  assert.doesNotMatch(log, /Making tea \.\.\./);
});

test("the scripts prepare what their tests need, and a second run finds nothing to do", async () => {
  const { scripts } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as { scripts: Readonly<Record<string, string>> };
  for (const name of ["tools", "container"]) {
    assert.match(scripts[`pretest:${name}`] ?? "", new RegExp(`node test/prepare\\.ts ${name}$`));
    assert.match(scripts[`test:${name}`] ?? "", /^TESTS_PREPARED=1 node /);
  }
  const { code, log } = await runCommand(process.execPath, [join(root, "test/prepare.ts"), "tools"], { env: { ...env, TESTS_PREPARED: "1" } });
  assert.equal(code, 0, log);
});
