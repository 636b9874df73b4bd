/**
 * Tests that every command in the Markdown files runs. The table has every block of commands: this file runs it, another test
 * runs it, or a reason exempts it.
 */
import assert from "node:assert/strict";
import { once } from "node:events";
import { existsSync, globSync, readFileSync } from "node:fs";
import net from "node:net";
import { join } from "node:path";
import { test } from "node:test";
import { runCommand } from "../support/command.ts";
import { TestService } from "../support/service.ts";
import { root } from "../support/tree.ts";

const HERE = "here";
const by = (file: string) => ({ test: file });
const exempt = (reason: string) => ({ exempt: reason });

const ENGINE = exempt("needs a Docker engine that reaches a registry; test/container and test/deploy/compose.test.ts run the same image and file");
const CLUSTER = exempt("needs a cluster; test/deploy/helm.test.ts renders and checks the chart");
const MINUTES = exempt("takes many minutes, or changes the tree");

/** The blocks of commands by page, in order. Each has the beginning of its first line, and how it is checked. */
const BLOCKS: Readonly<Record<string, readonly (readonly [begin: string, how: typeof HERE | { readonly test: string } | { readonly exempt: string }])[]>> = {
  "CONTRIBUTING.md": [
    ["npm ci && npm start", by("test/config.test.ts")],
    ["export PATH=", exempt("runs tests inside of tests")],
    ["npm run lint", exempt("steps of .ci/run; clients/go/run-tests runs clients/go/check")],
  ],
  "README.md": [
    ["npm ci && npm start", by("test/config.test.ts")],
    ["npm test", MINUTES],
    ["curl ", HERE],
    ["pip install", by("clients/python/tests/test_install.py")],
    ["pip install", by("clients/python/tests/test_install.py")],
    ["go mod edit", by("clients/go/module_test.go")],
    ["npm install --prefix", by("clients/typescript/test/package.test.ts")],
  ],
  "bench/README.md": [
    ["npm run bench", MINUTES],
    ["clients/python/environment", MINUTES],
  ],
  "clients/go/README.md": [
    ["go mod edit", by("clients/go/module_test.go")],
    ["go mod vendor", by("clients/go/module_test.go")],
    ["files=", by("clients/go/module_test.go")],
    ["go mod edit", by("clients/go/module_test.go")],
    ["go test -run '^$' -fuzz", MINUTES],
  ],
  "clients/python/README.md": [["pip install", by("clients/python/tests/test_install.py")]],
  "clients/typescript/README.md": [["npm install --prefix", by("clients/typescript/test/package.test.ts")]],
  "docs/adam-improvements.md": [["npm ci", by("test/examples/adam-improvements.test.ts")]],
  "docs/adding-an-optimizer.md": [["npm run generate", by("test/repository/documentation.test.ts")]],
  "docs/audit.md": [["npx stepd verify", by("test/examples/audit.test.ts")]],
  "docs/cli.md": [
    ["npx stepd COMMAND", by("test/cli/documentation.test.ts")],
    ["stepd serve", by("test/cli/documentation.test.ts")],
    ["$ stepd inspect", by("test/cli/documentation.test.ts")],
    ["stepd convert", by("test/cli/documentation.test.ts")],
    ["$ stepd plan", by("test/cli/documentation.test.ts")],
    ["npx stepd verify", by("test/examples/audit.test.ts")],
    ["stepd bench", by("test/cli/bench.test.ts")],
  ],
  "docs/container.md": [
    ["docker build", by("test/container/container.test.ts")],
    ["docker run", by("test/container/container.test.ts")],
  ],
  "docs/deployment.md": [
    ["docker compose", ENGINE],
    ["for replica", ENGINE],
    ["helm install", CLUSTER],
    ["git clone", exempt("installs a service of systemd; test/deploy/systemd.test.ts checks the unit and traces the service")],
  ],
  "docs/jax.md": [["pip install", by("clients/python/tests/test_install.py")]],
  "docs/keras.md": [["pip install", exempt("clients/python/tests/trainers/test_keras.py runs the page's code")]],
  "docs/operations.md": [["kubectl port-forward", CLUSTER]],
  "docs/recipes/dashboards.md": [
    ["docker compose", ENGINE],
    ["prometheus --config.file", by("test/prometheus/scrape.test.ts")],
  ],
  "docs/recipes/decay.md": [["curl ", HERE]],
  "docs/recipes/sending-less.md": [["STEPD_CACHE_MIB=256 npm start", by("clients/python/tests/test_readme.py")]],
  "docs/recipes/three-replicas.md": [
    ["for port", HERE],
    ["kill ", HERE],
  ],
  "docs/schedules.md": [["curl ", HERE]],
  "docs/settings.md": [["STEPD_PORT=8081", by("test/config.test.ts")]],
  "docs/torch.md": [["pip install", by("clients/python/tests/test_install.py")]],
  "examples/adam-improvements/README.md": [["examples/adam-improvements/run", by("test/examples/adam-improvements.test.ts")]],
  "examples/browser/README.md": [["examples/browser/run", by("test/examples/browser.test.ts")]],
  "examples/diloco/README.md": [["npm ci", by("test/examples/diloco.test.ts")]],
  "examples/federated/README.md": [["npm ci", by("test/examples/federated.test.ts")]],
  "examples/go-coordinator/README.md": [["npm ci && npm start", by("test/examples/go-coordinator.test.ts")]],
  "examples/go-trainer/README.md": [
    ["npm ci", by("test/examples/go-trainer.test.ts")],
    ["examples/digits/run", by("test/examples/go-trainer.test.ts")],
  ],
  "examples/torch-finetune/README.md": [
    ["npm ci", by("test/examples/torch-finetune.test.ts")],
    ["examples/torch-finetune/run", by("test/examples/torch-finetune.test.ts")],
  ],
  "test/vectors/record/README.md": [["test/vectors/record/run", MINUTES]],
};

const INSTALLED = ["node_modules", "build", "dist", ".venv", ".git"];
const pages = globSync("**/*.md", { cwd: root, exclude: (path) => INSTALLED.includes(path.split("/").at(-1) ?? "") }).sort();

const blocksOf = (page: string): readonly string[] =>
  [...readFileSync(join(root, page), "utf8").matchAll(/^```(?:sh|console)\n(.*?)^```$/gms)].map(([, block = ""]) => block);

test("the table has every block of commands", () => {
  const found = Object.fromEntries(pages.map((page) => [page, blocksOf(page)] as const).filter(([, blocks]) => blocks.length > 0));
  assert.deepEqual(Object.keys(found), Object.keys(BLOCKS).sort());
  for (const [page, blocks] of Object.entries(found)) {
    assert.equal(blocks.length, BLOCKS[page]?.length, `${page} has another number of blocks`);
    for (const [index, block] of blocks.entries()) assert.ok(block.startsWith(BLOCKS[page]?.[index]?.[0] ?? ""), `${page}: ${block}`);
  }
});

test("every test that the table names exists", () => {
  for (const how of Object.values(BLOCKS).flatMap((blocks) => blocks.map(([, value]) => value)))
    if (typeof how === "object" && "test" in how) assert.ok(existsSync(join(root, how.test)), how.test);
});

const bash = (script: string) => runCommand("bash", ["-euo", "pipefail", "-c", script], { cwd: root });

for (const [page, blocks] of Object.entries(BLOCKS)) {
  for (const [index, [begin, how]] of blocks.entries()) {
    if (how !== HERE || begin !== "curl ") continue;
    test(`${page}: the call with curl gives the reply that the page shows`, async () => {
      await using service = await TestService.start();
      const command = blocksOf(page)[index] ?? "";
      const { code, out, log } = await bash(command.replaceAll("localhost:8080", new URL(service.url).host));
      assert.equal(code, 0, `${out}${log}`);
      const text = readFileSync(join(root, page), "utf8");
      const [, shown] = /^\s*```json\n(.*?)\n```/s.exec(text.slice(text.indexOf(command) + command.length + 3)) ?? [];
      if (shown !== undefined) assert.equal(out, shown);
      if (page.endsWith("decay.md")) {
        const { params } = JSON.parse(out) as { params: Readonly<Record<string, { values: readonly number[] }>> };
        assert.deepEqual(params["fc.bias"]?.values, [1]);
        assert.ok(params["fc.weight"]?.values.every((value) => Math.abs(value - 0.9999) < 1e-6));
      }
    });
  }
}

/** Returns free ports. */
const freePorts = async (count: number): Promise<readonly number[]> => {
  const servers = Array.from({ length: count }, () => net.createServer().listen(0, "127.0.0.1"));
  await Promise.all(servers.map((server) => once(server, "listening")));
  const ports = servers.map((server) => (server.address() as net.AddressInfo).port);
  await Promise.all(servers.map((server) => once(server.close(), "close")));
  return ports;
};

test("the three replicas of the recipe start, answer and stop", async () => {
  const [start = "", stop = ""] = blocksOf("docs/recipes/three-replicas.md");
  const ports = await freePorts(3);
  const ready = ports.map((port) => `curl -sS --fail --retry 120 --retry-delay 1 --retry-all-errors 127.0.0.1:${port}/health/ready`).join("\n");
  // A failure must not leave servers behind, which would keep the pipes of the script open.
  const script = `trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n${start.replace("8081 8082 8083", ports.join(" "))}\n{ ${ready.replaceAll("\n", "; ")}; } >&2\n${stop}\nwait\necho stopped`;
  const { code, out, log } = await bash(script);
  assert.equal(code, 0, log);
  assert.match(out, /stopped\n$/);
});
