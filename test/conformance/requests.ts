/**
 * The requests of the conformance set. record.ts writes each request with the server's answer to a file of cases/. The server
 * and the clients in Python, Go and TypeScript run these files. A typed client can make each of these requests; other requests
 * are in test/hostile.
 */
import { variants } from "../support/variants.ts";
import { type Ask, adamw, grads, nonFiniteGrads, params, type Request, recast, secondGrads } from "./_request.ts";
import { blobs } from "./blobs.ts";
import { reducing } from "./reductions.ts";

const adam = { name: "adam", lr: 0.1 };
const sgd = { name: "sgd", lr: 0.1, momentum: 0.9 };

/** A tensor that may be a part of a larger one. */
const flat = {
  params: { w: { shape: [3], dtype: "F32", values: [1, -2, 3.5] } },
  grads: { w: { shape: [3], dtype: "F32", values: [0.5, 0.25, -1] } },
};

/** First steps, as parameters of optimizer.step. */
const steps: readonly (readonly [file: string, about: string, settings: Readonly<Record<string, unknown>>])[] = [
  [
    "groups",
    "parameter groups by pattern",
    {
      optimizer: adamw,
      groups: [
        { tensors: ["*bias"], optimizer: { weight_decay: 0 } },
        { tensors: ["layer.*"], optimizer: { lr: 0.01 } },
      ],
    },
  ],
  ["schedule", "a warm-up by linear", { optimizer: adam, schedule: { name: "linear", start_factor: 0.25, total_iters: 4 } }],
  ["one-cycle", "a schedule that cycles betas", { optimizer: adam, schedule: { name: "one_cycle", max_lr: 0.5, total_steps: 5 } }],
  ["clip-norm", "clipping by the norm, with statistics by tensor", { optimizer: sgd, clip: { max_norm: 0.5 }, stats: "tensor" }],
  ["clip-value", "clipping by value", { optimizer: sgd, clip: { max_value: 0.25 } }],
  ["total-norm", "clipping by a total norm from the caller", { optimizer: sgd, clip: { max_norm: 0.5, total_norm: 8 } }],
  ["total-norm-infinity", "clipping by an infinite total norm from the caller", { optimizer: sgd, clip: { max_norm: 0.5, total_norm: "Infinity" } }],
  [
    "others-skip",
    "NaN in a gradient of another call skips this one",
    { optimizer: adamw, clip: { max_norm: 0.5, total_norm: "NaN" }, non_finite: "skip", others_non_finite: true },
  ],
  ["others-propagate", "NaN in a gradient of another call changes nothing here", { optimizer: sgd, non_finite: "propagate", others_non_finite: true }],
  ["loss-scale", "a loss scale", { optimizer: adamw, loss_scale: 128, stats: "global" }],
  ["skip", "a skipped step with NaN and infinity changes nothing", { optimizer: adamw, grads: nonFiniteGrads, non_finite: "skip" }],
  ["propagate", "NaN and infinity propagate from the gradients", { optimizer: sgd, grads: nonFiniteGrads, non_finite: "propagate" }],
  ["missing-gradient", "a parameter without a gradient stays unchanged", { optimizer: adamw, grads: { größe: grads.größe } }],
  ["empty", "no parameters at all", { optimizer: adamw, params: {}, grads: {} }],
  ["f64", "float64 throughout", { optimizer: adamw, params: recast(params, "F64"), grads: recast(grads, "F64") }],
  ["f64-f32", "float64 parameters, float32 gradients", { optimizer: adamw, params: recast(params, "F64") }],
  ["bf16", "BF16 parameters and gradients", { optimizer: adamw, params: recast(params, "BF16"), grads: recast(grads, "BF16") }],
  ["f16", "F16 parameters, F32 gradients", { optimizer: adamw, params: recast(params, "F16") }],
  ["master-weights", "float32 master copies of BF16 parameters", { optimizer: adamw, params: recast(params, "BF16"), master_weights: true }],
  ["stochastic-rounding", "BF16 with stochastic rounding by seed", { optimizer: adamw, params: recast(params, "BF16"), stochastic_rounding: { seed: 7 } }],
  ["moments-bf16", "moments in BF16", { optimizer: { name: "adamw", lr: 0.1, state_dtype: "BF16" } }],
  ["slices", "the second part of a tensor", { optimizer: adamw, ...flat, slices: { w: { offset: 65_536 } } }],
  ["error-slices-optimizer", "a part of a tensor, where the optimizer needs all of it", { optimizer: { name: "lamb" }, ...flat, slices: { w: { offset: 0 } } }],
  ["error-slices-offset", "a part that begins inside a shard", { optimizer: sgd, ...flat, slices: { w: { offset: 100 } } }],
  ["error-slices-stats", "statistics, which are those of whole tensors", { optimizer: sgd, ...flat, slices: { w: { offset: 0 } }, stats: "global" }],
  ["lamb-stats", "LAMB with its trust ratios", { optimizer: { name: "lamb", lr: 0.1 }, stats: "tensor" }],
  [
    "groups-schedule",
    "a base rate per group under a schedule, and a group without parameters",
    {
      optimizer: { name: "qhadamw", lr: 0.1, weight_decay: 0.1, weight_decay_scale: "schedule" },
      groups: [
        { tensors: ["größe"], optimizer: { lr: 0, weight_decay: 0 } },
        { tensors: [], optimizer: { lr: 5 } },
      ],
      schedule: { name: "cosine", T_max: 10, eta_min: 0.01 },
    },
  ],
  [
    "groups-optimizer",
    "a group with an optimizer of its own",
    { optimizer: adamw, groups: [{ tensors: ["größe"], optimizer: { name: "sgd", lr: 0.1, momentum: 0.9 } }] },
  ],
  ["skip-finite", "non_finite skip with finite gradients", { optimizer: adamw, non_finite: "skip", clip: { max_norm: 1 } }],
  [
    "all-dtypes",
    "a parameter of each dtype in one call",
    {
      optimizer: { name: "lamb", lr: 0.1, max_grad_norm: 1 },
      params: Object.fromEntries(["F32", "F64", "BF16", "F16"].map((dtype) => [dtype, { shape: [2], dtype, values: [1.5, -2] }])),
      grads: Object.fromEntries(["F32", "F64", "BF16", "F16"].map((dtype) => [dtype, { shape: [2], dtype, values: [0.5, 0.25] }])),
      master_weights: true,
    },
  ],
  [
    "zero-size",
    "tensors without elements",
    {
      optimizer: adamw,
      params: { none: { shape: [0], dtype: "F32", values: [] }, matrix: { shape: [3, 0, 2], dtype: "F64", values: [] } },
      grads: { none: { shape: [0], dtype: "F32", values: [] }, matrix: { shape: [3, 0, 2], dtype: "F64", values: [] } },
    },
  ],
  [
    "extremes",
    "the largest and smallest numbers, and zeros",
    {
      optimizer: { name: "sgd", lr: 0.5 },
      params: { w: { shape: [6], dtype: "F32", values: [3.4028234663852886e38, -3.4028234663852886e38, 1.401298464324817e-45, 0, 0, 1] } },
      grads: { w: { shape: [6], dtype: "F32", values: [1, -1, 0, 0, 0, 1.1754943508222875e-38] } },
    },
  ],
  [
    "muon",
    "a matrix by muon",
    {
      optimizer: { name: "muon", lr: 0.02, ns_coefficients: [3, -3.2, 1.2] },
      params: { w: { shape: [2, 3], dtype: "F32", values: [1, -2, 3.5, 0, 0.5, 4] } },
      grads: { w: { shape: [2, 3], dtype: "F32", values: [0.5, 0.25, -1, 2, 0, -0.125] } },
    },
  ],
  [
    "adafactor",
    "a matrix and a vector by adafactor, whose slots have other shapes",
    {
      optimizer: { name: "adafactor", lr: 0.5, eps: [null, 0.01], weight_decay: 0.1 },
      params: { w: { shape: [2, 3], dtype: "F32", values: [1, -2, 3.5, 0, 0.5, 4] }, b: { shape: [2], dtype: "F32", values: [1, 0] } },
      grads: { w: { shape: [2, 3], dtype: "F32", values: [0.5, 0.25, -1, 2, 0, -0.125] }, b: { shape: [2], dtype: "F32", values: [0.5, -3] } },
    },
  ],
  // The server refuses these requests.
  [
    "error-muon",
    "a tensor that is no matrix, under muon",
    {
      optimizer: { name: "muon" },
      params: { b: { shape: [2], dtype: "F32", values: [1, 2] } },
      grads: { b: { shape: [2], dtype: "F32", values: [1, 2] } },
    },
  ],
  ["error-unknown-optimizer", "an unknown optimizer", { optimizer: { name: "adamv" } }],
  ["error-betas", "a beta out of range", { optimizer: { name: "adam", betas: [0.9, 1] } }],
  ["error-unknown-hyperparameter", "a hyperparameter of another optimizer", { optimizer: { name: "sgd", betas: [0.9, 0.99] } }],
  ["error-negative-lr", "a negative learning rate", { optimizer: { name: "sgd", lr: -1 } }],
  ["error-clip", "a negative max_norm", { optimizer: sgd, clip: { max_norm: -2 } }],
  ["error-total-norm", "a negative total_norm", { optimizer: sgd, clip: { max_norm: 1, total_norm: -1 } }],
  ["error-others-non-finite", "NaN in a gradient of another call refuses this one", { optimizer: sgd, others_non_finite: true }],
  ["error-schedule", "a schedule that does not exist", { optimizer: sgd, schedule: { name: "cosin", T_max: 3 } }],
  ["error-schedule-end", "a schedule without its argument", { optimizer: sgd, schedule: { name: "cosine" } }],
  ["error-group", "a hyperparameter of a group out of range", { optimizer: adamw, groups: [{ tensors: ["*"], optimizer: { eps: -1 } }] }],
  [
    "error-shape",
    "a gradient whose shape differs from its parameter's",
    { optimizer: sgd, grads: { "layer.weight": { shape: [3, 2], dtype: "F32", values: [1, 2, 3, 4, 5, 6] } } },
  ],
  ["error-stray-gradient", "a gradient without a parameter", { optimizer: sgd, grads: { other: { shape: [1], dtype: "F32", values: [1] } } }],
  ["error-non-finite", "NaN in a gradient, which is refused by default", { optimizer: adamw, grads: nonFiniteGrads }],
];

/** Yields the requests in order. `ask` returns answers, from which later requests are built. */
export async function* requests(ask: Ask): AsyncGenerator<Request> {
  const stateOf = async (optimizer: object, settings: object = {}): Promise<unknown> =>
    (await ask("optimizer.step", { optimizer, params, grads, ...settings })).result?.["state"];
  const step = (file: string, about: string, settings: Readonly<Record<string, unknown>>): Request => ({
    file: `step.${file}`,
    about,
    method: "optimizer.step",
    params: { params, grads, ...settings },
  });

  for (const { label, optimizer } of variants) {
    const file = label.toLowerCase().replaceAll(/[^a-z0-9]+/g, "-");
    const first = step(`${file}.1`, `${label}: the first step`, { optimizer });
    yield first;
    const { result } = await ask(first.method, first.params);
    yield step(`${file}.2`, `${label}: the second step`, { optimizer, params: result?.["params"], grads: secondGrads, state: result?.["state"] });
  }
  for (const [file, about, settings] of steps) yield step(file, about, settings);

  const state = await stateOf(adamw);
  yield step("other-family", "a state under another optimizer of Adam's family", { optimizer: { name: "qhadam" }, state });
  const groups = [{ tensors: ["größe"], optimizer: { name: "sgd", lr: 0.1, momentum: 0.9 } }];
  yield step("groups-optimizer.2", "the second step with a group that has an optimizer of its own", {
    optimizer: adamw,
    groups,
    grads: secondGrads,
    state: await stateOf(adamw, { groups }),
  });
  yield step("error-family-group", "a group that moves a parameter to another family", { optimizer: adamw, groups, state });
  yield step("error-family", "a state of another family", { optimizer: { name: "rmsprop" }, state });
  const narrow = { params: recast(params, "BF16"), master_weights: true };
  yield step("master-weights.2", "the second step with master copies", {
    optimizer: adamw,
    ...narrow,
    grads: secondGrads,
    state: await stateOf(adamw, narrow),
  });
  const single = { params: { größe: params.größe }, grads: { größe: grads.größe } };
  yield step("error-state-master", "a state with master copies, without master_weights", {
    optimizer: adamw,
    ...single,
    params: recast(single.params, "BF16"),
    state: await stateOf(adamw, { ...single, params: recast(single.params, "BF16"), master_weights: true }),
  });
  yield step("error-state-dtype", "a state whose slots do not match the dtype of the parameters", {
    optimizer: adamw,
    ...single,
    params: recast(single.params, "F64"),
    state: await stateOf(adamw, single),
  });
  yield step("error-state-parameter", "a state of a missing parameter", { optimizer: adamw, params: { größe: params.größe }, grads: {}, state });
  yield step("error-one-cycle-over", "a schedule past its end", {
    optimizer: adam,
    state: await stateOf(adam),
    schedule: { name: "one_cycle", max_lr: 0.5, total_steps: 1 },
  });

  const other = (method: string, file: string, about: string, params: Request["params"]): Request => ({ file, about, method, params });
  yield other("optimizer.init", "init.adamw", "the state before the first step", { optimizer: adamw, params });
  yield other("optimizer.init", "init.adagrad", "a slot with a non-zero initial value", {
    optimizer: { name: "adagrad", initial_accumulator_value: 0.5 },
    params,
  });
  yield other("optimizer.init", "init.master-weights", "a state with master copies", {
    optimizer: adamw,
    params: recast(params, "BF16"),
    master_weights: true,
  });
  yield other("optimizer.init", "init.error-optimizer", "a hyperparameter out of range", { optimizer: { name: "sgd", momentum: -1 }, params });
  yield other("optimizer.norms", "norms.grads", "sums of squares of gradients", { grads });
  yield other("optimizer.norms", "norms.params", "sums of squares of gradients and parameters, with a loss scale", { grads, params, loss_scale: 16 });
  yield other("optimizer.norms", "norms.slices", "sums of a part of a tensor, by shard", { ...flat, slices: { w: { offset: 65_536 } } });
  yield other("optimizer.norms", "norms.empty", "no gradients at all", { grads: {} });
  yield other("optimizer.norms", "norms.non-finite", "NaN and infinity are counted", { grads: nonFiniteGrads });
  const shapes = Object.fromEntries(Object.entries(params).map(([name, { shape, dtype }]) => [name, { shape, dtype }]));
  yield other("optimizer.plan", "plan.adamw", "the cost of a step", { optimizer: adamw, tensors: shapes });
  yield other("optimizer.plan", "plan.bf16", "the cost of a step with BF16 gradients and master copies", {
    optimizer: adamw,
    tensors: recast(shapes, "BF16"),
    grad_dtype: "BF16",
    master_weights: true,
  });
  yield other("optimizer.describe", "describe.sgd", "the description of an optimizer", { name: "sgd" });
  yield other("state.inspect", "inspect.adamw", "the contents of a state", { state });
  yield other("state.convert", "convert.torch", "a state in torch's format", {
    state,
    to: { format: "torch", names: ["layer.weight", "layer/bias", "größe"] },
  });
  const { result: torch } = await ask("state.convert", { state, to: { format: "torch", names: ["layer.weight", "layer/bias", "größe"] } });
  yield other("state.convert", "convert.from-torch", "a state from torch's format", {
    state: torch?.["state"],
    from: { format: "torch", optimizer: "adamw", names: ["layer.weight", "layer/bias", "größe"] },
  });
  yield other("state.convert", "convert.optimizer", "a state under another optimizer, with a filled slot", {
    state,
    optimizer: "adam",
    fill: ["max_exp_avg_sq"],
  });
  yield other("state.convert", "convert.lost", "a state that the format cannot hold completely", {
    state: await stateOf({ name: "adamw", amsgrad: true }),
    to: { format: "optax" },
  });
  yield other("state.convert", "convert.error-corrupt", "bytes that are not a safetensors file", { state: Buffer.from("not a state").toString("base64") });
  yield other("state.convert", "convert.error-family", "an optimizer of another family", { state, optimizer: "sgd" });
  yield other("schedule.evaluate", "schedule.cosine", "a range of a schedule", { schedule: { name: "cosine", T_max: 10 }, lr: 0.1, from: 3, count: 5 });
  yield other("schedule.evaluate", "schedule.sequence", "a sequence with a part that cycles the momentum", {
    schedule: {
      name: "sequence",
      schedules: [
        { name: "constant", factor: 0.5, total_iters: 2 },
        { name: "one_cycle", max_lr: 0.5, total_steps: 5 },
      ],
      milestones: [2],
    },
    count: 6,
  });
  yield other("schedule.evaluate", "schedule.error-argument", "an argument out of range", { schedule: { name: "exponential", gamma: -1 } });

  yield* reducing(ask);
  yield* blobs(ask);
}
