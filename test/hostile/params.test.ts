/** Tests parameters that pass every parser, but fail the schema or the checks behind it. */

import { rawTensors, writeState, writeTensors } from "../support/tensors.ts";
import { CALLER_TEXT, checkNothingIsLeft, type ParamsCase, refusesParams, STATE, step, TENSORS, useService } from "./_harness.ts";

useService();

const optimizer = (fields: Readonly<Record<string, unknown>>) => step({ optimizer: { name: "adam", ...fields } });
const group = (fields: Readonly<Record<string, unknown>>, name = "adam") =>
  step({
    optimizer: { name },
    groups: [
      { tensors: ["w"], optimizer: {} },
      { tensors: ["*"], optimizer: fields },
    ],
  });
const plain = (fields: Readonly<Record<string, unknown>>, without = "") => {
  const tensor = { shape: [2, 2], values: [1, 2, 3, 4], ...fields };
  return step({ grads: { w: Object.fromEntries(Object.entries(tensor).filter(([key]) => key !== without)) } });
};
const invalid = (params: unknown, field: string, pattern: RegExp): ParamsCase => ({ params, error: "INVALID_PARAMS", ...(field !== "" && { field }), pattern });

const tensors = (count: number) => Object.fromEntries(Array.from({ length: count }, (_, index) => [`t${index}`, { shape: [1], values: [1] }]));
const numbered = (count: number) => Object.fromEntries(Array.from({ length: count }, (_, index) => [`x${index}`, 1]));
const counted = (count: number) => Array.from({ length: count }, (_, index) => index + 1);
const constant = () => ({ name: "constant" });
const sequence = (schedules: readonly unknown[]) => ({ name: "sequence", schedules, milestones: counted(schedules.length - 1) });

const f32 = (...data: number[]) => ({ shape: [data.length], data: Float32Array.from(data) });

const CASES: Readonly<Record<string, ParamsCase>> = {
  // These calls lack a field or have an unknown field.
  "no optimizer": invalid(step({ optimizer: undefined }), "/optimizer", /expected a value, found none/),
  "no params": invalid(step({ params: undefined }), "/params", /expected a value, found none/),
  "no grads": invalid(step({ grads: undefined }), "/grads", /expected gradients, or updates in reduce, found none/),
  "no fields at all": invalid({}, "/optimizer", /expected a value/),
  "an unknown field beside the known": invalid(step({ gradz: 1 }), "/gradz", /the nearest is grads/),
  "an unknown field with a slash and a tilde": invalid(step({ "a/b~c": 1 }), "/a~1b~0c", /known field/),
  "an unknown field of 100,000 characters": {
    params: step({ [`${CALLER_TEXT}${"x".repeat(100_000)}`]: 1 }),
    error: "INVALID_PARAMS",
    field: `/${CALLER_TEXT}${"x".repeat(996 - CALLER_TEXT.length)}...`,
  },
  "an unknown hyperparameter": invalid(optimizer({ beta: [0.9, 0.99] }), "/optimizer/beta", /the nearest is betas/),
  "a hyperparameter of another optimizer": invalid(optimizer({ nus: [1, 1] }), "/optimizer/nus", /known field/),
  "an unknown optimizer": invalid(step({ optimizer: { name: "adamv" } }), "/optimizer/name", /one of .*\(the nearest is adamw\)/),
  "an optimizer called __proto__": invalid(step({ optimizer: { name: "__proto__" } }), "/optimizer/name", /one of/),
  "an optimizer called constructor": invalid(step({ optimizer: { name: "constructor" } }), "/optimizer/name", /one of/),
  "an optimizer in wrong capitals whose name contains another": invalid(step({ optimizer: { name: "AdamW" } }), "/optimizer/name", /the nearest is adamw\)/),
  "an unknown optimizer without a similar name": invalid(step({ optimizer: { name: "shampoo" } }), "/optimizer/name", /, yogi, found "shampoo"/),
  "an unknown hyperparameter without a similar name": invalid(
    optimizer({ learning_rate: 1 }),
    "/optimizer/learning_rate",
    /a known field \(one of name, lr, .*\), found "learning_rate"/,
  ),
  "a boolean in place of a word": invalid(
    step({ optimizer: { name: "lamb", bias_correction: false } }),
    "/optimizer/bias_correction",
    /expected one of moments, step_size, none, found false/,
  ),
  "an optimizer in capitals": invalid(step({ optimizer: { name: "Adam" } }), "/optimizer/name", /the nearest is adam/),
  "an optimizer without a name": invalid(step({ optimizer: { lr: 1 } }), "/optimizer/name", /found none/),
  "an optimizer whose name is a number": invalid(step({ optimizer: { name: 5 } }), "/optimizer/name", /found 5/),
  "an optimizer that is only a name": invalid(step({ optimizer: "adam" }), "/optimizer", /expected object, found "adam"/),
  "an optimizer that is null": invalid(step({ optimizer: null }), "/optimizer", /expected object, found null/),
  "an optimizer that is a list": invalid(step({ optimizer: ["adam"] }), "/optimizer", /expected object, found an array of 1/),
  "qhm without what it must have": invalid(step({ optimizer: { name: "qhm", lr: 1, nu: 0.7 } }), "/optimizer/momentum", /found none/),
  // The hyperparameters of these calls are out of range.
  "a learning rate that is text": invalid(optimizer({ lr: "0.1" }), "/optimizer/lr", /expected a finite number, found "0.1"/),
  "a learning rate that is null": invalid(optimizer({ lr: null }), "/optimizer/lr", /expected a finite number, found null/),
  "a learning rate below zero": invalid(optimizer({ lr: -1e-9 }), "/optimizer/lr", /at least 0, found -1e-9/),
  "a learning rate of NaN": { ...invalid(optimizer({ lr: Number.NaN }), "/optimizer/lr", /expected a finite number, found NaN/), only: "msgpack" },
  "an infinite learning rate": {
    ...invalid(optimizer({ lr: Number.POSITIVE_INFINITY }), "/optimizer/lr", /expected a finite number, found Infinity/),
    only: "msgpack",
  },
  "a learning rate that is infinite in float32": invalid(optimizer({ lr: 1e39 }), "/optimizer/lr", /at most 3.4028234663852886e\+38/),
  "a beta of 1": invalid(optimizer({ betas: [0.9, 1] }), "/optimizer/betas/1", /less than 1, found 1/),
  "a beta below zero": invalid(optimizer({ betas: [-0.1, 0.9] }), "/optimizer/betas/0", /at least 0/),
  "a beta of NaN": { ...invalid(optimizer({ betas: [Number.NaN, 0.9] }), "/optimizer/betas/0", /found NaN/), only: "msgpack" },
  "one beta": invalid(optimizer({ betas: [0.9] }), "/optimizer/betas", /at least 2 items/),
  "three betas": invalid(optimizer({ betas: [0.9, 0.9, 0.9] }), "/optimizer/betas", /at most 2 items/),
  "betas by name": invalid(optimizer({ betas: { beta1: 0.9 } }), "/optimizer/betas", /expected array, found an object/),
  "an eps below zero": invalid(optimizer({ eps: -1 }), "/optimizer/eps", /at least 0/),
  "a flag that is a number": invalid(optimizer({ amsgrad: 1 }), "/optimizer/amsgrad", /expected boolean, found 1/),
  "a value outside the choices": invalid(
    step({ optimizer: { name: "adamw", weight_decay_scale: "LR" } }),
    "/optimizer/weight_decay_scale",
    /one of lr, schedule, none, found "LR"/,
  ),
  "Nesterov without momentum": invalid(step({ optimizer: { name: "sgd", nesterov: true }, state: undefined }), "/optimizer/nesterov", /momentum is 0/),
  "trust bounds in the wrong order": invalid(step({ optimizer: { name: "lamb", trust_min: 2, trust_max: 1 } }), "/optimizer/trust_min", /at most trust_max/),
  // The groups of these calls are invalid.
  "groups that are an object": invalid(step({ groups: { w: {} } }), "/groups", /expected array/),
  "a group without tensors": invalid(step({ groups: [{ optimizer: {} }] }), "/groups/0/tensors", /found none/),
  "a group with an empty list of tensors": invalid(step({ groups: [{ tensors: [], optimizer: {} }] }), "/groups/0/tensors", /at least 1 items/),
  "a group with an empty name": invalid(step({ groups: [{ tensors: [""], optimizer: {} }] }), "/groups/0/tensors/0", /at least 1 characters/),
  "a group whose tensors are one text": invalid(step({ groups: [{ tensors: "w", optimizer: {} }] }), "/groups/0/tensors", /expected array/),
  "a group without an optimizer": invalid(step({ groups: [{ tensors: ["w"] }] }), "/groups/0/optimizer", /found none/),
  "an unknown optimizer in a group": invalid(group({ name: "sdg" }), "/groups/1/optimizer/name", /nearest is sgd/),
  "a number as the optimizer of a group": invalid(group({ name: 1 }), "/groups/1/optimizer/name", /expected string/),
  "a hyperparameter that only the call's optimizer has": invalid(group({ name: "sgd", eps: 1 }), "/groups/1/optimizer/eps", /a known field/),
  "an unknown hyperparameter in a group": invalid(group({ weight_decoy: 1 }), "/groups/1/optimizer/weight_decoy", /nearest is weight_decay/),
  "a hyperparameter out of range in a group": invalid(group({ betas: [0, 1] }), "/groups/1/optimizer/betas/1", /less than 1/),
  "hyperparameters of a group that contradict the call's": invalid(group({ nesterov: true }, "sgd"), "/groups/1/optimizer/nesterov", /momentum is 0/),
  "max_grad_norm in a group": invalid(group({ max_grad_norm: 1 }, "lamb"), "/groups/1/optimizer/max_grad_norm", /holds for the whole call/),
  "an unknown field in a group": invalid(step({ groups: [{ tensors: ["w"], optimizer: {}, lr: 1 }] }), "/groups/0/lr", /one of tensors, optimizer\)/),
  // These values are bytes in place of an object. A Buffer has a property for each byte.
  "bytes as optimizer": { ...invalid(step({ optimizer: Buffer.alloc(5) }), "/optimizer", /expected object, found 5 bytes/), only: "msgpack" },
  "bytes as a group": { ...invalid(step({ groups: [Buffer.alloc(5)] }), "/groups/0", /expected object, found 5 bytes/), only: "msgpack" },
  "bytes as a group's optimizer": {
    ...invalid(step({ groups: [{ tensors: ["w"], optimizer: Buffer.alloc(0) }] }), "/groups/0/optimizer", /expected object, found 0 bytes/),
    only: "msgpack",
  },
  "32 MiB of bytes as a group's optimizer": {
    ...invalid(step({ groups: [{ tensors: ["w"], optimizer: Buffer.alloc(2 ** 25) }] }), "/groups/0/optimizer", /expected object, found 33554432 bytes/),
    only: "msgpack",
  },
  "bytes as a tensor": { ...invalid(step({ grads: { w: Buffer.alloc(4) } }), "/grads/w", /expected object, found 4 bytes/), only: "msgpack" },
  "bytes as values": { ...invalid(plain({ values: Buffer.alloc(16) }), "/grads/w/values", /expected array, found 16 bytes/), only: "msgpack" },
  // Another field of these steps is invalid.
  "a schedule that is text": invalid(step({ schedule: "cosine" }), "/schedule", /expected object/),
  "an unknown schedule": invalid(step({ schedule: { name: "cosin" } }), "/schedule/name", /nearest is cosine/),
  "a clip of nothing": { params: step({ clip: {} }), error: "INVALID_PARAMS", field: "/clip" },
  "a clip by norm and by value": { params: step({ clip: { max_norm: 1, max_value: 1 } }), error: "INVALID_PARAMS", field: "/clip" },
  "a clip to a norm of 0": invalid(step({ clip: { max_norm: 0 } }), "/clip/max_norm", /more than 0/),
  "an unknown kind of clip": invalid(step({ clip: { max_norms: 1 } }), "/clip/max_norms", /nearest is max_norm/),
  "a loss scale of 0": invalid(step({ loss_scale: 0 }), "/loss_scale", /at least 1\.17\d*e-38/),
  "a loss scale over float32": invalid(step({ loss_scale: 1e39 }), "/loss_scale", /at most 3\.4\d*e\+?38/),
  "a loss scale of NaN": { ...invalid(step({ loss_scale: Number.NaN }), "/loss_scale", /found NaN/), only: "msgpack" },
  "an unknown way with what is not finite": invalid(step({ non_finite: "ignore" }), "/non_finite", /one of error, skip, propagate/),
  "unknown statistics": invalid(step({ stats: true }), "/stats", /one of none, global, tensor/),
  "a seed that is a fraction": invalid(step({ stochastic_rounding: { seed: 0.5 } }), "/stochastic_rounding/seed", /expected integer/),
  "stochastic rounding without a seed": invalid(step({ stochastic_rounding: {} }), "/stochastic_rounding/seed", /found none/),
  // The tensors here are lists of numbers.
  "params that are a number": invalid(step({ params: 5 }), "/params", /expected object, found 5/),
  "params that are a list": invalid(step({ params: [] }), "/params", /expected object, found an array/),
  "params that are null": invalid(step({ params: null }), "/params", /found null/),
  "a tensor without a shape": invalid(plain({}, "shape"), "/grads/w/shape", /found none/),
  "a tensor with an unknown field": invalid(plain({ data: [] }), "/grads/w/data", /one of shape, dtype, values\)/),
  "a shape below zero": invalid(plain({ shape: [-2, -2] }), "/grads/w/shape/0", /at least 0/),
  "a shape whose product overflows in front of a zero": invalid(plain({ shape: [2 ** 32, 2 ** 32, 0], values: [] }), "/grads/w/shape", /at most 2\^53 - 1/),
  "a shape that is a fraction": invalid(plain({ shape: [0.5, 8] }), "/grads/w/shape/0", /expected integer/),
  "a shape over 2^53": invalid(plain({ shape: [2 ** 60, 0] }), "/grads/w/shape/0", /at most 9007199254740991/),
  "a shape of 33 dimensions": invalid(plain({ shape: Array<number>(33).fill(1) }), "/grads/w/shape", /at most 32 items/),
  "a shape whose product no number holds": invalid(plain({ shape: Array<number>(32).fill(2 ** 52) }), "/grads/w/shape", /at most 2\^53 - 1/),
  "a shape whose product is NaN": invalid(plain({ shape: [...Array<number>(31).fill(2 ** 52), 0] }), "/grads/w/shape", /at most 2\^53 - 1/),
  "fewer values than the shape has": {
    params: plain({ values: [1, 2, 3] }),
    error: "TENSOR_MISMATCH",
    field: "/grads/w/values",
    pattern: /4 values for shape \[2,2\], found 3/,
  },
  "a value that is text": invalid(plain({ values: [1, "2", 3, 4] }), "/grads/w/values/1", /found "2"/),
  "a value that is null": invalid(plain({ values: [1, 2, 3, null] }), "/grads/w/values/3", /found null/),
  "a value that is a list": invalid(
    plain({
      values: [
        [1, 2],
        [3, 4],
      ],
    }),
    "/grads/w/values/0",
    /found an array of 2/,
  ),
  "a value that float32 cannot hold": invalid(plain({ values: [1, 2, 3, 1e39] }), "/grads/w/values/3", /range of F32/),
  "an unknown dtype": invalid(plain({ dtype: "F33" }), "/grads/w/dtype", /one of F32, F64, BF16, F16/),
  "a dtype that steps are not computed in": invalid(plain({ dtype: "I64" }), "/grads/w/dtype", /one of F32, F64, BF16, F16/),
  // The service checks a call in slices. These errors come after the first slice.
  "a value behind many": invalid(
    plain({ shape: [40_000], values: Array.from({ length: 40_000 }, (_, index) => (index === 35_000 ? "x" : 1)) }),
    "/grads/w/values/35000",
    /found "x"/,
  ),
  "a tensor behind many": invalid(step({ grads: { ...tensors(3000), z: { shape: [1] } } }), "/grads/z/values", /found none/),
  "a value behind many of a tensor behind many": invalid(
    step({ grads: { ...tensors(3000), z: { shape: [20_000], values: [...Array<number>(19_999).fill(1), null] } } }),
    "/grads/z/values/19999",
    /found null/,
  ),
  "an object of many fields behind many values": invalid(
    plain({ shape: [20_001], values: [...Array<number>(20_000).fill(1), numbered(1025)] }),
    "/grads/w/values/20000",
    /at most 1024 fields, found 1025/,
  ),
  "a file behind many tensors": invalid(step({ grads: { ...tensors(2048), file: "x", offset: 0, length: 1 } }), "/grads/t0", /one of file, offset, length/),
  "a handle behind many tensors": invalid(step({ grads: { ...tensors(2048), handle: "0" } }), "/grads/t0", /one of handle/),
  // These calls exceed a limit.
  "more fields than a call has": invalid(step(numbered(60_000)), "", /at most 1024 fields/),
  "more fields than a tensor has": invalid(plain(numbered(2000)), "/grads/w", /at most 1024 fields, found 2002/),
  "more fields than an optimizer has": invalid(step({ optimizer: { ...numbered(1024), name: "adam" } }), "/optimizer", /at most 1024 fields, found 1025/),
  "more fields in all than can be checked": invalid(step({ groups: Array.from({ length: 4000 }, () => numbered(50)) }), "", /at most 131072 fields/),
  "a name of 1,025 characters": invalid(
    step({ grads: { [CALLER_TEXT + "é".repeat(1025 - CALLER_TEXT.length)]: { shape: [1], values: [1] } } }),
    `/grads/${CALLER_TEXT}${"é".repeat(990 - CALLER_TEXT.length)}...`,
    /a name of at most 1024 characters, found 1025 characters/,
  ),
  "a name of 1,025 characters in a blob": {
    params: step({ grads: writeTensors({ [`${CALLER_TEXT}${"x".repeat(1025 - CALLER_TEXT.length)}`]: f32(1) }) }),
    error: "PAYLOAD_TOO_LARGE",
    field: `/grads/${CALLER_TEXT}${"x".repeat(990 - CALLER_TEXT.length)}...`,
    pattern: /a name of at most 1024 characters, found 1025 characters/,
  },
  "a name of 1,025 characters of two halves": {
    params: step({ grads: writeTensors({ [CALLER_TEXT + "𝄞".repeat(1025 - CALLER_TEXT.length)]: f32(1) }) }),
    error: "PAYLOAD_TOO_LARGE",
    field: `/grads/${CALLER_TEXT}${"𝄞".repeat((990 - CALLER_TEXT.length) / 2)}...`,
    pattern: /a name of at most 1024 characters, found 1025 characters/,
  },
  "a name of 1,024 characters of two halves, which no parameter has": {
    params: step({ grads: writeTensors({ [CALLER_TEXT + "𝄞".repeat(1024 - CALLER_TEXT.length)]: f32(1) }) }),
    error: "TENSOR_MISMATCH",
    field: `/grads/${CALLER_TEXT}${"𝄞".repeat((990 - CALLER_TEXT.length) / 2)}...`,
    pattern: /expected the name of a parameter, found/,
  },
  "more names of groups than a call has": invalid(
    step({ groups: [1, 2, 3].map(() => ({ tensors: Array<string>(50_000).fill("w"), optimizer: {} })) }),
    "",
    /at most 131072 fields and items of lists beside tensors/,
  ),
  "a pattern of 1,025 characters": invalid(
    step({ groups: [{ tensors: ["*".repeat(1025)], optimizer: {} }] }),
    "/groups/0/tensors/0",
    /at most 1024 characters/,
  ),
  "4,097 groups": invalid(
    step({ groups: Array.from({ length: 4097 }, (_, index) => ({ tensors: [`${index}`], optimizer: {} })) }),
    "/groups",
    /at most 4096 items, found an array of 4097/,
  ),
  "1,025 milestones": invalid(step({ schedule: { name: "multistep", milestones: counted(1025) } }), "/schedule/milestones", /at most 1024 items/),
  "a million milestones": invalid(
    step({ schedule: { name: "multistep", milestones: counted(1_000_000) } }),
    "/schedule/milestones",
    /at most 1024 items, found an array of 1000000/,
  ),
  "65 schedules": invalid(step({ schedule: sequence(Array.from({ length: 65 }, constant)) }), "/schedule/schedules", /at most 64 items/),
  "65 schedules within each other": invalid(
    step({ schedule: sequence([sequence(Array.from({ length: 32 }, constant)), sequence(Array.from({ length: 31 }, constant))]) }),
    "/schedule",
    /at most 64 schedules/,
  ),
  // The gradients of these calls do not match the parameters.
  "a gradient without a parameter": {
    params: step({ grads: writeTensors({ [CALLER_TEXT]: f32(1) }) }),
    error: "TENSOR_MISMATCH",
    field: `/grads/${CALLER_TEXT}`,
    pattern: /which params does not have/,
  },
  "a gradient of another shape": {
    params: step({ grads: writeTensors({ w: { shape: [4], data: Float32Array.of(1, 2, 3, 4) } }) }),
    error: "TENSOR_MISMATCH",
    field: "/grads/w",
    pattern: /\[2,2\].*found.*\[4\]/,
  },
  "a gradient with a slash in its name": { params: step({ grads: writeTensors({ "a/b": f32(1) }) }), error: "TENSOR_MISMATCH", field: "/grads/a~1b" },
  "a gradient of NaN": {
    params: step({ grads: writeTensors({ b: f32(1, Number.NaN) }) }),
    error: "NON_FINITE_GRADIENT",
    field: "/grads",
    pattern: /"b" \(1 value\)/,
  },
  "an infinite gradient, as text": {
    params: plain({ values: ["Infinity", 0, "-Infinity", "NaN"] }),
    error: "NON_FINITE_GRADIENT",
    field: "/grads",
    pattern: /"w" \(3 values\)/,
  },
  // The states of these calls are well-formed but do not fit the call.
  "a state that is an object": {
    params: step({ state: {} }),
    error: "INVALID_PARAMS",
    field: "/state",
    pattern: /a blob: bin in MessagePack, a base64 string in JSON/,
  },
  "a state that is a number": { params: step({ state: 0 }), error: "INVALID_PARAMS", field: "/state" },
  "a state of another family": {
    params: step({ state: writeState({ optimizer: "sgd", steps: { b: 1 }, slots: { momentum_buffer: { b: f32(1, 2) } } }) }),
    error: "STATE_MISMATCH",
    field: "/state",
    pattern: /a state of .*adam.*found a state of sgd/,
  },
  "a state of a tensor that params does not have": {
    params: step({ state: writeState({ optimizer: "adam", steps: { [CALLER_TEXT]: 0 }, slots: {} }) }),
    error: "STATE_MISMATCH",
    field: "/state",
    pattern: /found state of "hostile_mark"/,
  },
  "a state of another shape": {
    params: step({ state: writeState({ optimizer: "adam", steps: { b: 1 }, slots: { exp_avg: { b: f32(1, 2, 3) }, exp_avg_sq: { b: f32(1, 2) } } }) }),
    error: "STATE_MISMATCH",
    field: "/state",
    pattern: /exp_avg\/b to be F32 .*\[2\].*found F32 \[3\]/,
  },
  "a state that lacks a slot": {
    params: step({ state: writeState({ optimizer: "adam", steps: { b: 1 }, slots: { exp_avg: { b: f32(1, 2) } } }) }),
    error: "STATE_MISMATCH",
    field: "/state",
    pattern: /slot exp_avg_sq\/b, after 1 steps/,
  },
  "a state at step 2^53 - 1": {
    params: step({ state: writeState({ optimizer: "adam", steps: { b: 2 ** 53 - 1 }, slots: { exp_avg: { b: f32(0, 0) }, exp_avg_sq: { b: f32(0, 0) } } }) }),
    error: "STATE_MISMATCH",
    field: "/state",
    pattern: /step\/b below 2\^53 - 1/,
  },
  // These calls use other methods than optimizer.step.
  "init without params": { ...invalid({ optimizer: { name: "adam" } }, "/params", /found none/), method: "optimizer.init" },
  "init with gradients": {
    ...invalid({ optimizer: { name: "adam" }, params: writeTensors(TENSORS), grads: "" }, "/grads", /one of optimizer, groups, params, slices, master_weights/),
    method: "optimizer.init",
  },
  "norms without gradients": { ...invalid({}, "/grads", /found none/), method: "optimizer.norms" },
  "inspect without a state": { ...invalid({}, "/state", /found none/), method: "state.inspect" },
  "inspect of an object": { ...invalid({ state: { format: 1 } }, "/state", /a blob/), method: "state.inspect" },
};

/** Returns the parameters of a valid reduce with `fields` replaced. */
const reduce = (fields: Readonly<Record<string, unknown>>) => ({ form: "deltas", updates: [{ tensors: writeTensors(TENSORS) }], ...fields });

const update = (tensors: unknown, more: object = {}) => reduce({ updates: [{ tensors: writeTensors(TENSORS) }, { tensors, ...more }] });

/** Returns an accumulator of a tensor "w" with one element. */
const accumulator = (metadata: unknown, sum = "sum/w", shape: readonly number[] = [1], weight = 1): Buffer => {
  const entries = { [sum]: { dtype: "F64", shape, data_offsets: [0, 8] }, "weight/w": { dtype: "F64", shape: [], data_offsets: [8, 16] } };
  const header = JSON.stringify({ __metadata__: metadata, ...entries, "count/w": { dtype: "I64", shape: [], data_offsets: [16, 24] } });
  return rawTensors(header, Buffer.concat([Buffer.from(Float64Array.of(1, weight).buffer), Buffer.from(BigInt64Array.of(1n).buffer)]));
};

const SUM = { format: "stepd.sum/1", form: "deltas" };

const carried = (file: Uint8Array) => reduce({ accumulator: file, updates: [] });

const [first = ""] = Object.keys(TENSORS);

const REDUCE_CASES: Readonly<Record<string, ParamsCase>> = {
  "a reduce without updates": invalid({}, "/updates", /found none/),
  "a reduce of params without params": invalid(reduce({ form: "params" }), "/params", /because form is params, found none/),
  "an unknown field of a reduce": invalid(reduce({ update: [] }), "/update", /nearest is updates/),
  "more updates than fit": invalid(reduce({ updates: Array(4097).fill({ tensors: {} }) }), "/updates", /at most 4096 items, found an array of 4097/),
  "an update without tensors": invalid(reduce({ updates: [{ weight: 1 }] }), "/updates/0/tensors", /found none/),
  "an update that is a blob": invalid(reduce({ updates: ["AAAA"] }), "/updates/0", /expected object/),
  "a negative weight": invalid(update(writeTensors(TENSORS), { weight: -1 }), "/updates/1/weight", /at least 0, found -1/),
  "a weight of NaN": { ...invalid(update(writeTensors(TENSORS), { weight: Number.NaN }), "/updates/1/weight", /found NaN/), only: "msgpack" },
  "an unknown form": invalid(reduce({ form: "delta" }), "/form", /one of params, deltas, gradients/),
  "an unknown method": invalid(reduce({ method: { name: "medain" } }), "/method/name", /nearest is median/),
  "a divisor of 0": invalid(reduce({ method: { name: "mean", divisor: 0 } }), "/method/divisor", /more than 0/),
  "a trimmed mean without a cut": invalid(reduce({ method: { name: "trimmed_mean" } }), "/method/cut", /found none/),
  "a cut of all values": invalid(reduce({ method: { name: "trimmed_mean", cut: 1 } }), "/method/cut", /less than half of 1 updates, found 1/),
  "a median with weights": invalid(
    reduce({ method: { name: "median" }, updates: [{ tensors: {}, weight: 2 }] }),
    "/updates/0/weight",
    /1, because median takes no weights, found 2/,
  ),
  "a median that does not finish": invalid(reduce({ method: { name: "median" }, finish: false }), "/finish", /all updates in one call/),
  "a median with an accumulator": invalid(reduce({ method: { name: "median" }, accumulator: accumulator(SUM) }), "/accumulator", /all updates in one call/),
  "an update that is no safetensors file": { params: update(Buffer.from("nonsense")), error: "TENSORS_CORRUPT", field: "/updates/1/tensors" },
  "an update in I32": {
    params: update(rawTensors(`{"${first}":{"dtype":"I32","shape":[0],"data_offsets":[0,0]}}`)),
    error: "UNSUPPORTED_DTYPE",
    field: `/updates/1/tensors/${first}`,
    pattern: /F32, F64, BF16, F16, I8, found I32/,
  },
  "an update of another shape": {
    params: update(writeTensors({ ...TENSORS, [first]: { shape: [1], data: Float32Array.of(1) } })),
    error: "TENSOR_MISMATCH",
    field: `/updates/1/tensors/${first}`,
    pattern: /expected shape/,
  },
  "an update with a further tensor": {
    params: update(writeTensors({ ...TENSORS, more: { shape: [1], data: Float32Array.of(1) } })),
    error: "TENSOR_MISMATCH",
    field: "/updates/1/tensors/more",
    pattern: /a name that the updates before have/,
  },
  "an update with a tensor that params lacks": {
    params: reduce({ params: {} }),
    error: "TENSOR_MISMATCH",
    field: `/updates/0/tensors/${first}`,
    pattern: /the name of a parameter/,
  },
  "an update without a tensor": {
    params: update({}),
    error: "TENSOR_MISMATCH",
    field: `/updates/1/tensors/${first}`,
    pattern: /missing renormalize, found none/,
  },
  "an update in I8 without scales": {
    params: reduce({ updates: [{ tensors: rawTensors('{"w":{"dtype":"I8","shape":[2],"data_offsets":[0,2]}}', Buffer.alloc(2)) }] }),
    error: "TENSOR_MISMATCH",
    field: "/updates/0/tensors/w.scale",
    pattern: /the scales of an I8 tensor, found none/,
  },
  "an update in I8 with scales of another shape": {
    params: reduce({
      updates: [
        {
          tensors: rawTensors(
            '{"w":{"dtype":"I8","shape":[2],"data_offsets":[0,2]},"w.scale":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}',
            Buffer.alloc(6),
          ),
        },
      ],
    }),
    error: "TENSOR_MISMATCH",
    field: "/updates/0/tensors/w.scale",
    pattern: /shape \[\] or \[2\] for scales of "w", found \[1\]/,
  },
  "an accumulator that is a state": { params: carried(writeState(STATE)), error: "STATE_CORRUPT", field: "/accumulator", pattern: /stepd\.sum\/1/ },
  "an accumulator of another form": {
    params: carried(accumulator({ ...SUM, form: "params" })),
    error: "STATE_MISMATCH",
    field: "/accumulator",
    pattern: /a sum of deltas, found a sum of params/,
  },
  "an accumulator without a sum": { params: carried(accumulator(SUM, "sum/v")), error: "STATE_CORRUPT", field: "/accumulator", pattern: /only some of them/ },
  "an accumulator with another key": { params: carried(accumulator(SUM, "mean/w")), error: "STATE_CORRUPT", field: "/accumulator", pattern: /found "mean\/w"/ },
  "an accumulator with a weight of infinity": {
    params: carried(accumulator(SUM, "sum/w", [1], Number.POSITIVE_INFINITY)),
    error: "STATE_CORRUPT",
    field: "/accumulator",
    pattern: /weight\/w to be finite/,
  },
  "an accumulator of another shape": {
    params: { ...carried(accumulator(SUM)), params: { w: { shape: [1, 1], values: [0] } } },
    error: "STATE_MISMATCH",
    field: "/accumulator",
    pattern: /shape \[1,1\], found \[1\]/,
  },
};

for (const [name, testCase] of Object.entries(REDUCE_CASES)) refusesParams(name, { ...testCase, method: "optimizer.reduce" });

for (const [name, testCase] of Object.entries(CASES)) refusesParams(name, testCase);

checkNothingIsLeft();
