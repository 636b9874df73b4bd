/** Lists examples of all schedules in the registry, for tests. */
import type { Schedule } from "../../src/schedules/registry.ts";

export type Given = Schedule & Readonly<Record<string, unknown>>;

/** An example of each schedule, in each of its modes. */
export const examples: readonly Given[] = [
  { name: "constant" },
  { name: "constant", factor: 0.25, total_iters: null },
  { name: "inverse_sqrt", warmup_steps: 13 },
  { name: "inverse_sqrt", timescale: 50 },
  { name: "warmup_cosine", warmup_steps: 13, total_steps: 90, start_factor: 0.1, eta_min: 1e-4 },
  { name: "warmup_stable_decay", warmup_steps: 9, stable_steps: 20, decay_steps: 60, min_lr_ratio: 0.01 },
  { name: "warmup_stable_decay", warmup_steps: 0, stable_steps: 0, decay_steps: 60, decay_type: "1-sqrt" },
  {
    name: "chained",
    schedules: [
      { name: "constant", factor: 0.5, total_iters: 20 },
      { name: "exponential", gamma: 0.99 },
    ],
  },
  { name: "table", lrs: [0.5, 0.25, 0.125, 0] },
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
