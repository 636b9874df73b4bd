/** Tests the release: the workflow pins its actions and runs commands that exist, and all packages have one version. */
import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { parse } from "yaml";
import { root } from "../support/tree.ts";

const read = (file: string): string => readFileSync(join(root, file), "utf8");

interface Step {
  readonly uses?: string;
  readonly run?: string;
  readonly with?: Readonly<Record<string, unknown>>;
}

interface Job {
  readonly needs?: string | readonly string[];
  readonly permissions?: Readonly<Record<string, string>>;
  readonly "timeout-minutes"?: number;
  readonly steps: readonly Step[];
}

const text = read(".github/workflows/release.yml");
const workflow = parse(text) as {
  readonly on: { readonly push: { readonly tags: readonly string[] } };
  readonly permissions: object;
  readonly jobs: Readonly<Record<string, Job>>;
};
const jobs = Object.entries(workflow.jobs);
const steps = jobs.flatMap(([, job]) => job.steps);

test("a tag starts the workflow, which may only read unless a job says more", () => {
  assert.deepEqual(workflow.on, { push: { tags: ["v*.*.*"] } });
  assert.deepEqual(workflow.permissions, { contents: "read" });
  for (const [name, job] of jobs) assert.ok((job["timeout-minutes"] ?? 0) > 0, `${name} has no time limit`);
});

test("every action is pinned by a commit, with its version beside it", () => {
  const lines = text.split("\n").filter((line) => /\buses:/.test(line));
  assert.equal(lines.length, steps.filter(({ uses }) => uses).length);
  for (const line of lines) assert.match(line, /uses: [\w-]+\/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$/);
  const pins = new Set(lines.map((line) => line.split("uses: ")[1]));
  assert.equal(new Set([...pins].map((pin) => pin?.split("@")[0])).size, pins.size, "an action is pinned at two versions");
});

test("the release waits for every other job, and each job for jobs that exist", () => {
  const needs = (job: Job | undefined): readonly string[] => [job?.needs ?? []].flat();
  for (const [name, job] of jobs) for (const other of needs(job)) assert.ok(workflow.jobs[other], `${name} needs ${other}`);
  const reached = new Set<string>();
  const reach = (name: string): void => {
    reached.add(name);
    needs(workflow.jobs[name]).forEach(reach);
  };
  reach("release");
  assert.deepEqual([...reached].sort(), Object.keys(workflow.jobs).sort());
});

test("the release has packages, wheels, images of two platforms, a chart, checksums, an SBOM and provenance", () => {
  const commands = steps.map(({ run }) => run ?? "").join("\n");
  for (const command of [/npm pack/, /pip wheel/, /helm package/, /sha256sum/, /npm sbom/, /gh release create .*--draft/]) assert.match(commands, command);
  const image = steps.find(({ uses }) => uses?.startsWith("docker/build-push-action@"));
  assert.deepEqual([image?.with?.["platforms"], image?.with?.["sbom"], image?.with?.["provenance"]], ["linux/amd64,linux/arm64", true, "mode=max"]);
  const attesting = jobs.filter(([, job]) => job.steps.some(({ uses }) => uses?.startsWith("actions/attest-build-provenance@")));
  assert.deepEqual(
    attesting.map(([name]) => name),
    ["image", "release"],
  );
  for (const [, { permissions = {} }] of attesting) assert.deepEqual([permissions["id-token"], permissions["attestations"]], ["write", "write"]);
});

test("the commands of the workflow exist in this repository", () => {
  const { scripts } = JSON.parse(read("package.json")) as { scripts: Readonly<Record<string, string>> };
  const commands = steps.map(({ run }) => run ?? "").join("\n");
  for (const [, name = ""] of commands.matchAll(/npm run ([\w:]+)/g)) assert.ok(scripts[name], name);
  const paths = [...commands.matchAll(/(?:^|\s|\.\/)((?:clients|deploy)\/[\w/-]+)/g)].map(([, path]) => path as string);
  assert.ok(paths.length > 3);
  for (const path of paths) assert.ok(existsSync(join(root, path)), path);
  // The shell must not see values of the event, which others may choose.
  for (const { run } of steps) assert.doesNotMatch(run ?? "", /\$\{\{/);
});

test("all packages have the same version", () => {
  const { version } = JSON.parse(read("package.json")) as { version: string };
  const places: readonly (readonly [file: string, pattern: RegExp])[] = [
    ["clients/typescript/package.json", /"version": "([^"]+)"/],
    ["clients/python/src/stepd/_version.py", /__version__ = "([^"]+)"/],
    ["deploy/helm/stepd/Chart.yaml", /^version: (\S+)$/m],
    ["deploy/helm/stepd/Chart.yaml", /^appVersion: (\S+)$/m],
    ["CITATION.cff", /^version: (\S+)$/m],
    ["Dockerfile", /^ARG VERSION=(\S+)$/m],
    ["site/package.json", /"version": "([^"]+)"/],
  ];
  for (const [file, pattern] of places) assert.equal(pattern.exec(read(file))?.[1], version, file);
});

test("RELEASE.md names the files that hold the version", () => {
  const text = read("RELEASE.md");
  for (const file of [
    "package.json",
    "clients/typescript/package.json",
    "clients/python/src/stepd/_version.py",
    "deploy/helm/stepd/Chart.yaml",
    "CITATION.cff",
    "Dockerfile",
    "site/package.json",
  ])
    assert.ok(text.includes(`\`${file}\``), file);
});
