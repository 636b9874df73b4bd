/** Tests `state_dtype`, which stores moments in BF16 or in 8 bits: a step widens them, computes as with F32, and rounds once. */
import assert from "node:assert/strict";
import { after, before, suite, test } from "node:test";
import { registry } from "../../src/optimizers/registry.ts";
import { decode, encode, type Kind, storedIn, widened } from "../support/moments.ts";
import { gradsAt, type StepReply, startParams } from "../support/run.ts";
import { type RpcError, TestService } from "../support/service.ts";
import { writeTensors } from "../support/tensors.ts";
import { typed, writeTyped } from "../support/typed.ts";
import { variants } from "../support/variants.ts";

let service: TestService;
before(async () => {
  service = await TestService.start({ STEPD_WORKERS: "1" });
});
after(() => service[Symbol.asyncDispose]());

type Reply = StepReply & { readonly warnings?: readonly string[]; readonly stats?: object };

const step = (optimizer: unknown, params: Uint8Array, grads: Uint8Array, state: Uint8Array | null, more: object = {}): Promise<Reply> =>
  service.call<Reply>("optimizer.step", { optimizer, params, grads, state, ...more });

/** A tensor just large enough for Q8, with a short last block; a tensor that is too small for Q8; a scalar; an empty tensor. */
const SHAPES = { coded: [4096 + 21], small: [99], scale: [], empty: [0] } as const;

/** Here the coded tensor takes more than one shard. */
const WIDE = { ...SHAPES, coded: [65_536 + 70] } as const;

const narrow = variants.filter(({ optimizer: { name, centered } }) => registry.get(name)?.moments && centered !== true);

suite("a step with narrow moments equals an F32 step from the widened state, rounded once", () => {
  for (const state_dtype of ["BF16", "Q8"]) {
    for (const { label, optimizer } of narrow) {
      test(`${label}, ${state_dtype}`, async () => {
        const shapes = label === "adamw" ? WIDE : SHAPES;
        const moments = registry.get(optimizer.name)?.moments ?? {};
        let params: Uint8Array = writeTensors(startParams(shapes));
        let state: Uint8Array | null = null;
        for (let count = 1; count <= 2; count++) {
          const grads = writeTensors(gradsAt(shapes, count));
          const found: Reply = await step({ ...optimizer, state_dtype }, params, grads, state);
          const expected = await step(optimizer, params, grads, state && widened(state));
          assert.ok(Buffer.from(found.params).equals(Buffer.from(expected.params)), `params of step ${count}`);
          const { stored } = storedIn(found.state);
          const exact = storedIn(expected.state).stored;
          assert.deepEqual([...stored.keys()].sort(), [...exact.keys()].sort());
          for (const [key, { dtype, bytes, scales, shape }] of stored) {
            const [slot = "", name = ""] = key.split("/");
            const wide = exact.get(key) as NonNullable<ReturnType<typeof exact.get>>;
            const kind = moments[slot] as Kind | undefined;
            const isCoded = state_dtype === "Q8" && shape.reduce((product, size) => product * size, 1) >= 4096;
            const expectedDtype = kind === undefined ? wide.dtype : state_dtype === "BF16" ? "BF16" : !isCoded ? "F32" : kind === "signed" ? "I8" : "U8";
            assert.equal(dtype, expectedDtype, key);
            const rounded = dtype === wide.dtype ? wide : encode(decode(wide), dtype, kind as Kind, `${count}/${slot}/${name}`);
            assert.ok(bytes.equals(rounded.bytes), `${key} after step ${count}`);
            assert.equal(scales?.toString("hex"), rounded.scales?.toString("hex"), `scales of ${key} after step ${count}`);
          }
          params = found.params;
          state = found.state;
        }
      });
    }
  }
});

test("parameters and gradients in BF16 beside narrow moments: every block reads its own part", async () => {
  const shapes = { w: [65_536 + 9000] } as const;
  const params = writeTyped(typed(startParams(shapes), "BF16"));
  const optimizer = { name: "adamw", lr: 0.1 };
  for (const state_dtype of ["BF16", "Q8"]) {
    const first = await step({ ...optimizer, state_dtype }, params, writeTyped(typed(gradsAt(shapes, 1), "BF16")), null);
    const grads = writeTyped(typed(gradsAt(shapes, 2), "BF16"));
    const found = await step({ ...optimizer, state_dtype }, first.params, grads, first.state, { stats: "tensor" });
    const expected = await step(optimizer, first.params, grads, widened(first.state), { stats: "tensor" });
    assert.ok(Buffer.from(found.params).equals(Buffer.from(expected.params)));
    assert.deepEqual(found.stats, expected.stats);
  }
});

test("init gives the state that the first step starts from", async () => {
  const params = writeTensors(startParams(SHAPES));
  for (const state_dtype of ["BF16", "Q8"]) {
    const optimizer = { name: "adamw", state_dtype };
    const { state } = await service.call<{ readonly state: Uint8Array }>("optimizer.init", { optimizer, params });
    const grads = writeTensors(gradsAt(SHAPES, 1));
    const [found, expected] = [await step(optimizer, params, grads, state), await step(optimizer, params, grads, null)];
    assert.ok(Buffer.from(found.state).equals(Buffer.from(expected.state)));
    assert.ok(Buffer.from(found.params).equals(Buffer.from(expected.params)));
  }
});

test("plan counts the bytes of a state that a step returns", async () => {
  const tensors = Object.fromEntries(Object.entries(SHAPES).map(([name, shape]) => [name, { shape }]));
  const params = writeTensors(startParams(SHAPES));
  for (const state_dtype of ["F32", "BF16", "Q8"]) {
    const optimizer = { name: "adamw", state_dtype };
    const { state } = await step(optimizer, params, writeTensors(gradsAt(SHAPES, 1)), null);
    const plan = await service.call<{ readonly state_bytes: number }>("optimizer.plan", { optimizer, tensors });
    assert.equal(plan.state_bytes, state.length);
  }
});

test("a group has its own format, and inspect names the dtypes", async () => {
  const shapes = { a: [64, 64], b: [64, 64], c: [64, 64] } as const;
  const groups = [
    { tensors: ["a"], optimizer: { state_dtype: "Q8" } },
    { tensors: ["b"], optimizer: { state_dtype: "BF16" } },
  ];
  const { state } = await step({ name: "adamw" }, writeTensors(startParams(shapes)), writeTensors(gradsAt(shapes, 1)), null, { groups });
  const { tensors } = await service.call<{ readonly tensors: Readonly<Record<string, { readonly slots: object }>> }>("state.inspect", { state });
  const all = (exp_avg: string, exp_avg_sq: string, scales = {}): object => ({
    exp_avg: { dtype: exp_avg, shape: [64, 64] },
    exp_avg_sq: { dtype: exp_avg_sq, shape: [64, 64] },
    ...scales,
  });
  const scale = { dtype: "BF16", shape: [64] };
  assert.deepEqual(tensors["a"]?.slots, all("I8", "U8", { "exp_avg.scale": scale, "exp_avg_sq.scale": scale }));
  assert.deepEqual(tensors["b"]?.slots, all("BF16", "BF16"));
  assert.deepEqual(tensors["c"]?.slots, all("F32", "F32"));
});

suite("state.convert", () => {
  const convert = async (state: Uint8Array, more: object): Promise<Uint8Array> =>
    (await service.call<{ state: Uint8Array }>("state.convert", { state, ...more })).state;
  const params = writeTensors(startParams(SHAPES));
  const grads = writeTensors(gradsAt(SHAPES, 1));
  const after = async (state_dtype: string): Promise<Uint8Array> => (await step({ name: "adamw", state_dtype }, params, grads, null)).state;
  test("rounds a state in F32 as the step does that made it", async () => {
    const exact = await after("F32");
    for (const state_dtype of ["BF16", "Q8"]) assert.ok(Buffer.from(await convert(exact, { state_dtype })).equals(Buffer.from(await after(state_dtype))));
    assert.ok(Buffer.from(await convert(exact, { state_dtype: "F32" })).equals(Buffer.from(exact)));
  });
  test("widens exactly, also from one narrow format to the other, and before it fills", async () => {
    for (const from of ["BF16", "Q8"]) {
      const state = await after(from);
      const wide = await convert(state, { state_dtype: "F32" });
      assert.deepEqual(storedIn(wide).stored, storedIn(widened(state)).stored);
      for (const state_dtype of ["BF16", "Q8"].filter((other) => other !== from)) {
        assert.ok(Buffer.from(await convert(state, { state_dtype })).equals(Buffer.from(await convert(wide, { state_dtype }))));
      }
      const filled = storedIn(await convert(state, { fill: ["max_exp_avg_sq"] })).stored;
      assert.deepEqual(filled.get("max_exp_avg_sq/coded"), filled.get("exp_avg_sq/coded"));
      assert.ok(Buffer.from(await convert(state, {})).equals(Buffer.from(state)));
    }
  });
  test("writes files of other libraries in F32, and refuses a narrow format there", async () => {
    const [state, to] = [await after("Q8"), { format: "torch" }];
    assert.ok(Buffer.from(await convert(state, { to })).equals(Buffer.from(await convert(widened(state), { to }))));
    const error = await convert(state, { to, state_dtype: "BF16" }).then(
      () => undefined,
      (error: RpcError) => error.data,
    );
    assert.deepEqual([error?.name, error?.field], ["INVALID_PARAMS", "/state_dtype"]);
  });
});

suite("refusals", () => {
  const shapes = { w: [64, 64] } as const;
  const params = writeTensors(startParams(shapes));
  const grads = writeTensors(gradsAt(shapes, 1));
  const refused = (optimizer: unknown, values: Uint8Array, state: Uint8Array | null, more: object = {}): Promise<RpcError["data"]> =>
    step(optimizer, values, values === params ? grads : values, state, more).then(
      () => assert.fail("the step was accepted"),
      (error: RpcError) => error.data,
    );
  test("a parameter in F64", async () => {
    const double = writeTyped(typed(startParams(shapes), "F64"));
    const found = await refused({ name: "adamw", state_dtype: "BF16" }, double, null);
    assert.deepEqual([found.name, found.field], ["UNSUPPORTED_DTYPE", "/optimizer/state_dtype"]);
    assert.equal(found.expected, "F32 for a parameter in F64, whose moments are F64");
    const grouped = await refused({ name: "adamw" }, double, null, { groups: [{ tensors: ["*"], optimizer: { state_dtype: "Q8" } }] });
    assert.equal(grouped.field, "/groups/0/optimizer/state_dtype");
  });
  test("a state in another format", async () => {
    const pairs = ["F32 BF16 F32", "BF16 F32 BF16", "Q8 F32 I8", "F32 Q8 F32", "Q8 BF16 I8", "BF16 Q8 BF16"];
    for (const [from, to, dtype] of pairs.map((pair) => pair.split(" "))) {
      const { state } = await step({ name: "adamw", state_dtype: from }, params, grads, null);
      const error = await refused({ name: "adamw", state_dtype: to }, params, state);
      assert.deepEqual([error.name, error.field, error.found], ["STATE_MISMATCH", "/state", dtype]);
      assert.match(error.expected ?? "", /^exp_avg\/w in \w+, as state_dtype \w+ stores it; state\.convert changes it$/);
    }
  });
  test("a code of the wrong kind, and a shape of scales that does not fit", async () => {
    const { state } = await step({ name: "adamw", state_dtype: "Q8" }, params, grads, null);
    const text = Buffer.from(state).toString("latin1");
    const changed = (from: string, to: string): Promise<RpcError["data"]> => {
      assert.ok(text.includes(from) && from.length === to.length);
      return refused({ name: "adamw", state_dtype: "Q8" }, params, Buffer.from(text.replace(from, to), "latin1"));
    };
    const kind = await changed('"exp_avg/w":{"dtype":"I8"', '"exp_avg/w":{"dtype":"U8"');
    assert.deepEqual([kind.name, kind.expected], ["STATE_MISMATCH", "exp_avg/w to be F32 or BF16 or I8 [64,64] for a parameter in F32"]);
    const scales = await changed('"exp_avg.scale/w":{"dtype":"BF16","shape":[64]', '"exp_avg.scale/w":{"dtype":"F16", "shape":[64]');
    assert.deepEqual([scales.name, scales.expected, scales.found], ["STATE_CORRUPT", "exp_avg.scale/w to be BF16 [64]", "F16 [64]"]);
    const missing = await changed('"exp_avg.scale/w"', '"exp_avg.scale/v"');
    assert.equal(missing.name, "STATE_CORRUPT");
  });
  test("centered RMSprop", async () => {
    const found = await refused({ name: "rmsprop", centered: true, state_dtype: "Q8" }, params, null);
    assert.deepEqual([found.name, found.field], ["INVALID_PARAMS", "/optimizer/state_dtype"]);
  });
});

test("slow averages follow their gradients, which rounding to nearest would stop", async () => {
  const shape = [4096];
  const elements = Array.from({ length: 4096 }, (_, at) => at);
  // The first gradient of each block stays at 1, so the scale stays far above the other moments.
  const gradsOf = (value: number): Uint8Array => writeTensors({ w: { shape, data: Float32Array.from(elements, (at) => (at % 64 === 0 ? 1 : value)) } });
  const [early, late] = [gradsOf(1), gradsOf(0.1)];
  const meansOf = async (state_dtype: string): Promise<Readonly<Record<string, number>>> => {
    let state: Uint8Array | null = null;
    for (let count = 0; count < 300; count++) {
      const optimizer = { name: "adamw", lr: 0, betas: [0.998, 0.99], state_dtype };
      state = (await step(optimizer, late, count < 20 ? early : late, state)).state;
    }
    const { stored } = storedIn(state as Uint8Array);
    const meanOf = (slot: string): number => {
      const values = decode(stored.get(`${slot}/w`) as NonNullable<ReturnType<typeof stored.get>>).filter((_, at) => at % 64 !== 0);
      return values.reduce((sum, value) => sum + value, 0) / values.length;
    };
    return { exp_avg: meanOf("exp_avg"), exp_avg_sq: meanOf("exp_avg_sq") };
  };
  const exact = await meansOf("F32");
  for (const state_dtype of ["BF16", "Q8"]) {
    for (const [slot, found] of Object.entries(await meansOf(state_dtype))) {
      assert.ok(Math.abs(found / (exact[slot] as number) - 1) < 0.03, `${slot} in ${state_dtype}: ${found} for ${exact[slot]}`);
    }
  }
});

test("Q8 keeps infinite and NaN moments visible, and zeros beside an infinite square", async () => {
  const data = new Float32Array(4096);
  data.set([3e38, 0, 1]);
  data.set([Number.NaN], 64);
  const params = writeTensors({ w: { shape: [4096], data: new Float32Array(4096).fill(1) } });
  const grads = writeTensors({ w: { shape: [4096], data } });
  const { state } = await step({ name: "adamw", state_dtype: "Q8" }, params, grads, null, { non_finite: "propagate" });
  const { stored } = storedIn(state);
  const moment = (slot: string): Float32Array => decode(stored.get(`${slot}/w`) as NonNullable<ReturnType<typeof stored.get>>);
  assert.deepEqual([...moment("exp_avg_sq").subarray(0, 4)], [Number.POSITIVE_INFINITY, 0, Number.POSITIVE_INFINITY, 0]);
  assert.ok(moment("exp_avg_sq").subarray(64, 128).every(Number.isNaN));
  assert.ok(moment("exp_avg").subarray(64, 128).every(Number.isNaN));
  assert.ok(
    moment("exp_avg")
      .subarray(128)
      .every((value) => value === 0),
  );
});
