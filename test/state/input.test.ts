/**
 * Tests the refusals of state.convert, in JSON and MessagePack, over RPC and REST: each names the field, the expected and the
 * found value.
 */
import assert from "node:assert/strict";
import { after, before, suite, test } from "node:test";
import { JSON_TYPE, MSGPACK, pack, type RpcError, readReply, TestService } from "../support/service.ts";
import { rawTensors } from "../support/tensors.ts";
import { type Entries, f32, scalar, writeEntries } from "./_foreign.ts";

let service: TestService;
before(async () => {
  service = await TestService.start({ STEPD_ARENA_MIB: "64" });
});
after(() => service[Symbol.asyncDispose]());

const stepd = (optimizer: string, entries: Entries, revision = "1"): Buffer => writeEntries(entries, { format: "stepd.state/1", optimizer, revision });

const MOMENTS: Entries = { "exp_avg/w": f32(1), "exp_avg_sq/w": f32(1) };
const AFTER_TWO_STEPS: Entries = { "step/w": scalar("I64", 2), ...MOMENTS };
const ADAM = stepd("adam", AFTER_TWO_STEPS);
const TORCH: Entries = { "state.0.exp_avg": f32(1), "state.0.exp_avg_sq": f32(1) };
const STEP: Entries = { "state.0.step": scalar("F32", 2) };
const QHADAM: Entries = { ...TORCH, "state.0.beta1_weight": scalar("F64", 1.9), "state.0.beta2_weight": scalar("F64", 1.999) };
const BETAS = [0.9, 0.999];

type Fields = Readonly<Record<string, unknown>>;

const torch = (entries: Entries, convention: Fields = {}): Fields => ({
  state: writeEntries(entries),
  from: { format: "torch", optimizer: "adam", ...convention },
});
const qhoptim = (entries: Entries, convention: Fields = {}): Fields => ({
  state: writeEntries({ ...QHADAM, ...entries }),
  from: { format: "qhoptim", optimizer: "qhadam", betas: BETAS, ...convention },
});
const optax = (entries: Entries, convention: Fields = {}): Fields => ({
  state: writeEntries(entries),
  from: { format: "optax", optimizer: "adam", ...convention },
});

type Case = readonly [params: Fields, name: string, field: string, pattern: RegExp];

const CASES: Readonly<Record<string, Readonly<Record<string, Case>>>> = {
  parameters: {
    "no state": [{}, "INVALID_PARAMS", "/state", /a value, found none/],
    "a state of null": [{ state: null }, "INVALID_PARAMS", "/state", /a blob/],
    "an unknown field": [{ state: ADAM, form: {} }, "INVALID_PARAMS", "/form", /nearest is from/],
    "from without a format": [{ state: ADAM, from: {} }, "INVALID_PARAMS", "/from/format", /found none/],
    "from of null": [{ state: ADAM, from: null }, "INVALID_PARAMS", "/from", /object, found null/],
    "from as a name": [{ state: ADAM, from: "torch" }, "INVALID_PARAMS", "/from", /object/],
    "an unknown format": [{ state: ADAM, to: { format: "keras" } }, "INVALID_PARAMS", "/to/format", /stepd, torch, qhoptim, optax, found "keras"/],
    "an unknown field of a convention": [{ state: ADAM, to: { format: "torch", name: [] } }, "INVALID_PARAMS", "/to/name", /nearest is names/],
    "names where the format has none": [
      { state: ADAM, to: { format: "optax", names: ["w"] } },
      "INVALID_PARAMS",
      "/to/names",
      /no value where the new format is optax/,
    ],
    "betas where the format has none": [torch(TORCH, { betas: BETAS }), "INVALID_PARAMS", "/from/betas", /no value where the given format is torch/],
    "a step for the new state": [{ state: ADAM, to: { format: "torch", step: 3 } }, "INVALID_PARAMS", "/to/step", /no value/],
    "an optimizer in the new convention": [{ state: ADAM, to: { format: "torch", optimizer: "adam" } }, "INVALID_PARAMS", "/to/optimizer", /no value/],
    "an optimizer for stepd's own state": [{ state: ADAM, from: { format: "stepd", optimizer: "adam" } }, "INVALID_PARAMS", "/from/optimizer", /no value/],
    "names that are no list": [torch(TORCH, { names: "w" }), "INVALID_PARAMS", "/from/names", /array, found "w"/],
    "a name that is a number": [torch(TORCH, { names: [1] }), "INVALID_PARAMS", "/from/names/0", /string, found 1/],
    "a name twice": [torch(TORCH, { names: ["a", "b", "a"] }), "INVALID_PARAMS", "/from/names/2", /another name.*"a", as at 0/],
    "one beta": [qhoptim({}, { betas: [0.9] }), "INVALID_PARAMS", "/from/betas", /at least 2 items/],
    "a beta of 1": [qhoptim({}, { betas: [0.9, 1] }), "INVALID_PARAMS", "/from/betas/1", /less than 1/],
    "a beta below 0": [qhoptim({}, { betas: [-0.1, 0.9] }), "INVALID_PARAMS", "/from/betas/0", /at least 0/],
    "a step of 0": [torch(TORCH, { step: 0 }), "INVALID_PARAMS", "/from/step", /at least 1/],
    "a step of 1.5": [torch(TORCH, { step: 1.5 }), "INVALID_PARAMS", "/from/step", /integer/],
    "a step of 2^53": [torch(TORCH, { step: 2 ** 53 }), "INVALID_PARAMS", "/from/step", /at most 9007199254740991/],
    "an unknown optimizer": [{ state: ADAM, optimizer: "adamv" }, "INVALID_PARAMS", "/optimizer", /one of adabelief, .*found "adamv"/],
    "an optimizer that is a number": [{ state: ADAM, optimizer: 1 }, "INVALID_PARAMS", "/optimizer", /string, found 1/],
    "an unknown optimizer of the given state": [torch(TORCH, { optimizer: "__proto__" }), "INVALID_PARAMS", "/from/optimizer", /one of adabelief, /],
    "a foreign state without an optimizer": [
      torch(TORCH, { optimizer: undefined }),
      "INVALID_PARAMS",
      "/from/optimizer",
      /files of torch do not say it, found none/,
    ],
    "qhoptim without betas, in": [qhoptim({}, { betas: undefined }), "INVALID_PARAMS", "/from/betas", /betas of the run.*none/],
    "qhoptim without betas, out": [{ state: ADAM, to: { format: "qhoptim" } }, "INVALID_PARAMS", "/to/betas", /betas of the run.*none/],
    "fill that is no list": [{ state: ADAM, fill: "max_exp_avg_sq" }, "INVALID_PARAMS", "/fill", /array/],
    "fill of a slot that the optimizer has not": [
      { state: ADAM, fill: ["momentum_buffer"] },
      "INVALID_PARAMS",
      "/fill/0",
      /of adam that can be added: max_exp_avg_sq, found "mom/,
    ],
    "fill of a slot that always is there": [{ state: ADAM, fill: ["exp_avg"] }, "INVALID_PARAMS", "/fill/0", /found "exp_avg"/],
    "fill of __proto__": [{ state: ADAM, fill: ["max_exp_avg_sq", "__proto__"] }, "INVALID_PARAMS", "/fill/1", /found "__proto__"/],
    "fill of master_param": [{ state: ADAM, fill: ["master_param"] }, "INVALID_PARAMS", "/fill/0", /"master_param", which needs the parameters/],
    "fill for an optimizer that has nothing to add": [
      { state: stepd("lion", { "step/w": scalar("I64", 1), "exp_avg/w": f32(1) }), fill: ["exp_avg_sq"] },
      "INVALID_PARAMS",
      "/fill/0",
      /no slot, because lion has none/,
    ],
  },
  "states that do not fit": {
    "another family": [{ state: ADAM, optimizer: "sgd" }, "STATE_MISMATCH", "/optimizer", /adam, adamw, .*the family adam of the state of adam, found sgd/],
    "another family than the file's": [{ ...torch({ ...TORCH, ...STEP }), optimizer: "lion" }, "STATE_MISMATCH", "/optimizer", /family adam/],
    "a newer revision": [{ state: stepd("adam", AFTER_TWO_STEPS, "99") }, "STATE_MISMATCH", "/state", /revision \d+ or older, found revision 99/],
    "a format that has no such optimizer, out": [
      { state: stepd("adagrad", { "step/w": scalar("I64", 1), "sum/w": f32(1) }), to: { format: "optax" } },
      "STATE_MISMATCH",
      "/to/format",
      /another format than optax, which holds states of .*lion.*found adagrad/,
    ],
    "a format that has no such optimizer, in": [
      qhoptim({}, { optimizer: "lars" }),
      "STATE_MISMATCH",
      "/from/format",
      /another format than qhoptim.*found lars/,
    ],
    "an index without a name": [torch({ "state.7.step": scalar("F32", 1) }, { names: ["w"] }), "STATE_MISMATCH", "/from/names", /a name for index 7.*1 names/],
    "a name without an index": [{ state: ADAM, to: { format: "torch", names: ["v"] } }, "STATE_MISMATCH", "/to/names", /none that is "w"/],
    "different steps for optax": [
      { state: stepd("adam", { ...AFTER_TWO_STEPS, "step/v": scalar("I64", 3), "exp_avg/v": f32(1) }), to: { format: "optax" } },
      "STATE_MISMATCH",
      "/state",
      /the same step.*2 for "w" and 3 for "v"/,
    ],
    "fill of a slot without one to take the shape of": [
      { state: stepd("sgd", { "step/w": scalar("I64", 2) }), fill: ["momentum_buffer"] },
      "STATE_MISMATCH",
      "/fill/0",
      /another slot of "w" beside it/,
    ],
    "fill of a copy without its source": [
      { state: stepd("adam", { "step/w": scalar("I64", 2), "exp_avg/w": f32(1) }), fill: ["max_exp_avg_sq"] },
      "STATE_MISMATCH",
      "/fill/0",
      /exp_avg_sq of "w" beside it/,
    ],
    "weights of other betas": [
      qhoptim({}, { betas: [0.8, 0.999] }),
      "STATE_MISMATCH",
      "/from/betas",
      /beta1_weight of "0" to be 1\.8, as after 2 steps with beta 0.8, found 1.9/,
    ],
    "weights of different steps": [qhoptim({ "state.0.beta1_weight": scalar("F64", 1) }), "STATE_MISMATCH", "/from/betas", /beta._weight of "0"/],
    "one weight of 0": [qhoptim({ "state.0.beta1_weight": scalar("F64", 0) }), "STATE_MISMATCH", "/from/betas", /beta2_weight of "0" to be 0, .*0 steps/],
    "weights between two steps": [
      qhoptim({ "state.0.beta1_weight": scalar("F64", 2.4), "state.0.beta2_weight": scalar("F64", 2.6) }),
      "STATE_MISMATCH",
      "/from/betas",
      /as after 3 steps/,
    ],
  },
  "steps that the file does not have": {
    torch: [torch(TORCH), "INVALID_PARAMS", "/from/step", /the count of steps, which the file does not have, found none for "0"/],
    "torch, of sgd": [torch({ "state.0.momentum_buffer": f32(1) }, { optimizer: "sgd" }), "INVALID_PARAMS", "/from/step", /none for "0"/],
    optax: [optax({ "mu/w": f32(1) }), "INVALID_PARAMS", "/from/step", /none for "w"/],
  },
  "corrupt files": {
    "no safetensors": [{ state: Buffer.from("{}"), from: { format: "torch" }, optimizer: "adam" }, "STATE_CORRUPT", "/state", /safetensors file/],
    "a header that lies": [
      { state: rawTensors('{"state.0.step":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}'), from: { format: "torch" }, optimizer: "adam" },
      "STATE_CORRUPT",
      "/state",
      /./,
    ],
    "a foreign file as stepd's": [{ state: writeEntries(TORCH) }, "STATE_CORRUPT", "/state", /__metadata__.format/],
    "stepd's file as torch's": [
      { state: ADAM, from: { format: "torch" }, optimizer: "adam" },
      "STATE_CORRUPT",
      "/state",
      /keys state.<parameter>.<slot> with a slot among exp_avg/,
    ],
    "stepd's file as optax's": [
      { state: ADAM, from: { format: "optax" }, optimizer: "adam" },
      "STATE_CORRUPT",
      "/state",
      /keys <slot>\/<parameter>, or count, with a slot among mu, nu/,
    ],
    "a slot of another optimizer": [torch({ "state.0.momentum_buffer": f32(1) }), "STATE_CORRUPT", "/state", /found "state.0.momentum_buffer"/],
    "mu_product of Adam": [torch({ "state.0.mu_product": scalar("F32", 1) }), "STATE_CORRUPT", "/state", /mu_product/],
    "step in qhoptim": [qhoptim({ "state.0.step": scalar("F32", 1) }), "STATE_CORRUPT", "/state", /found "state.0.step"/],
    "a key without a slot": [torch({ "state.0": f32(1) }), "STATE_CORRUPT", "/state", /found "state.0"/],
    "a name in place of an index": [torch({ "state.w.step": scalar("F32", 1) }, { names: ["w"] }), "STATE_CORRUPT", "/state", /keys state.<index>.<slot>/],
    "an index with a zero in front": [torch({ "state.00.step": scalar("F32", 1) }, { names: ["w"] }), "STATE_CORRUPT", "/state", /state.00.step/],
    "nu_max of optax's amsgrad": [optax({ "nu_max/w": f32(1) }), "STATE_CORRUPT", "/state", /nu_max/],
    "a step in F32 that is not whole": [torch({ ...TORCH, "state.0.step": scalar("F32", 1.5) }), "STATE_CORRUPT", "/state", /whole number.*1.5/],
    "a step of NaN": [torch({ ...TORCH, "state.0.step": scalar("F32", Number.NaN) }), "STATE_CORRUPT", "/state", /whole number.*NaN/],
    "a step below 0": [torch({ ...TORCH, "state.0.step": scalar("I64", -1) }), "STATE_CORRUPT", "/state", /whole number.*-1/],
    "a step in I32": [torch({ ...TORCH, "state.0.step": scalar("I32", 1) }), "STATE_CORRUPT", "/state", /scalar in F32 or F64 or I64, found I32/],
    "a step with a dimension": [torch({ ...TORCH, "state.0.step": f32(1) }), "STATE_CORRUPT", "/state", /scalar.*F32 \[1\]/],
    "a count in F32": [optax({ count: scalar("F32", 1) }), "STATE_CORRUPT", "/state", /count to be a scalar in I32 or I64/],
    "a count below 0": [optax({ count: scalar("I32", -5) }), "STATE_CORRUPT", "/state", /count to be a whole number.*-5/],
    "a moment in I32": [
      torch({ ...STEP, "state.0.exp_avg": { dtype: "I32", shape: [1], values: [1] } }),
      "UNSUPPORTED_DTYPE",
      "/state/state.0.exp_avg",
      /F32, F64, BF16, F16, found I32/,
    ],
    "a weight in F32": [qhoptim({ "state.0.beta1_weight": scalar("F32", 1) }), "STATE_CORRUPT", "/state", /scalar in F64, found F32/],
    "a weight below 1": [qhoptim({ "state.0.beta1_weight": scalar("F64", 0.5) }), "STATE_CORRUPT", "/state", /0 or at least 1, found 0.5/],
    "a weight of NaN": [qhoptim({ "state.0.beta2_weight": scalar("F64", Number.NaN) }), "STATE_CORRUPT", "/state", /beta2_weight.*NaN/],
    "moments without weights": [
      { state: writeEntries({ ...TORCH, "state.0.beta1_weight": scalar("F64", 1) }), from: { format: "qhoptim", betas: BETAS }, optimizer: "qhadam" },
      "STATE_CORRUPT",
      "/state",
      /beta2_weight beside the moments of "0", found none/,
    ],
  },
};

const toJson = (value: unknown): string =>
  JSON.stringify(value, function (this: Record<string, unknown>, key, item) {
    const held = this[key];
    return held instanceof Uint8Array ? Buffer.from(held).toString("base64") : item;
  });

for (const [title, cases] of Object.entries(CASES)) {
  suite(title, () => {
    for (const [label, [params, name, field, pattern]] of Object.entries(cases)) {
      test(`refuses ${label}`, async () => {
        // MessagePack would encode undefined values, but the field must be absent, so these values are removed.
        const clean = Object.fromEntries(
          Object.entries(params).map(([key, value]) => [
            key,
            key === "from" && typeof value === "object" && value !== null
              ? Object.fromEntries(Object.entries(value).filter(([, item]) => item !== undefined))
              : value,
          ]),
        );
        for (const [type, encode] of [
          [JSON_TYPE, toJson],
          [MSGPACK, pack],
        ] as const) {
          const rest = await service.post("/v1/state/convert", encode(clean), type);
          const problem = (await readReply(rest)) as RpcError["data"] & { readonly detail: string };
          const rpc = await service.post("/rpc", encode({ jsonrpc: "2.0", id: 1, method: "state.convert", params: clean }), type);
          const { error } = (await readReply(rpc)) as { readonly error: RpcError };
          assert.deepEqual([error?.data.name, error?.data.field, problem.name, problem.field], [name, field, name, field], error?.message);
          assert.match(error.message, pattern);
          assert.equal(problem.detail, error.message);
          assert.ok(rest.status >= 400 && rest.status < 500);
        }
      });
    }
  });
}

test("after all refusals the arena is empty, and a conversion is right", async () => {
  assert.equal(await service.metric("stepd_arena_used_bytes"), 0);
  const { lost } = await service.call<{ lost: string[] }>("state.convert", { state: ADAM, to: { format: "torch" } });
  assert.deepEqual(lost, []);
  assert.doesNotMatch(service.log.join(""), /INTERNAL_ERROR|a call failed/);
});
