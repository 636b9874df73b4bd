/** Tests the npm package as users get it: packed, installed into an empty folder, and run by npx and by the system's Node. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { JSON_TYPE } from "../support/service.ts";
import { root, TreeCopy } from "../support/tree.ts";
import { Command, Folder, systemNodes } from "./_command.ts";

const manifest = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as { version: string; dependencies: { node: string } };

const folder = new Folder();
after(() => folder[Symbol.dispose]());

/** Runs a program that must succeed. */
const run = (cwd: string, file: string, ...args: readonly string[]): string => {
  const { status, stdout, stderr } = spawnSync(file, args, { cwd, encoding: "utf8", env: { ...process.env, npm_config_update_notifier: "false" } });
  assert.equal(status, 0, `${file} ${args.join(" ")}: ${stdout}${stderr}`);
  return stdout;
};

/** Packs a copy of the tree, which builds dist anew, and installs the package. */
const install = (): readonly string[] => {
  using tree = new TreeCopy([
    ...[
      "bin",
      "src",
      "page",
      "clients/typescript/package.json",
      "clients/typescript/src",
      "schemas",
      "tsconfig.json",
      "tsconfig.build.json",
      "README.md",
      "LICENSE",
    ],
    ...["build/kernels.wasm", "build/kernels.sha256", "build/page"],
  ]);
  const [{ filename, files }] = JSON.parse(run(tree.path, "npm", "pack", "--json", "--silent", "--pack-destination", folder.path)) as [
    { filename: string; files: { path: string }[] },
  ];
  writeFileSync(folder.at("package.json"), "{}");
  run(folder.path, "npm", "install", "--prefer-offline", "--no-audit", "--no-fund", `./${filename}`);
  return files.map(({ path }) => path);
};

const files = install();
const bin = folder.at("node_modules/.bin/stepd");

test("the package contains the JavaScript of every source, the kernels, the page, and nothing else", () => {
  const sources = readdirSync(join(root, "src"), { recursive: true, encoding: "utf8" }).filter((file) => file.endsWith(".ts") && !file.startsWith("kernels/"));
  const expected = [
    ...sources.map((file) => `dist/${file.replace(/\.ts$/, ".js")}`),
    "bin/stepd.js",
    "build/kernels.wasm",
    ...readdirSync(join(root, "build/page")).map((file) => `build/page/${file}`),
    "package.json",
    "README.md",
    "LICENSE",
  ];
  assert.deepEqual([...files].sort(), expected.sort());
});

test("npx stepd --version prints the version", () => {
  assert.equal(run(folder.path, "npx", "stepd", "--version"), `${manifest.version}\n`);
});

test("commands that compute work from the package", () => {
  assert.match(run(folder.path, bin, "plan", "--tensor", "w=1000"), /1,000 parameters/);
  assert.match(run(folder.path, bin, "inspect", join(root, "test/fixtures/adamw.safetensors")), /state of adamw/);
});

/** Sends the step that the README shows, and requires the reply that the README shows. */
const requireReadmeStep = async (address: string): Promise<void> => {
  const readme = readFileSync(join(root, "README.md"), "utf8");
  const body = /-d '(\{.*?)'\n/s.exec(readme)?.[1] ?? "";
  const expected = /^```json\n(.*?)\n```$/ms.exec(readme)?.[1];
  const reply = await fetch(`${address}/v1/step`, { method: "POST", headers: { "Content-Type": JSON_TYPE }, body });
  assert.equal(await reply.text(), expected);
};

const SMALL = { STEPD_ARENA_MIB: "32", STEPD_LOG_LEVEL: "warn" };

for (const node of [undefined, ...systemNodes]) {
  test(`stepd serve ${node === undefined ? "" : `under ${node} `}takes steps on the pinned Node and exits with 0 on SIGTERM`, async () => {
    await using server = new Command(["serve", "--port", "0"], SMALL, node === undefined ? [bin] : [node, bin], folder.path);
    const address = await server.listening();
    const { node: version } = (await (await fetch(`${address}/v1`)).json()) as { node: string };
    assert.equal(version, `v${manifest.dependencies.node}`);
    await requireReadmeStep(address);
    server.child.kill("SIGTERM");
    assert.equal((await server.ended).code, 0);
  });
}

/** Waits until the address refuses connections. */
const requireEnd = async (address: string): Promise<void> => {
  for (let waited = 0; waited < 20_000; waited += 50) {
    const isAnswered = await fetch(`${address}/health/live`).then(
      () => true,
      () => false,
    );
    if (!isAnswered) return;
    await delay(50);
  }
  assert.fail(`the service on ${address} runs on`);
};

test("npx stepd serve takes steps, and ends with npx", async () => {
  await using npx = new Command(["serve", "--port", "0"], SMALL, ["npx", "stepd"], folder.path);
  const address = await npx.listening();
  await requireReadmeStep(address);
  npx.child.kill("SIGTERM");
  await requireEnd(address);
});

test("the service ends if its launcher is killed", async () => {
  // This Node differs from the pinned Node, so the launcher starts the service in a second process.
  await using server = new Command(["serve", "--port", "0"], SMALL, [process.execPath, bin], folder.path);
  const address = await server.listening();
  server.child.kill("SIGKILL");
  await requireEnd(address);
});
