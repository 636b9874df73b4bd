import { interpolate } from "../math/cosine.ts";
import { wholePower } from "../math/power.ts";
import { choice, defineSchedule, flag, number, optionalSteps, steps } from "./_define.ts";

/**
 * The rate rises and falls between two bounds, and the momentum moves the opposite way. The optimizer's lr is unused, as in torch.
 *
 *   lr_t = base_lr + (max_lr - base_lr) * height * scale
 *   height: 0 -> 1 in step_size_up steps, 1 -> 0 in step_size_down
 *   scale: 1 (triangular), 1/2^(completed cycles) (triangular2), gamma^t (exp_range)
 */
export default defineSchedule({
  name: "cyclic",
  title: "CyclicSchedule",
  torch: "CyclicLR",
  formula:
    "lr_t = base_lr + (max_lr - base_lr) * height * scale; height goes 0 -> 1 in step_size_up steps and back in step_size_down; scale is 1, 1/2^(completed cycles) or gamma^t by mode",
  references: ["Smith, 2017, https://arxiv.org/abs/1506.01186", "peer: torch.optim.lr_scheduler.CyclicLR"],
  arguments: {
    base_lr: number("The lowest rate", { minimum: 0 }),
    max_lr: number("The highest rate", { minimum: 0 }),
    step_size_up: steps("Steps in which the rate rises", 1, 2000),
    step_size_down: optionalSteps("Steps in which the rate falls; null means step_size_up", 1),
    mode: choice("Change of the height from cycle to cycle", ["triangular", "triangular2", "exp_range"], "triangular"),
    gamma: number("Factor of the height per step in exp_range", { minimum: 0 }, 1),
    cycle_momentum: flag("Cycle the momentum, or the first of betas, inversely to the rate", true),
    base_momentum: number("The lowest momentum, at the highest rate", { minimum: 0, exclusiveMaximum: 1 }, 0.8),
    max_momentum: number("The highest momentum, at base_lr", { minimum: 0, exclusiveMaximum: 1 }, 0.9),
  },
  check({ mode, gamma, cycle_momentum }) {
    // A height above 1 would move the momentum below base_momentum and eventually below 0.
    if (mode !== "exp_range" || gamma <= 1 || !cycle_momentum) return undefined;
    return { field: "/gamma", expected: "at most 1 where the momentum cycles in exp_range", found: `${gamma}` };
  },
  prepare({ base_lr, max_lr, step_size_up: up, step_size_down, mode, gamma, cycle_momentum, base_momentum, max_momentum }) {
    const down = step_size_down ?? up;
    const scale = (step: number, cycle: number): number => {
      if (mode === "triangular") return 1;
      return mode === "triangular2" ? wholePower(0.5, cycle) : wholePower(gamma, step);
    };
    return (_, step) => {
      const at = step % (up + down);
      const height = (at <= up ? at / up : (down - (at - up)) / down) * scale(step, (step - at) / (up + down));
      return { lr: interpolate(max_lr, base_lr, height), peak: max_lr, ...(cycle_momentum && { momentum: interpolate(base_momentum, max_momentum, height) }) };
    };
  },
});
