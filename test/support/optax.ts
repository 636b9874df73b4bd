/**
 * Computes one step of optax's adam, adamw and lamb in float64, from the formulas of optax 0.2.8. optax itself computes 1 -
 * beta^t in float32, and so differs by up to 142 ulp from its own float64 run.
 */
import type { TestState, TestTensors } from "./tensors.ts";

interface Settings {
  readonly name: string;
  readonly lr: number;
  readonly betas: readonly [number, number];
  readonly eps: number;
  readonly eps_root: number;
  readonly weight_decay?: number;
  readonly nesterov?: boolean;
}

/** Returns the parameter after a step. `isDecayed` is false for tensors without weight decay. */
export const optaxStep = (
  { name, lr, betas: [beta1, beta2], eps, eps_root: epsRoot, weight_decay: decay = 0, nesterov = false }: Settings,
  tensor: string,
  params: TestTensors,
  grads: TestTensors,
  state: TestState | null,
  isDecayed: boolean,
): Float64Array => {
  const p = Float64Array.from(params[tensor]?.data ?? []);
  const g = Float64Array.from(grads[tensor]?.data ?? []);
  const t = (state?.steps[tensor] ?? 0) + 1;
  const m = p.map((_, i) => beta1 * (state?.slots["exp_avg"]?.[tensor]?.data[i] ?? 0) + (1 - beta1) * (g[i] as number));
  const v = p.map((_, i) => beta2 * (state?.slots["exp_avg_sq"]?.[tensor]?.data[i] ?? 0) + (1 - beta2) * (g[i] as number) ** 2);
  const update = p.map((old, i) => {
    const plain = (m[i] as number) / (1 - beta1 ** t);
    const ahead = (beta1 * (m[i] as number)) / (1 - beta1 ** (t + 1)) + ((1 - beta1) * (g[i] as number)) / (1 - beta1 ** t);
    const direction = (nesterov ? ahead : plain) / (Math.sqrt((v[i] as number) / (1 - beta2 ** t) + epsRoot) + eps);
    return direction + (isDecayed && name !== "adam" ? decay * old : 0);
  });
  const norm = (values: Float64Array): number => Math.sqrt(values.reduce((sum, value) => sum + value * value, 0));
  const ratio = name === "lamb" && norm(p) > 0 && norm(update) > 0 ? norm(p) / norm(update) : 1;
  return p.map((old, i) => old - lr * ratio * (update[i] as number));
};
