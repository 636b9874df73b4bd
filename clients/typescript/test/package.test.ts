/**
 * Tests the npm package: built, packed, installed into an empty folder, and used from JavaScript and from strict TypeScript.
 */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import { join } from "node:path";
import { after, before, suite, test } from "node:test";
import { promisify } from "node:util";
import { TestService } from "../../../test/support/service.ts";
import { root } from "../../../test/support/tree.ts";

const run = promisify(execFile);
const tsc = join(root, "node_modules/typescript/bin/tsc");
const client = join(root, "clients/typescript");

/** A user's program, with the steps of the README. */
const PROGRAM = `
import { Client, ShardedClient, State, StepdError } from "@stepd/client";

const [url] = process.argv.slice(2);
const client = new Client(url);
const optimizer = { name: "adamw", lr: 0.1 };
let params = { w: { shape: [3], data: Float32Array.of(1, 2, 3) } };
let state = null;
for (const gradient of [[0.1, 0.2, -0.3], [0.1, -0.2, -0.3]]) {
  const grads = { w: { shape: [3], data: Float32Array.from(gradient) } };
  ({ params, state } = await client.step({ optimizer, params, grads, state }));
}
const sharded = await new ShardedClient([url]).step({ optimizer, params, grads: params, state: new State(state.bytes) });
const refusal = await client.step({ optimizer: { name: "adamw", lr: -1 }, params, grads: {} }).catch((error) => error);
console.log(JSON.stringify({ w: [...params.w.data], steps: state.steps, step: sharded.step, refused: refusal instanceof StepdError && refusal.field }));
`;

/** This program must compile under every strict option: read-only settings, optional members, no wrong hyperparameters. */
const TYPED = `
import { Client, type Group, type Optimizer, type Schedule, ShardedClient, type State, type StepResult, type Tensors, toTensors } from "@stepd/client";

const optimizer = { name: "adamw", lr: 1e-3, betas: [0.9, 0.95] } as const;
const groups: readonly Group[] = [{ tensors: ["*.bias"], optimizer: { weight_decay: 0 } }];
const schedule: Schedule | undefined = Math.random() < 2 ? { name: "multistep", milestones: [10, 20] } : undefined;
export const step = async (client: Client, params: Tensors, grads: Tensors, state: State | null, signal?: AbortSignal): Promise<StepResult> => {
  const clip = grads["w"] ? { max_norm: 1 } : undefined;
  const result = await client.step({ optimizer, groups, schedule, clip, params, grads, state, stats: "global" }, { signal });
  const norm: number | undefined = result.stats?.grad_norm;
  const first: number | undefined = result.params["w"]?.data[0];
  console.log(norm, first, result.state.steps["w"]);
  await client.init({ optimizer, groups: undefined, params });
  await client.norms({ grads, params: undefined, loss_scale: undefined });
  await client.plan({ optimizer, tensors: { w: { shape: [1], dtype: undefined } }, grad_dtype: undefined });
  const { file, lost } = await client.convert({ state: result.state, to: { format: "torch", names: ["w"] } });
  const { lrs } = await client.evaluateSchedule({ schedule: { name: "exponential", gamma: 0.5 }, count: 3 });
  console.log(toTensors(file), lost.length, lrs[0], (await client.info()).version);
  const { state: next, cached } = await client.step({ optimizer, params, grads, state: result.state, cached: result.cached, reply: { cache: true } });
  const steps: number | undefined = next.steps["w"];
  if (cached) await client.step({ optimizer, grads, cached, reply: { params: "bf16", state: "none", cache: true } });
  new Client(client.url, { sharedDir: undefined }).close();
  // @ts-expect-error params must be passed or named in cached
  await client.step({ optimizer, grads });
  // @ts-expect-error the client itself chooses where results go
  await client.step({ optimizer, params, grads, reply: { into: {} } });
  console.log(steps);
  // @ts-expect-error sgd has no betas
  const wrong: Optimizer = { name: "sgd", betas: [0.9, 0.99] };
  // @ts-expect-error there is no such optimizer
  const unknown: Optimizer = { name: "adamv" };
  // @ts-expect-error the sharded client has no statistics
  await new ShardedClient([client.url]).step({ optimizer, params, grads, stats: "global" });
  console.log(wrong, unknown);
  return result;
};
`;

suite("npm package", () => {
  let folder: string;
  before(async () => {
    folder = mkdtempSync(join(os.tmpdir(), "stepd-package-"));
    const [packed, home] = [join(folder, "packed"), join(folder, "home")];
    mkdirSync(packed);
    mkdirSync(home);
    const npm = async (cwd: string, ...command: readonly string[]): Promise<string> => (await run("npm", [...command, "--offline"], { cwd })).stdout;
    // npm builds and packs the client, and packs its only dependency from this repository's node_modules.
    const files = [npm(packed, "pack", "--silent", client), npm(packed, "pack", "--silent", "--ignore-scripts", join(root, "node_modules/@msgpack/msgpack"))];
    writeFileSync(join(home, "package.json"), JSON.stringify({ name: "home", private: true, type: "module" }));
    await npm(home, "install", "--no-audit", "--no-fund", ...(await Promise.all(files)).map((file) => join(packed, file.trim())));
  });
  after(() => rmSync(folder, { recursive: true, force: true }));

  test("holds only the build and the README", async () => {
    const { stdout } = await run("npm", ["pack", "--dry-run", "--json", "--ignore-scripts", client]);
    const [{ files } = { files: [] }] = JSON.parse(stdout) as { files: { path: string }[] }[];
    const paths = files.map(({ path }) => path);
    for (const path of ["README.md", "LICENSE", "package.json", "dist/index.js", "dist/index.d.ts"]) assert.ok(paths.includes(path), path);
    assert.deepEqual(
      paths.filter((path) => !/^(README\.md|LICENSE|package\.json|dist\/[a-z.]+\.(js|d\.ts))$/.test(path)),
      [],
    );
  });

  test("steps from plain JavaScript, with the bits in docs/wire-format.md", async () => {
    await using service = await TestService.start();
    writeFileSync(join(folder, "home/program.js"), PROGRAM);
    const { stdout } = await run(process.execPath, ["program.js", service.url], { cwd: join(folder, "home") });
    assert.deepEqual(JSON.parse(stdout), { w: [...Float32Array.of(0.798101, 1.9013652, 3.193903)], steps: { w: 2 }, step: 3, refused: "/optimizer/lr" });
  });

  test("its types compile under every strict option, with and without Node's types", async () => {
    writeFileSync(join(folder, "home/typed.ts"), TYPED);
    const strict = {
      strict: true,
      exactOptionalPropertyTypes: true,
      noUncheckedIndexedAccess: true,
      noPropertyAccessFromIndexSignature: true,
      skipLibCheck: false,
    };
    const settings = { target: "es2022", lib: ["es2022", "dom"], types: [], noEmit: true, verbatimModuleSyntax: true, ...strict };
    for (const module of [{ module: "nodenext" }, { module: "esnext", moduleResolution: "bundler" }]) {
      writeFileSync(join(folder, "home/tsconfig.json"), JSON.stringify({ compilerOptions: { ...settings, ...module }, files: ["typed.ts"] }));
      const { stdout } = await run(process.execPath, [tsc, "-p", "tsconfig.json"], { cwd: join(folder, "home") }).catch((error: { stdout: string }) => error);
      assert.equal(stdout, "");
    }
  });
});

suite("the README's installation", () => {
  const read = (file: string): string => readFileSync(join(root, file), "utf8");

  test("its commands, unchanged, install the built client and its types", async () => {
    const folder = mkdtempSync(join(os.tmpdir(), "stepd-checkout-"));
    try {
      const [checkout, project] = [join(folder, "stepd/clients/typescript"), join(folder, "project")];
      mkdirSync(project);
      for (const part of ["src", ".npmrc", "package.json", "tsconfig.json"]) cpSync(join(client, part), join(checkout, part), { recursive: true });
      writeFileSync(join(project, "package.json"), JSON.stringify({ name: "project", private: true, type: "module" }));
      const [, command = ""] = /```sh\n(npm install .*?)\n```/s.exec(read("clients/typescript/README.md")) ?? [];
      assert.notEqual(command, "");
      // npm prefers the packages that `npm ci` of this repository has already downloaded.
      const env = { ...process.env, npm_config_prefer_offline: "true", npm_config_audit: "false", npm_config_fund: "false" };
      await run("sh", ["-ec", command], { cwd: project, env });
      const program = 'import { Client } from "@stepd/client"; console.log(new Client("http://127.0.0.1:1").url);';
      const { stdout } = await run(process.execPath, ["--input-type=module", "-e", program], { cwd: project });
      assert.equal(stdout, "http://127.0.0.1:1\n");
      assert.deepEqual(readdirSync(checkout).sort(), [".npmrc", "dist", "node_modules", "package.json", "src", "tsconfig.json"]);
      assert.match(readFileSync(join(project, "node_modules/@stepd/client/dist/index.d.ts"), "utf8"), /ShardedClient/);
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  });

  test("the repository's compiler builds it", () => {
    const [own, whole] = ["clients/typescript/package.json", "package.json"].map(
      (file) => JSON.parse(read(file)) as { devDependencies: Record<string, string> },
    );
    assert.equal(own?.devDependencies["typescript"], whole?.devDependencies["typescript"]);
  });
});
