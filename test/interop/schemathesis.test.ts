/** Tests /openapi.json with schemathesis: valid and invalid input, in JSON and MessagePack, with all of its checks. */
import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { TestService } from "../support/service.ts";
import { root } from "../support/tree.ts";
import { here, pythonCommand, run } from "./_packages.ts";

/** The time limit of the run, in seconds. */
const MAX_SECONDS = 45;

test("schemathesis reports no failure", async () => {
  mkdirSync(join(root, "build/interop"), { recursive: true });
  const folder = mkdtempSync(join(root, "build/interop/schemathesis-"));
  try {
    mkdirSync(join(folder, "shared"));
    await using service = await TestService.start({
      STEPD_WORKERS: "1",
      STEPD_ARENA_MIB: "64",
      STEPD_CACHE_MIB: "1",
      STEPD_SHARED_DIR: join(folder, "shared"),
    });
    const values = {
      "--checks": "all,refusal_is_of_content",
      "--exclude-checks": "positive_data_acceptance",
      "--seed": "1",
      "--max-examples": "20",
      "--max-time": String(MAX_SECONDS),
      "--generation-database": "none",
    };
    const output = await run(pythonCommand("schemathesis"), ["run", `${service.url}/openapi.json`, "--continue-on-failure", ...Object.entries(values).flat()], {
      cwd: folder,
      env: { SCHEMATHESIS_HOOKS: "schemathesis_hooks", PYTHONPATH: join(here, "python") },
    });
    assert.match(output, /Tested: 13\n/);
    assert.match(output, /✅ +Examples/, output);
    const cases = Number(/(\d+) generated, \1 passed/.exec(output)?.[1]);
    assert.ok(cases > 200, `${cases} cases: ${output}`);
    const warnings = service.log
      .join("")
      .split("\n")
      .filter((line) => /"level":[456]0/.test(line));
    assert.deepEqual(warnings, []);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});
