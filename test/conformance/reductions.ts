/** Requests of optimizer.reduce and optimizer.distances. The tensors are in the order of a file, in which all clients return gradients. */
import { rawTensors } from "../support/tensors.ts";
import { writeUpdate } from "../support/updates.ts";
import type { Ask, Request } from "./_request.ts";

type Values = readonly (number | string)[];

/** Returns tensors with 3, 4 and 1 values. */
const tensors = (größe: Values, weight: Values, bias: Values, dtype = "F32"): Record<string, object> => ({
  größe: { shape: [3], dtype, values: größe },
  "layer.weight": { shape: [2, 2], dtype, values: weight },
  "layer/bias": { shape: [], dtype, values: bias },
});

const params = tensors([0.5, -1.25, 2], [1, 2, 3, 4], [0.75]);
const first = tensors([0.25, -1, 2.5], [1.5, 2.25, 3, -4], [0.5]);
const second = tensors([1, 3, -2], [0.5, 2, 8, 4.5], [-0.25]);
const third = tensors([-0.5, 0.125, 7], [1.25, -2, 0.5, 6], [1.5]);
const spoilt = { ...second, größe: { shape: [3], dtype: "F32", values: ["Infinity", 3, "NaN"] } };
const infinite = { ...second, größe: { shape: [3], dtype: "F32", values: ["Infinity", 3, "-Infinity"] } };
const { "layer/bias": _, ...lacking } = second;

const weighted = [
  { tensors: first, weight: 3 },
  { tensors: second, weight: 0.5 },
  { tensors: third, weight: 11 },
];
const plain = weighted.map(({ tensors }) => ({ tensors }));
const spoiltUpdates = [{ tensors: first }, { tensors: spoilt }, { tensors: third, weight: 2 }];
const lackingUpdates = [{ tensors: first }, { tensors: lacking, weight: 2 }, { tensors: third }];

const base64 = (bytes: Uint8Array): string => Buffer.from(bytes).toString("base64");

/** An update in I8: one scale for each row of the matrix, one for the scalar. */
const codes = (value: number): string =>
  base64(
    writeUpdate({
      größe: { dtype: "F32", shape: [3], values: [value, 0.5, 2] },
      "layer.weight": { dtype: "I8", shape: [2, 2], values: [value, -128, 127, 5], scale: [0.25, -0.125] },
      "layer/bias": { dtype: "I8", shape: [], values: [-value], scale: [0.5] },
    }),
  );

const scaleless = base64(rawTensors('{"w":{"dtype":"I8","shape":[2],"data_offsets":[0,2]}}', Buffer.of(1, 2)));

const reductions: readonly (readonly [file: string, about: string, call: Request["params"]])[] = [
  ["params", "the weighted mean of new parameters", { params, updates: weighted }],
  ["deltas", "the weighted mean of deltas", { updates: weighted, form: "deltas" }],
  ["gradients", "the mean of gradients, each of weight 1", { updates: plain, form: "gradients" }],
  ["divisor", "a divisor in place of the sum of weights", { params, updates: weighted, method: { name: "mean", divisor: 16 } }],
  ["median", "the median of an odd number of updates", { params, updates: plain, method: { name: "median" } }],
  ["median-even", "the median of an even number of updates", { updates: plain.slice(0, 2), form: "deltas", method: { name: "median" } }],
  ["trimmed-mean", "a trimmed mean", { updates: plain, form: "gradients", method: { name: "trimmed_mean", cut: 1 } }],
  ["bf16", "updates in BF16 of parameters in F32", { params, updates: [{ tensors: tensors([0.5, -1, 2.5], [1.5, 2.25, 3, -4], [0.5], "BF16"), weight: 3 }] }],
  ["f64", "updates in F64, whose pseudo-gradient is F64", { updates: [{ tensors: tensors([0.1, 0.2, 0.3], [1, 2, 3, 4], [5], "F64") }], form: "gradients" }],
  ["i8", "updates in I8 with scales", { updates: [{ tensors: codes(3) }, { tensors: codes(-7), weight: 2 }], form: "deltas" }],
  ["unfinished", "the accumulator in place of the pseudo-gradient", { updates: weighted, form: "deltas", finish: false }],
  ["drop", "an update with NaN and infinity is dropped", { params, updates: spoiltUpdates, non_finite: "drop" }],
  ["propagate", "infinity in an update reaches the pseudo-gradient", { updates: [{ tensors: infinite }], form: "gradients", non_finite: "propagate" }],
  ["missing", "a tensor that an update lacks", { params, updates: lackingUpdates, missing: "renormalize" }],
  ["nothing", "no update at all", { params, updates: [] }],
  ["weights-0", "weights that sum to 0", { params, updates: [{ tensors: first, weight: 0 }] }],
  ["empty", "no tensors at all", { params: {}, updates: [{ tensors: {} }] }],
  ["error-non-finite", "NaN and infinity in an update are refused by default", { params, updates: spoiltUpdates }],
  ["error-missing", "a tensor that an update lacks is refused by default", { params, updates: lackingUpdates }],
  ["error-name", "a tensor that is no parameter", { params: lacking, updates: [{ tensors: first }] }],
  ["error-shape", "a tensor of another shape", { params, updates: [{ tensors: { ...first, größe: { shape: [1, 3], dtype: "F32", values: [1, 2, 3] } } }] }],
  ["error-params", "new parameters without the old ones", { updates: plain }],
  ["error-cut", "a trimmed mean that cuts off everything", { updates: plain, form: "deltas", method: { name: "trimmed_mean", cut: 2 } }],
  ["error-median-weight", "a median with weights", { updates: weighted, form: "deltas", method: { name: "median" } }],
  ["error-median-unfinished", "a median over several calls", { updates: plain, form: "deltas", method: { name: "median" }, finish: false }],
  ["error-method", "an unknown method", { updates: plain, form: "deltas", method: { name: "mode" } }],
  ["error-weight", "a negative weight", { updates: [{ tensors: first, weight: -1 }], form: "deltas" }],
  ["error-scale", "an update in I8 without scales", { updates: [{ tensors: scaleless }], form: "deltas" }],
];

const distances: readonly (readonly [file: string, about: string, call: Request["params"]])[] = [
  ["deltas", "squared distances between three updates", { updates: plain }],
  ["i8", "squared distances between updates in I8", { updates: [{ tensors: codes(3) }, { tensors: codes(-7) }] }],
  ["non-finite", "NaN and infinity in a distance", { updates: [...plain.slice(0, 1), { tensors: infinite }, { tensors: spoilt }] }],
  ["none", "no updates at all", { updates: [] }],
  ["error-missing", "an update that lacks a tensor", { updates: [{ tensors: first }, { tensors: lacking }] }],
];

/** Yields the requests of reductions in order. */
export async function* reducing(ask: Ask): AsyncGenerator<Request> {
  const reduce = (file: string, about: string, params: Request["params"]): Request => ({ file: `reduce.${file}`, about, method: "optimizer.reduce", params });
  const measure = (file: string, about: string, params: Request["params"]): Request => ({
    file: `distances.${file}`,
    about,
    method: "optimizer.distances",
    params,
  });
  for (const [file, about, call] of reductions) yield reduce(file, about, call);
  const { result } = await ask("optimizer.reduce", { updates: weighted, form: "deltas", finish: false });
  const accumulator = result?.["accumulator"];
  const rest = { updates: [{ tensors: second, weight: 4 }], accumulator };
  yield reduce("accumulator", "a mean that begins with the sums of an earlier call", { ...rest, form: "deltas" });
  yield reduce("error-accumulator-form", "sums of updates of another form", { ...rest, form: "gradients" });
  yield reduce("error-accumulator-name", "sums of a tensor that is no parameter", { ...rest, params: lacking, updates: [], form: "deltas" });
  yield reduce("error-accumulator-median", "a median with the sums of an earlier call", { ...rest, form: "deltas", method: { name: "median" } });

  const optimizer = { name: "adamw", lr: 0.1 };
  const step = (file: string, about: string, reduce: object): Request => ({
    file: `step.${file}`,
    about,
    method: "optimizer.step",
    params: { optimizer, params, reduce },
  });
  yield step("reduce", "a step by the pseudo-gradient of updates", { updates: spoiltUpdates, non_finite: "drop" });
  yield step("reduce-accumulator", "a step by updates and the sums of an earlier call", { ...rest, form: "deltas" });
  yield step("reduce-nothing", "a step by no updates changes nothing", { updates: [] });

  for (const [file, about, call] of distances) yield measure(file, about, call);
  const { result: earlier } = await ask("optimizer.distances", { updates: spoiltUpdates.map(({ tensors }) => ({ tensors })) });
  yield measure("earlier", "distances that begin with those of other tensors", {
    updates: plain.map((_, index) => ({ tensors: { more: { shape: [1], dtype: "F32", values: [index / 2] } } })),
    distances: earlier?.["distances"],
  });
}
