/**
 * Tests that AdamW with weight decay over 1,000 steps has at most a tenth of torch's error against float64. The test computes
 * torch's float32 error itself: torch's order of operations, each result rounded, matches torch to three digits. torch's fused
 * multiply-adds matter little beside the bias of the rounded factor 1 - lr*weight_decay.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { TestService } from "../support/service.ts";
import { random, readTensors, writeTensors } from "../support/tensors.ts";

const ELEMENTS = 1000;
const STEPS = 1000;
const { fround, sqrt } = Math;

const settings = { name: "adamw", lr: 1e-3, betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.01 } as const;

test("AdamW after 1,000 steps has at most 0.1 times the error of torch's float32 against float64", async () => {
  await using service = await TestService.start();
  const next = random(7);
  const start = Float32Array.from({ length: ELEMENTS }, next);
  const { lr, betas, eps, weight_decay: decay } = settings;
  const [beta1, beta2] = betas;
  const exact = { p: Float64Array.from(start), m: new Float64Array(ELEMENTS), v: new Float64Array(ELEMENTS) };
  const torch = { p: start.slice(), m: new Float32Array(ELEMENTS), v: new Float32Array(ELEMENTS) };
  let params: Uint8Array = writeTensors({ w: { shape: [ELEMENTS], data: start } });
  let state: Uint8Array | null = null;
  const at = (array: Float32Array | Float64Array, index: number): number => array[index] as number;

  for (let t = 1; t <= STEPS; t++) {
    const grad = Float32Array.from({ length: ELEMENTS }, next);
    const c1 = 1 - beta1 ** t;
    const c2 = 1 - beta2 ** t;
    for (let i = 0; i < ELEMENTS; i++) {
      const g = at(grad, i);
      exact.m[i] = beta1 * at(exact.m, i) + (1 - beta1) * g;
      exact.v[i] = beta2 * at(exact.v, i) + (1 - beta2) * g * g;
      exact.p[i] = at(exact.p, i) * (1 - lr * decay) - ((lr / c1) * at(exact.m, i)) / (sqrt(at(exact.v, i) / c2) + eps);

      torch.p[i] = at(torch.p, i) * fround(1 - lr * decay);
      torch.m[i] = at(torch.m, i) + fround(fround(1 - beta1) * fround(g - at(torch.m, i)));
      torch.v[i] = fround(at(torch.v, i) * fround(beta2)) + fround(fround(fround(1 - beta2) * g) * g);
      const denominator = fround(fround(fround(sqrt(at(torch.v, i))) / fround(sqrt(c2))) + fround(eps));
      torch.p[i] = at(torch.p, i) - fround(fround(lr / c1) * fround(at(torch.m, i) / denominator));
    }
    const reply: { params: Uint8Array; state: Uint8Array } = await service.call("optimizer.step", {
      optimizer: settings,
      params,
      grads: writeTensors({ w: { shape: [ELEMENTS], data: grad } }),
      state,
    });
    ({ params, state } = reply);
  }
  const ours = readTensors(params)["w"]?.data ?? new Float32Array();
  const rms = (values: Float32Array): number => sqrt(exact.p.reduce((sum, truth, i) => sum + (at(values, i) - truth) ** 2, 0) / ELEMENTS);
  const ratio = rms(ours) / rms(torch.p);
  assert.ok(rms(torch.p) > 1e-6, `the comparison must have an error to beat: ${rms(torch.p)}`);
  assert.ok(ratio <= 0.1, `${ratio} times torch's error`);
});
