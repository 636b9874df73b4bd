/** Tests that the examples of the READMEs give the documented results. Each runs as a separate program on a suitable server. */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import { suite, test } from "node:test";
import { promisify } from "node:util";
import { TestService } from "../../../test/support/service.ts";
import { TestFolder } from "./_folder.ts";

const [readme, whole] = ["../README.md", "../../../README.md"].map((file) => readFileSync(new URL(file, import.meta.url), "utf8")) as [string, string];

/** Returns the fenced code blocks of a language, in order. */
const codeBlocks = (text: string, language: string): readonly string[] =>
  [...text.matchAll(new RegExp(`\`\`\`${language}\\n(.*?)\`\`\``, "gs"))].map(([, block]) => block as string);

const blocks = codeBlocks(readme, "js");
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
    ["a run that stays on the server", "[state.steps.w, params.w.data.length]", [3, 2]],
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

suite("the repository's README", () => {
  test("its step runs", async () => {
    using folder = new TestFolder();
    await using service = await TestService.start();
    const [block = "", ...others] = codeBlocks(whole, "js");
    assert.deepEqual(others, []);
    const tensors = "const grads = { w: { shape: [1], data: Float32Array.of(1) } };\nlet [params, state] = [grads, null];\n";
    assert.equal(await run(`${tensors}${block}`, service.url, folder.path, "state.steps.w"), 1);
  });

  // package.test.ts runs these commands.
  test("its commands are those of the client's README", () => {
    const [commands = ""] = codeBlocks(readme, "sh");
    assert.ok(codeBlocks(whole, "sh").includes(commands), commands);
  });
});
