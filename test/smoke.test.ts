/** Tests one step from socket to kernel and back. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { TestService } from "./support/service.ts";
import { readState, readTensors, writeTensors } from "./support/tensors.ts";

test("AdamW's first step moves each parameter by lr against its gradient, plus weight decay", async () => {
  await using service = await TestService.start();
  const params = writeTensors({ w: { shape: [3], data: Float32Array.of(1, 2, 3) } });
  const grads = writeTensors({ w: { shape: [3], data: Float32Array.of(0.1, 0.2, -0.3) } });
  const result = await service.call<{ params: Uint8Array; state: Uint8Array; step: number }>("optimizer.step", {
    optimizer: { name: "adamw", lr: 0.1 },
    params,
    grads,
  });
  const moved = [...(readTensors(result.params)["w"]?.data ?? [])];
  for (const [index, expected] of [0.899, 1.898, 3.097].entries()) assert.ok(Math.abs((moved[index] ?? 0) - expected) < 1e-6);
  assert.equal(result.step, 1);
  assert.deepEqual(readState(result.state).steps, { w: 1 });
});
