/**
 * Computes one step of adam, adamw, lamb, yogi and adabelief of optax, and of adam and adamw of Keras, in float64, from the formulas of optax 0.2.8
 * and Keras 3.15. They compute 1 - beta^t in float32: optax differs by up to 142 ulp from its own float64 run.
 */
import type { TestState, TestTensors } from "./tensors.ts";

interface Settings {
  readonly name: string;
  readonly lr: number;
  readonly betas: readonly [number, number];
  readonly eps: number;
  readonly eps_root?: number;
  readonly weight_decay?: number;
  readonly nesterov?: boolean;
  readonly amsgrad?: boolean;
  readonly bias_correction?: string;
}

/** The initial value of the moments of optax.yogi. */
const YOGI_INITIAL = 1e-6;

/** Returns the parameter after a step. `isDecayed` is false for tensors without weight decay. */
export const optaxStep = (
  { name, lr, betas: [beta1, beta2], eps, eps_root: epsRoot = 0, weight_decay: decay = 0, nesterov = false, amsgrad = false, bias_correction }: Settings,
  tensor: string,
  params: TestTensors,
  grads: TestTensors,
  state: TestState | null,
  isDecayed: boolean,
): Float64Array => {
  const p = Float64Array.from(params[tensor]?.data ?? []);
  const g = Float64Array.from(grads[tensor]?.data ?? []);
  const t = (state?.steps[tensor] ?? 0) + 1;
  const before = (slot: string, i: number): number => state?.slots[slot]?.[tensor]?.data[i] ?? (name === "yogi" ? YOGI_INITIAL : 0);
  const m = p.map((_, i) => beta1 * before("exp_avg", i) + (1 - beta1) * (g[i] as number));
  const v = p.map((_, i) => {
    const square = (g[i] as number) ** 2;
    if (name === "yogi") return before("exp_avg_sq", i) - (1 - beta2) * Math.sign(before("exp_avg_sq", i) - square) * square;
    if (name !== "adabelief") return beta2 * before("exp_avg_sq", i) + (1 - beta2) * square;
    return beta2 * before("exp_avg_var", i) + (1 - beta2) * ((g[i] as number) - (m[i] as number)) ** 2 + epsRoot;
  });
  const update = p.map((old, i) => {
    const square = amsgrad ? Math.max(v[i] as number, state?.slots["max_exp_avg_sq"]?.[tensor]?.data[i] ?? 0) : (v[i] as number);
    if (bias_correction === "step_size") {
      const scale = Math.sqrt(1 - beta2 ** t) / (1 - beta1 ** t);
      return (scale * (m[i] as number)) / (Math.sqrt(square) + eps) + (name === "adamw" ? decay * old : 0);
    }
    const plain = (m[i] as number) / (1 - beta1 ** t);
    const ahead = (beta1 * (m[i] as number)) / (1 - beta1 ** (t + 1)) + ((1 - beta1) * (g[i] as number)) / (1 - beta1 ** t);
    const direction = (nesterov ? ahead : plain) / (Math.sqrt(square / (1 - beta2 ** t) + (name === "adabelief" ? 0 : epsRoot)) + eps);
    return direction + (isDecayed && name !== "adam" ? decay * old : 0);
  });
  const norm = (values: Float64Array): number => Math.sqrt(values.reduce((sum, value) => sum + value * value, 0));
  const ratio = name === "lamb" && norm(p) > 0 && norm(update) > 0 ? norm(p) / norm(update) : 1;
  return p.map((old, i) => old - lr * ratio * (update[i] as number));
};
