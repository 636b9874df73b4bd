/** What docs/cli.md shows is what the command prints; what it lists is what there is. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { root } from "../support/tree.ts";
import { COMMANDS, Command, main, stepd } from "./_command.ts";

const page = readFileSync(join(root, "docs/cli.md"), "utf8");
const shown = [...page.matchAll(/^```console\n\$ stepd ([^\n]*)\n(.*?)^```$/gms)].map(([, args = "", output = ""]) => ({ args: args.split(" "), output }));

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
  const sections = page.split(/^## /m).map((section) => section.split(/\n/, 1).concat(section));
  for (const [name = "", text = ""] of sections.filter(([name = ""]) => COMMANDS.includes(name))) {
    const { stdout } = await stepd(name, "--help");
    const unknown = [...text.matchAll(/`[^`\n]*?(--[a-z-]+)/g)].map(([, option = ""]) => option).filter((option) => !stdout.includes(` ${option} `));
    assert.deepEqual(unknown, [], name);
  }
});
