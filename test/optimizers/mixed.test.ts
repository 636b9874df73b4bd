/**
 * Tests groups with an optimizer of their own. A mixed step gives each parameter the bits that its optimizer gives alone, and a mixed
 * state can be planned, created, sharded, inspected and converted.
 */
import assert from "node:assert/strict";
import { after, before, suite, test } from "node:test";
import { registry } from "../../src/optimizers/registry.ts";
import { gradsAt, SMALL, startParams } from "../support/run.ts";
import { type RpcError, TestService } from "../support/service.ts";
import { rawTensors, readFile, type TestTensors, writeTensors } from "../support/tensors.ts";
import { typed, writeTyped } from "../support/typed.ts";
import { narrowVariants, type Variant, variants } from "../support/variants.ts";

let service: TestService;
before(async () => {
  service = await TestService.start();
});
after(() => service[Symbol.asyncDispose]());

/** With Q8, the largest tensor has moments in 8 bits. The tensors with a dot in their names belong to the group. */
const { w, b, big, ...others } = SMALL;
const SHAPES = { w, b, "head.coded": [4200], "head.big": big, ...others };
const IN_GROUP = /\./;
const NAMES = Object.keys(SHAPES);
const STEPS = 3;

interface Reply {
  readonly params: Uint8Array;
  readonly state: Uint8Array;
  readonly lr: number;
  readonly stats?: { readonly tensors: Readonly<Record<string, { readonly trust_ratio?: number }>> };
}

const step = (call: Readonly<Record<string, unknown>>): Promise<Reply> => service.call<Reply>("optimizer.step", call);

const onlyOf = (tensors: TestTensors, isWanted: (name: string) => boolean): TestTensors =>
  Object.fromEntries(Object.entries(tensors).filter(([name]) => isWanted(name)));

/** Takes steps of the parameters that `isWanted` selects. */
const train = async (options: Readonly<Record<string, unknown>>, isWanted: (name: string) => boolean = () => true): Promise<Reply> => {
  let reply: Partial<Reply> = { params: writeTensors(onlyOf(startParams(SHAPES), isWanted)) };
  for (let taken = 0; taken < STEPS; taken++) {
    const grads = writeTensors(onlyOf(gradsAt(SHAPES, taken), isWanted));
    reply = await step({ ...options, params: reply.params, state: reply.state ?? null, grads });
  }
  return reply as Reply;
};

/** Returns the bytes of all tensors of some files, by name. */
const bytesOf = (...files: readonly Uint8Array[]): Record<string, string> =>
  Object.fromEntries(files.flatMap((file) => [...readFile(file).entries].map(([name, { bytes }]) => [name, bytes.toString("base64")])));

const requireEqual = (found: Uint8Array, expected: Uint8Array, what: string): void => assert.ok(Buffer.from(found).equals(Buffer.from(expected)), what);

const groupOf = (optimizer: Variant["optimizer"]) => [{ tensors: ["head.*"], optimizer }];

/** Pairs each variant with the next one, so that every variant is once the base and once the optimizer of the group. */
const all = [...variants, ...narrowVariants].filter(({ isGlobal }) => !isGlobal);
const pairs = all.map((base, index) => [base, all[(index + 1) % all.length] as Variant] as const);

for (const [base, own] of pairs) {
  test(`${base.label} beside ${own.label}: the bits of each alone`, async () => {
    const schedule = { name: "exponential", gamma: 0.5 };
    const groups = groupOf(own.optimizer);
    const mixed = await train({ optimizer: base.optimizer, groups, schedule });
    const rest = await train({ optimizer: base.optimizer, schedule }, (name) => !IN_GROUP.test(name));
    const inGroup = await train({ optimizer: own.optimizer, schedule }, (name) => IN_GROUP.test(name));
    assert.deepEqual(bytesOf(mixed.params), bytesOf(rest.params, inGroup.params));
    assert.deepEqual(bytesOf(mixed.state), bytesOf(rest.state, inGroup.state));

    const other = own.optimizer.name === base.optimizer.name ? [] : [["optimizer/head.big"], ["optimizer/head.coded"]];
    const revision = (name: string): string => String(registry.get(name)?.revision);
    assert.deepEqual(readFile(mixed.state).metadata, {
      format: "stepd.state/1",
      optimizer: base.optimizer.name,
      revision: revision(base.optimizer.name),
      ...Object.fromEntries(other.map(([key]) => [key, own.optimizer.name])),
      ...(other.length > 0 && { [`revision/${own.optimizer.name}`]: revision(own.optimizer.name) }),
    });
  });
}

const adamw = { name: "adamw", weight_decay: 0.1 };
const sgd = { name: "sgd", lr: 0.1, momentum: 0.9 };
const nadam = { name: "nadam" };

/** These pairs have late slots, scalar slots, sums over tensors, and two optimizers of one family. */
const CASES = [
  [adamw, sgd],
  [nadam, { name: "lars" }],
  [sgd, nadam],
  [{ name: "lamb" }, adamw],
] as const;

for (const [optimizer, own] of CASES) {
  suite(`${optimizer.name} beside ${own.name}`, () => {
    const groups = groupOf(own);
    const options = { optimizer, groups };

    test("optimizer.init gives the start of a step without a state", async () => {
      const { state } = await service.call<Reply>("optimizer.init", { ...options, params: writeTensors(startParams(SHAPES)) });
      const call = { ...options, params: writeTensors(startParams(SHAPES)), grads: writeTensors(gradsAt(SHAPES, 0)) };
      const [fromInit, fromNothing] = [await step({ ...call, state }), await step(call)];
      requireEqual(fromInit.params, fromNothing.params, "params");
      requireEqual(fromInit.state, fromNothing.state, "state");
    });

    test("optimizer.plan predicts the bytes of the state", async () => {
      const tensors = Object.fromEntries(Object.entries(SHAPES).map(([name, shape]) => [name, { shape }]));
      const { state_bytes } = await service.call<{ state_bytes: number }>("optimizer.plan", { ...options, tensors });
      assert.equal(state_bytes, (await train(options)).state.length);
    });

    test("calls for some of the tensors give the bits of one call", async () => {
      const whole = await train(options);
      const parts = await Promise.all([0, 1, 2].map((shard) => train(options, (name) => NAMES.indexOf(name) % 3 === shard)));
      assert.deepEqual(bytesOf(...parts.map(({ params }) => params)), bytesOf(whole.params));
      assert.deepEqual(bytesOf(...parts.map(({ state }) => state)), bytesOf(whole.state));
    });

    test("the base and the group may change places, and the same state goes on", async () => {
      const { params, state } = await train(options);
      const call = { params, state, grads: writeTensors(gradsAt(SHAPES, STEPS)) };
      const [found, expected] = [
        await step({ ...call, optimizer: own, groups: [{ tensors: NAMES.filter((name) => !IN_GROUP.test(name)), optimizer }] }),
        await step({ ...call, ...options }),
      ];
      requireEqual(found.params, expected.params, "params");
      assert.deepEqual(bytesOf(found.state), bytesOf(expected.state));
      const back = await step({ ...call, ...options, params: found.params, state: found.state });
      requireEqual(back.state, (await step({ ...call, ...options, params: expected.params, state: expected.state })).state, "state, and its header");
    });

    test("state.inspect names the optimizer of each parameter", async () => {
      const { state } = await train(options);
      const found = await service.call<Record<string, unknown>>("state.inspect", { state });
      assert.deepEqual([found["optimizer"], found["revisions"]], [optimizer.name, { [own.name]: registry.get(own.name)?.revision }]);
      const tensors = found["tensors"] as Record<string, { readonly optimizer?: string }>;
      for (const [name, { optimizer: named }] of Object.entries(tensors)) assert.equal(named, IN_GROUP.test(name) ? own.name : undefined);
    });

    test("state.convert gives torch's slots of each parameter, and reads them again", async () => {
      const { state } = await train(options);
      const there = await service.call<{ state: Uint8Array; lost: string[] }>("state.convert", { state, to: { format: "torch" } });
      const from = { format: "torch", optimizer: optimizer.name, step: STEPS };
      const back = await service.call<{ state: Uint8Array }>("state.convert", { state: there.state, from });
      if (there.lost.some((sentence) => sentence.includes("mu_product"))) {
        const { [`mu_product/head.big`]: _, ...slots } = bytesOf(state);
        assert.equal(bytesOf(back.state)["exp_avg_sq/w"], slots["exp_avg_sq/w"]);
        assert.deepEqual(readFile(back.state).metadata, readFile(state).metadata);
      } else requireEqual(back.state, state, "there and back");
      const narrow = await service.call<{ state: Uint8Array }>("state.convert", { state, state_dtype: "BF16" });
      const wide = await service.call<{ state: Uint8Array }>("state.convert", { state: narrow.state, state_dtype: "F32" });
      assert.deepEqual([...readFile(wide.state).entries.keys()], [...readFile(state).entries.keys()]);
      assert.ok(narrow.state.length < state.length);
    });
  });
}

test("state.convert changes the optimizers of one family, and leaves the others", async () => {
  const { state } = await train({ optimizer: sgd, groups: groupOf(nadam) });
  const { state: found, lost } = await service.call<{ state: Uint8Array; lost: string[] }>("state.convert", {
    state,
    optimizer: "adam",
    fill: ["max_exp_avg_sq"],
  });
  const { metadata, entries } = readFile(found);
  assert.deepEqual([metadata["optimizer"], metadata["optimizer/head.big"], metadata["revision/adam"]], ["sgd", "adam", String(registry.get("adam")?.revision)]);
  assert.deepEqual(lost, ['adam has no slot mu_product: "head.big", "head.coded"']);
  assert.ok(entries.has("max_exp_avg_sq/head.big") && entries.has("momentum_buffer/w") && !entries.has("max_exp_avg_sq/w"));
});

test("a group that names its optimizer inherits nothing, and a schedule multiplies its own rate", async () => {
  const optimizer = { name: "adamw", lr: 0.25, weight_decay: 0.5, betas: [0.5, 0.5] };
  const schedule = { name: "constant", factor: 0.5, total_iters: 10 };
  const named = await train({ optimizer, schedule, groups: groupOf({ name: "adamw" }) });
  const alone = await train({ optimizer: { name: "adamw" }, schedule }, (name) => IN_GROUP.test(name));
  const inherits = await train({ optimizer, schedule, groups: [{ tensors: ["head.*"], optimizer: { lr: 0.001 } }] });
  assert.equal(bytesOf(named.params)["head.big"], bytesOf(alone.params)["head.big"]);
  assert.notEqual(bytesOf(inherits.params)["head.big"], bytesOf(alone.params)["head.big"]);
  assert.equal(named.lr, 0.125);
});

test("statistics, skipped steps, master weights and metrics know the optimizer of each parameter", async () => {
  const params = writeTyped(typed(startParams(SHAPES), "BF16"));
  const grads = writeTyped(typed(gradsAt(SHAPES, 0), "BF16"));
  const call = { optimizer: nadam, groups: groupOf({ name: "lamb" }), params, master_weights: true, non_finite: "skip" };
  const before = await service.metric('stepd_elements_total{optimizer="lamb",dtype="BF16"}');
  const { stats, state } = await step({ ...call, grads, stats: "tensor" });
  assert.equal((await service.metric('stepd_elements_total{optimizer="lamb",dtype="BF16"}')) - (before || 0), 5200);
  for (const [name, { trust_ratio }] of Object.entries(stats?.tensors ?? {})) assert.equal(trust_ratio !== undefined, IN_GROUP.test(name), name);
  assert.ok(readFile(state).entries.has("mu_product/w") && !readFile(state).entries.has("mu_product/head.big"));
  const nan = writeTyped({ ...typed(gradsAt(SHAPES, 1), "BF16"), b: { dtype: "BF16", shape: [7], values: new Array<number>(7).fill(Number.NaN) } });
  const skipped = await step({ ...call, grads: nan, state });
  requireEqual(skipped.state, state, "a skipped step");
  // Without a state, a skipped step has nothing to write, also no metadata of parameters.
  assert.deepEqual(Object.keys(readFile((await step({ ...call, grads: nan })).state).metadata), ["format", "optimizer", "revision"]);
});

suite("errors name the parameter or the field", () => {
  const params = writeTensors(startParams(SHAPES));
  const grads = writeTensors(gradsAt(SHAPES, 0));
  const requireError = async (call: Readonly<Record<string, unknown>>, expected: Partial<RpcError["data"]>): Promise<void> => {
    const error = await step({ optimizer: adamw, params, grads, ...call }).then(
      () => assert.fail("the call succeeded"),
      ({ data }: RpcError) => data,
    );
    const { request_id: _, ...found } = error;
    assert.deepEqual(found, expected);
  };

  test("a parameter that changes to another family, unless it has no slots", async () => {
    const { state } = await step({ optimizer: adamw, params, grads });
    await requireError({ state, groups: groupOf(sgd) }, {
      name: "STATE_MISMATCH",
      field: "/state",
      expected: 'a state of sgd for "head.big", or none',
      found: "a state of adamw",
      tensors: ["head.big"],
    } as Partial<RpcError["data"]>);
    const rest = onlyOf(startParams(SHAPES), (name) => !IN_GROUP.test(name));
    const partial = await step({ optimizer: adamw, params: writeTensors(rest), grads: writeTensors(onlyOf(gradsAt(SHAPES, 0), (name) => name in rest)) });
    const joined = await step({ optimizer: adamw, params, grads, state: partial.state, groups: groupOf(sgd) });
    assert.ok(readFile(joined.state).entries.has("momentum_buffer/head.big"));
  });

  test("an unknown optimizer, and a limit of the norm over all gradients", async () => {
    const field = "/groups/0/optimizer";
    const expected = `one of ${[...registry.keys()].join(", ")} (the nearest is adamw)`;
    await requireError({ groups: groupOf({ name: "adamv" }) }, { name: "INVALID_PARAMS", field: `${field}/name`, expected, found: '"adamv"' });
    const limit = { name: "INVALID_PARAMS", field: `${field}/max_grad_norm`, expected: "no value, because it holds for the whole call", found: "1" };
    await requireError({ groups: groupOf({ name: "lamb", max_grad_norm: 1 }) }, limit);
    const lamb = { name: "lamb", max_grad_norm: 1 };
    for (const own of [{ name: "lamb" }, lamb, adamw]) await step({ optimizer: lamb, params, grads, groups: groupOf(own) });
  });

  test("metadata of a state that names no optimizer or no revision", async () => {
    const { state } = await step({ optimizer: adamw, params, grads, groups: groupOf(sgd) });
    const text = Buffer.from(state.buffer, state.byteOffset + 8, Number(Buffer.from(state).readBigUInt64LE(0))).toString();
    const edited = (from: string, to: string): Buffer => rawTensors(text.replace(from, to), Buffer.from(state).subarray(8 + text.length));
    const corrupt = { name: "STATE_CORRUPT", field: "/state" };
    const revision = registry.get("sgd")?.revision;
    await requireError(
      { state: edited('"optimizer/head.big":"sgd"', '"optimizer/head.big":"sgb"') },
      { ...corrupt, expected: "__metadata__.optimizer/head.big to be an optimizer of this server", found: '"sgb"' },
    );
    await requireError(
      { state: edited(`"revision/sgd":"${revision}"`, '"revision/sgd":"x"') },
      { ...corrupt, expected: "__metadata__.revision/sgd to be a whole number from 1", found: '"x"' },
    );
    await requireError({ state: edited(`"revision/sgd":"${revision}"`, '"revision/sgd":"9"'), groups: groupOf(sgd) }, {
      name: "STATE_MISMATCH",
      field: "/state",
      expected: `a state of sgd revision ${revision} or older`,
      found: "revision 9",
      tensors: ["head.big"],
    } as never);
    // A name without entries is no mistake, because the state may be a part of another.
    await step({
      optimizer: adamw,
      params,
      grads,
      groups: groupOf(sgd),
      state: edited('"optimizer/head.big"', '"optimizer/head.bug":"sgd","optimizer/head.big"'),
    });
  });
});
