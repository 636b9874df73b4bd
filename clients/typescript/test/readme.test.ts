/** Tests that the README's examples give the documented results. Each runs as a separate program on a suitable server. */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import { suite, test } from "node:test";
import { promisify } from "node:util";
import { TestService } from "../../../test/support/service.ts";
import { TestFolder } from "./_folder.ts";

const readme = readFileSync(new URL("../README.md", import.meta.url), "utf8");
const blocks = [...readme.matchAll(/```js\n(.*?)```/gs)].map(([, block]) => block as string);
const index = new URL("../src/index.ts", import.meta.url).href;

/** Runs an example with the given address and folder, and returns the value of an expression after its last line. */
const run = async (block: string, url: string, folder: string, value: string): Promise<unknown> => {
  const program = block.replace('"@stepd/client"', JSON.stringify(index)).replace("http://127.0.0.1:8080", url).replace("/dev/shm/stepd", folder);
  const around = `const gradients = [1, 2].map((value) => ({ w: { shape: [2], data: Float32Array.of(value, value) } }));\n${program}\nconsole.log(JSON.stringify(${value}));`;
  const { stdout } = await promisify(execFile)(process.execPath, ["--input-type=module", "-e", around]);
  return JSON.parse(stdout);
};

suite("README", () => {
  // socket.test.ts runs the last example, over a Unix socket.
  const values: readonly (readonly [title: string, value: string, expected: unknown])[] = [
    ["the first", "state.steps.w", 2],
    ["in shared memory", "[state.steps.w, params.w.data.length, state.bytes.length > 8e6]", [3, 1_000_000, true]],
    ["less to send", "[now.state.steps.w, Object.keys(now.cached), params.w.dtype]", [3, ["params", "state"], "BF16"]],
  ];
  for (const [at, [title, value, expected]] of values.entries()) {
    test(title, async () => {
      using folder = new TestFolder();
      await using service = await TestService.start({ STEPD_SHARED_DIR: folder.path, STEPD_CACHE_MIB: "16" });
      assert.deepEqual(await run(blocks[at] ?? "", service.url, folder.path, value), expected);
      assert.deepEqual(folder.files, []);
    });
  }

  test("every example has a test", () => assert.equal(blocks.length, values.length + 1));
});
