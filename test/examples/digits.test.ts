/** Tests the digits example as a user runs it: one command, a real data set, a real server. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { TestService } from "../support/service.ts";
import { runExample } from "./_run.ts";

const EXAMPLE = "digits";

const accuracyIn = (out: string): number => Number(/test accuracy ([\d.]+)%/.exec(out)?.[1]);

test("the digits example trains to over 95 % on its own server", async () => {
  const { code, out, log } = await runExample(EXAMPLE, ["--epochs", "15"]);
  assert.equal(code, 0, out + log);
  assert.ok(accuracyIn(out) > 95, out);
  const losses = [...out.matchAll(/^epoch +\d+ +loss ([\d.]+)$/gm)].map(([, loss]) => Number(loss));
  assert.equal(losses.length, 15, out);
  assert.ok((losses.at(-1) ?? 1) < 0.2 * (losses[0] ?? 0), out);
  assert.match(log, /100%.*330\/330/);
});

test("the digits example uses the server of STEPD_URL, and prints the same each time", async () => {
  await using service = await TestService.start();
  const options = ["--epochs", "15", "--optimizer", "lamb"];
  const first = await runExample(EXAMPLE, options, service.url);
  const second = await runExample(EXAMPLE, options, service.url);
  assert.equal(first.code, 0, first.out + first.log);
  assert.ok(accuracyIn(first.out) > 95, first.out);
  assert.equal(second.out, first.out);
  assert.ok((await service.metric("stepd_elements_total")) > 0);
});

test("the digits example exits with 1 if it does not learn enough", async () => {
  const { code, out } = await runExample(EXAMPLE, ["--epochs", "1", "--lr", "0"]);
  assert.equal(code, 1);
  assert.ok(accuracyIn(out) < 95, out);
});
