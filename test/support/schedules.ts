/** Lists examples of all schedules in the registry, for tests. */
import type { Schedule } from "../../src/schedules/registry.ts";

export type Given = Schedule & Readonly<Record<string, unknown>>;

/** An example of each schedule, in each of its modes. */
export const examples: readonly Given[] = [
  { name: "constant" },
  { name: "step", step_size: 7 },
  { name: "multistep", milestones: [3, 9, 9, 40] },
  { name: "exponential", gamma: 0.997 },
  { name: "linear", total_iters: 11 },
  { name: "polynomial", total_iters: 90, power: 0.9 },
  { name: "cosine", T_max: 33, eta_min: 1e-3 },
  { name: "cosine_warm_restarts", T_0: 5, T_mult: 3, eta_min: 1e-4 },
  { name: "one_cycle", max_lr: 0.5, total_steps: 500 },
  { name: "one_cycle", max_lr: 0.5, total_steps: 500, three_phase: true, anneal_strategy: "linear" },
  { name: "cyclic", base_lr: 0.01, max_lr: 0.3, step_size_up: 13 },
  { name: "cyclic", base_lr: 0.01, max_lr: 0.3, step_size_up: 13, step_size_down: 5, mode: "triangular2" },
  { name: "cyclic", base_lr: 0.01, max_lr: 0.3, step_size_up: 13, mode: "exp_range", gamma: 0.99 },
  {
    name: "sequence",
    schedules: [
      { name: "linear", start_factor: 0, total_iters: 10 },
      { name: "cosine", T_max: 77 },
    ],
    milestones: [10],
  },
];
