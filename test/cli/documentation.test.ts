/** What docs/cli.md shows is what the command prints; what it lists is what there is. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { root } from "../support/tree.ts";
import { Command, main, stepd } from "./_command.ts";

const page = readFileSync(join(root, "docs/cli.md"), "utf8");
const shown = [...page.matchAll(/^```console\n\$ stepd (.*)\n([^]*?)^```$/gm)].map(([, args = "", output = ""]) => ({ args: args.split(" "), output }));

test("there are examples", () => {
  assert.ok(shown.length >= 2);
});

for (const { args, output } of shown) {
  test(`stepd ${args.join(" ")}`, async () => {
    await using command = new Command(args, {}, [process.execPath, main], join(root, "test/fixtures"));
    assert.deepEqual(await command.ended, { code: 0, stdout: output, stderr: "" });
  });
}

test("the options that the page names are options", async () => {
  for (const [, name = "", text = ""] of page.matchAll(/^## (serve|inspect|convert|plan|bench)\n([^]*?)(?=^## |$(?![^]))/gm)) {
    const { stdout } = await stepd(name, "--help");
    const unknown = [...text.matchAll(/`[^`\n]*?(--[a-z-]+)/g)].map(([, option = ""]) => option).filter((option) => !stdout.includes(` ${option} `));
    assert.deepEqual(unknown, [], name);
  }
});
