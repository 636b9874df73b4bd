/**
 * Tests the federated example as a user runs it: real Flower trains eight clients, a second call goes on where the first one ended,
 * and FedAdam needs fewer rounds than FedAvg.
 */
import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import os from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { TestService } from "../support/service.ts";
import { runExample } from "./_run.ts";

const EXAMPLE = "federated";
const STEPS = 'stepd_request_seconds_count{method="optimizer.step",outcome="ok"}';
const ROUNDS = 10;

const folder = mkdtempSync(join(os.tmpdir(), "stepd-federated-"));

let service: TestService;
before(async () => {
  service = await TestService.start();
});
after(async () => {
  await service[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true });
});

const run = async (...options: readonly string[]): Promise<string> => {
  const { code, out, log } = await runExample(EXAMPLE, options, service.url);
  assert.equal(code, 0, out + log);
  return out;
};

interface Row {
  readonly accuracies: readonly number[];
  readonly roundsTo90: number;
}

const rowOf = (out: string, strategy: string): Row => {
  const line = new RegExp(`^${strategy} .*$`, "m").exec(out)?.[0] ?? assert.fail(out);
  const [, ...cells] = line.split(/\s+/);
  return { accuracies: cells.slice(0, -1).map(Number), roundsTo90: Number(cells.at(-1)) };
};

test("a second call goes on with FedAdam, which is ahead of FedAvg, in one step for each round", async () => {
  const kept = ["--folder", folder];
  const first = await run("--rounds", "4", "--strategies", "fed_adam", ...kept);
  assert.ok((rowOf(first, "fed_adam").accuracies.at(-1) ?? 0) > 60, first);
  assert.equal(await service.metric(STEPS), 4);
  const second = await run("--rounds", `${ROUNDS}`, "--strategies", "fed_avg,fed_adam", ...kept);
  const [average, adam] = ["fed_avg", "fed_adam"].map((strategy) => rowOf(second, strategy)) as [Row, Row];
  assert.ok(adam.roundsTo90 < (average.roundsTo90 || Number.POSITIVE_INFINITY), second);
  assert.ok((average.accuracies.at(-1) ?? 0) > 80 && (adam.accuracies.at(-1) ?? 0) > 90, second);
  assert.equal(await service.metric(STEPS), 2 * ROUNDS);
  const { round } = JSON.parse(readFileSync(join(folder, "fed_adam", "latest.json"), "utf8")) as { round: number };
  assert.equal(round, ROUNDS);
});
