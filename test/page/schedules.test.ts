/** Tests that the Schedules panel writes torch code with the same learning rates as the service. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { scheduleOf, torchCode, withSteps } from "../../page/schedules/compose.ts";
import { TestService } from "../support/service.ts";
import { compositions, part, RATE, stepsOf } from "./_compositions.ts";

/** The code that torch ran, with the rates that it gave. */
const recorded = JSON.parse(readFileSync(join(import.meta.dirname, "torch/schedules.json"), "utf8")) as readonly {
  readonly code: string;
  readonly rates: readonly number[];
}[];

test("the panel's torch code equals the recorded code, and the recorded rates equal the service's rates", async () => {
  assert.ok(compositions.length >= 12);
  assert.deepEqual(
    recorded.map(({ code }) => code),
    compositions.map(torchCode),
    "node test/page/torch/record-schedules.ts records the code anew",
  );
  await using service = await TestService.start();
  for (const [index, parts] of compositions.entries()) {
    const { lrs } = await service.call<{ lrs: readonly number[] }>("schedule.evaluate", { schedule: scheduleOf(parts), lr: RATE, count: stepsOf(parts) });
    for (const [step, lr] of lrs.entries()) {
      const found = recorded[index]?.rates[step] ?? Number.NaN;
      assert.ok(Math.abs(found - lr) <= 1e-9 + 1e-6 * lr, `${torchCode(parts)}: step ${step}: ${found}, not ${lr}`);
    }
  }
});

test("an argument that equals the number of steps of a part changes with that number", () => {
  assert.deepEqual(withSteps(part("cosine"), 7).values, { T_max: 7 });
  assert.deepEqual(withSteps({ ...part("cosine"), values: { T_max: 5 } }, 7).values, { T_max: 5 });
});
