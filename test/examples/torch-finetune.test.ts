/**
 * Tests the fine-tuning example as a user runs it: it reaches the accuracy of torch's AdamW, and a resumed run equals an
 * uninterrupted run.
 */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import os from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { TestService } from "../support/service.ts";
import { runExample } from "./_run.ts";

const EXAMPLE = "torch-finetune";
const EPOCHS = ["--epochs", "10"];
const STEPS = 220;
/** A new RemoteOptimizer checks its settings with one step without tensors. */
const CHECK = 1;
const STEPS_DONE = 'stepd_request_seconds_count{method="optimizer.step",outcome="ok"}';

const folder = mkdtempSync(join(os.tmpdir(), "stepd-finetune-"));
after(() => rmSync(folder, { recursive: true }));

const digestIn = (out: string): string => /^sha256 of model and state ([0-9a-f]{64})$/m.exec(out)?.[1] ?? assert.fail(out);

/** Returns the accuracies before and after training, in per cent. */
const accuraciesIn = (out: string, library: string): readonly [number, number] => {
  const found = new RegExp(`^AdamW of ${library} +([\\d.]+)% +([\\d.]+)%$`, "m").exec(out) ?? assert.fail(out);
  return [Number(found[1]), Number(found[2])];
};

test("fine-tuning on stepd matches torch's AdamW, and resuming on another server gives the same bits", async () => {
  await using service = await TestService.start();
  const whole = await runExample(EXAMPLE, EPOCHS, service.url);
  assert.equal(whole.code, 0, whole.out + whole.log);
  const [before, reached] = accuraciesIn(whole.out, "stepd");
  assert.ok(before < 30 && reached > 90, whole.out);
  assert.ok(Math.abs(accuraciesIn(whole.out, "torch")[1] - reached) < 2, whole.out);
  assert.ok(Number(/largest difference of a parameter (\S+)/.exec(whole.out)?.[1]) < 0.05, whole.out);
  assert.match(whole.log, new RegExp(`stepd: 100%.*${STEPS}/${STEPS}`));
  assert.equal(await service.metric(STEPS_DONE), STEPS + CHECK);

  const checkpoint = ["--checkpoint", join(folder, "run.pt")];
  const begun = await runExample(EXAMPLE, [...EPOCHS, ...checkpoint, "--stop-after", "4"], service.url);
  assert.equal(begun.code, 0, begun.log);
  assert.match(begun.out, /^stopped after epoch 4$/m);
  assert.notEqual(digestIn(begun.out), digestIn(whole.out));

  const resumed = await runExample(EXAMPLE, [...EPOCHS, ...checkpoint, "--resume"]);
  assert.equal(resumed.code, 0, resumed.log);
  assert.match(resumed.out, /^resumed after epoch 4$/m);
  assert.match(resumed.log, /stepd: 100%.*132\/132/);
  assert.equal(digestIn(resumed.out), digestIn(whole.out));
  assert.equal(await service.metric(STEPS_DONE), STEPS + 88 + 2 * CHECK);

  const other = await runExample(EXAMPLE, ["--epochs", "3", ...checkpoint, "--resume"], service.url);
  assert.equal(other.code, 1, other.out);
  assert.match(other.log, /--epochs: expected 10 as in .*run\.pt, found 3/);
});
