/**
 * Tests the federated example as a user runs it: all three outer steps learn, and optimizers need fewer rounds than averaging.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { TestService } from "../support/service.ts";
import { runExample } from "./_run.ts";

const EXAMPLE = "federated";
const STEPS = 'stepd_request_seconds_count{method="optimizer.step",outcome="ok"}';

interface Row {
  /** The mean accuracies in per cent, at the rounds that the example prints. */
  readonly accuracies: readonly number[];
  readonly roundsTo90: number;
}

const rowOf = (out: string, step: string): Row => {
  const line = new RegExp(`^${step} .*$`, "m").exec(out)?.[0] ?? assert.fail(out);
  const accuracies = [...line.matchAll(/([\d.]+) \+- [\d.]+/g)].map(([, mean]) => Number(mean));
  assert.equal(accuracies.length, 4, line);
  return { accuracies, roundsTo90: Number(/(\d+)$/.exec(line)?.[1] ?? Number.POSITIVE_INFINITY) };
};

test("momentum and Adam as outer steps reach 90 % in fewer rounds than averaging", async () => {
  const { code, out, log } = await runExample(EXAMPLE, []);
  assert.equal(code, 0, out + log);
  assert.match(log, /adam: 100%.*900\/900/);
  const [averaging, momentum, adam] = ["averaging", "momentum", "adam"].map((step) => rowOf(out, step)) as [Row, Row, Row];
  for (const { accuracies } of [averaging, momentum, adam]) assert.ok((accuracies.at(-1) ?? 0) > 90, out);
  assert.ok(averaging.roundsTo90 > 20, out);
  assert.ok(momentum.roundsTo90 < averaging.roundsTo90, out);
  assert.ok(adam.roundsTo90 < averaging.roundsTo90, out);
});

test("every outer step is one call, and equal seeds give equal tables", async () => {
  await using service = await TestService.start();
  const options = ["--rounds", "6", "--seeds", "2"];
  const first = await runExample(EXAMPLE, options, service.url);
  assert.equal(first.code, 0, first.log);
  assert.equal(await service.metric(STEPS), 3 * 6 * 2);
  const second = await runExample(EXAMPLE, options, service.url);
  assert.equal(second.out, first.out);
});
