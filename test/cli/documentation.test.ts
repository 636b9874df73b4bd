/** Tests docs/cli.md: its examples print the output that the page shows, and every option on the page exists. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { root, TreeCopy } from "../support/tree.ts";
import { COMMANDS, Command, Folder, main, stepd, systemNodes } from "./_command.ts";

const page = readFileSync(join(root, "docs/cli.md"), "utf8");
const shown = [...page.matchAll(/^```console\n\$ stepd ([^\n]*)\n(.*?)^```$/gms)].map(([, args = "", output = ""]) => ({ args: args.split(" "), output }));

test("docs/cli.md contains examples", () => {
  assert.ok(shown.length >= 2);
});

for (const { args, output } of shown) {
  test(`stepd ${args.join(" ")}`, async () => {
    await using command = new Command(args, {}, [process.execPath, main], join(root, "test/fixtures"));
    assert.deepEqual(await command.ended, { code: 0, stdout: output, stderr: "" });
  });
}

/** Runs the page's first line with npx, with a separate cache and without a registry. */
const npx = (folder: Folder, line: string): Command => {
  const env = { HOME: folder.path, npm_config_cache: folder.path, npm_config_offline: "true", npm_config_update_notifier: "false" };
  return new Command([], env, line.split(" "));
};

test("the first line of docs/cli.md works in an unmodified checkout", async () => {
  const line = /^```sh\n(npx stepd) COMMAND/m.exec(page)?.[1] ?? "";
  using folder = new Folder();
  for (const args of ["--help", "plan --tensor w=10 --arena-mib 16"]) {
    await using command = npx(folder, `${line} ${args}`);
    const { code, stdout, stderr } = await command.ended;
    assert.equal(code, 0, stderr);
    assert.match(stdout, args === "--help" ? /^Usage: stepd COMMAND/ : /10 parameters/);
  }
});

for (const node of [process.execPath, ...systemNodes]) {
  test(`bin/stepd.js runs the sources of a checkout under ${node}`, async () => {
    await using command = new Command(["inspect", "test/fixtures/adamw.safetensors"], {}, [node, join(root, "bin/stepd.js")]);
    const { code, stdout, stderr } = await command.ended;
    assert.deepEqual([code, stderr], [0, ""]);
    assert.match(stdout, /state of adamw/);
  });
}

for (const node of systemNodes) {
  test(`without the package's Node, bin/stepd.js names the required Node in one line under ${node}`, async () => {
    if (Number.parseInt(spawnSync(node, ["--version"], { encoding: "utf8" }).stdout.slice(1), 10) >= 24) return;
    using tree = new TreeCopy(["bin", "src"]);
    rmSync(join(tree.path, "node_modules"));
    await using command = new Command(["--version"], {}, [node, join(tree.path, "bin/stepd.js")]);
    const { code, stdout, stderr } = await command.ended;
    assert.deepEqual([code, stdout], [1, ""]);
    assert.match(stderr, /^stepd: expected the npm package node beside this one, or Node 24, found Node [^\n]*\n$/);
  });
}

test("every option in docs/cli.md exists", async () => {
  const sections = page.split(/^## /m).map((section) => section.split(/\n/, 1).concat(section));
  for (const [name = "", text = ""] of sections.filter(([name = ""]) => COMMANDS.includes(name))) {
    const { stdout } = await stepd(name, "--help");
    const unknown = [...text.matchAll(/`[^`\n]*?(--[a-z-]+)/g)].map(([, option = ""]) => option).filter((option) => !stdout.includes(` ${option} `));
    assert.deepEqual(unknown, [], name);
  }
});
