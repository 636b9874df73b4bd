/** Tests the surfaces of the Try panel, and the panel's runs against a real server. */
import assert from "node:assert/strict";
import { test } from "node:test";
import type { RpcReply } from "../../page/common/session.ts";
import { run, type StepResult } from "../../page/try/run.ts";
import { noiseOf, surfaces } from "../../page/try/surfaces.ts";
import { TestService } from "../support/service.ts";

test("gradients of all surfaces match finite differences", () => {
  for (const { id, start, value, gradient } of surfaces(20)) {
    const found = gradient(start);
    for (const index of start.keys()) {
      const size = 1e-5;
      const at = (move: number): number => value(start.map((own, other) => (other === index ? own + move : own)));
      const slope = (at(size) - at(-size)) / (2 * size);
      assert.ok(Math.abs((found[index] as number) - slope) < 1e-4 * (1 + Math.abs(slope)), `${id}[${index}]: ${found[index]}, not ${slope}`);
    }
  }
});

test("the best points have the least value and no slope", () => {
  for (const { id, best, minimum, value, gradient } of surfaces(20)) {
    if (!best) continue;
    assert.ok(Math.abs(value(best) - minimum) < 1e-9, id);
    for (const slope of gradient(best)) assert.ok(Math.abs(slope) < 1e-9, id);
  }
});

test("all optimizers of a run see the same noise, which differs from step to step", () => {
  const noisy = surfaces(1).find(({ noise }) => noise !== undefined);
  assert.ok(noisy);
  assert.deepEqual(noiseOf(noisy, 3), noiseOf(noisy, 3));
  assert.notDeepEqual(noiseOf(noisy, 3), noiseOf(noisy, 4));
});

test("a run takes its steps on the server; a run that diverges or is refused ends without stopping the other runs", async () => {
  await using service = await TestService.start();
  const [quadratic] = surfaces(20);
  assert.ok(quadratic);
  const batch = async (calls: readonly { readonly method: string; readonly params: unknown }[]): Promise<readonly RpcReply<StepResult>[]> => {
    const body = JSON.stringify(calls.map((call, id) => ({ jsonrpc: "2.0", id, ...call })));
    return (await (await service.post("/rpc", body, "application/json")).json()) as readonly RpcReply<StepResult>[];
  };
  const runners = [
    { name: "good", optimizer: { name: "adam", lr: 0.1 } },
    { name: "wild", optimizer: { name: "sgd", lr: 1 } },
    { name: "wrong", optimizer: { name: "sgd", lr: -1 } },
  ];
  const [good, wild, wrong] = (await run(runners, quadratic, 200, batch, () => true)) ?? [];
  assert.equal(good?.points.length, 201);
  assert.ok((good?.losses.at(-1) ?? 1) < 1e-2, `${good?.losses.at(-1)}`);
  assert.match(wild?.end ?? "", /^diverged at step \d+$/);
  assert.match(wrong?.end ?? "", /\/optimizer\/lr: expected at least 0, found -1/);
  assert.equal(await run(runners, quadratic, 200, batch, () => false), undefined);
});
