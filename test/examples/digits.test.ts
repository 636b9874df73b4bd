/** The example as a user runs it: one command, a real data set, a real server. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { test } from "node:test";
import { pythonIsMissing } from "../support/python.ts";
import { TestService } from "../support/service.ts";

const run = new URL("../../examples/digits/run", import.meta.url).pathname;

const runExample = async (options: readonly string[], env: Readonly<Record<string, string>> = {}): Promise<{ code: number; out: string; log: string }> => {
  const child = spawn(run, options, { env: { ...process.env, ...env }, stdio: ["ignore", "pipe", "pipe"] });
  const out: string[] = [];
  const log: string[] = [];
  child.stdout.on("data", (chunk: Buffer) => out.push(chunk.toString()));
  child.stderr.on("data", (chunk: Buffer) => log.push(chunk.toString()));
  const [code] = (await once(child, "close")) as [number];
  return { code, out: out.join(""), log: log.join("") };
};

const accuracyIn = (out: string): number => Number(/test accuracy ([\d.]+)%/.exec(out)?.[1]);

test("the digits example trains to over 95 % on a server of its own", { skip: pythonIsMissing }, async () => {
  const { code, out, log } = await runExample(["--epochs", "15"]);
  assert.equal(code, 0, out + log);
  assert.ok(accuracyIn(out) > 95, out);
  const losses = [...out.matchAll(/^epoch +\d+ +loss ([\d.]+)$/gm)].map(([, loss]) => Number(loss));
  assert.equal(losses.length, 15, out);
  assert.ok((losses.at(-1) ?? 1) < 0.2 * (losses[0] ?? 0), out);
  assert.match(log, /100%.*330\/330/);
});

test("the digits example uses the server of STEPD_URL, and prints the same twice", { skip: pythonIsMissing }, async () => {
  await using service = await TestService.start();
  const options = ["--epochs", "15", "--optimizer", "lamb"];
  const first = await runExample(options, { STEPD_URL: service.url });
  const second = await runExample(options, { STEPD_URL: service.url });
  assert.equal(first.code, 0, first.out + first.log);
  assert.ok(accuracyIn(first.out) > 95, first.out);
  assert.equal(second.out, first.out);
  assert.ok((await service.metric("stepd_elements_total")) > 0);
});

test("the digits example exits with 1 where it does not learn enough", { skip: pythonIsMissing }, async () => {
  const { code, out } = await runExample(["--epochs", "1", "--lr", "0"]);
  assert.equal(code, 1);
  assert.ok(accuracyIn(out) < 95, out);
});
