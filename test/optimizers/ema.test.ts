/**
 * Tests `ema` of every optimizer: the average of the parameters over the steps, in the slot ema. The vectors are those of torch's
 * AveragedModel with get_ema_multi_avg_fn (test/vectors/record/record_ema.py).
 */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after, before, suite, test } from "node:test";
import { gradsAt, SMALL, startParams } from "../support/run.ts";
import { type RpcError, TestService } from "../support/service.ts";
import { readFile, readTensors, writeTensors } from "../support/tensors.ts";
import { typed, writeTyped } from "../support/typed.ts";
import { narrowVariants, oneOfEach, type Variant } from "../support/variants.ts";

let service: TestService;
before(async () => {
  service = await TestService.start();
});
after(() => service[Symbol.asyncDispose]());

interface Reply {
  readonly params: Uint8Array;
  readonly state: Uint8Array;
}

const step = (call: Readonly<Record<string, unknown>>): Promise<Reply> => service.call<Reply>("optimizer.step", call);

const floats = (bytes: Uint8Array): Float32Array => new Float32Array(Uint8Array.from(bytes).buffer);

/** Returns the average of each parameter in a state, by name. */
const averages = (state: Uint8Array): Map<string, Buffer> =>
  new Map([...readFile(state).entries].filter(([key]) => key.startsWith("ema/")).map(([key, { bytes }]) => [key.slice("ema/".length), bytes]));

const lerp = (average: number, value: number, weight: number): number => Math.fround(average + Math.fround(weight * Math.fround(value - average)));

const DECAY = 0.75;
const STEPS = 3;
const isChosen = ({ optimizer: { name } }: Variant): boolean => ["sgd", "adamw", "lamb", "nadam"].includes(name);

for (const { label, optimizer } of [...oneOfEach, ...narrowVariants.filter(isChosen)]) {
  test(`${label}: the average follows the parameters, which keep their bits`, async () => {
    let params: Uint8Array = writeTensors(startParams(SMALL));
    let plain: Reply | undefined;
    let state: Uint8Array | null = null;
    let expected: Record<string, number[]> = {};
    for (let taken = 0; taken < STEPS; taken++) {
      const grads = writeTensors(gradsAt(SMALL, taken));
      plain = await step({ optimizer, params, grads, state: plain?.state ?? null });
      const reply = await step({ optimizer: { ...optimizer, ema: { decay: DECAY } }, params, grads, state });
      assert.ok(Buffer.from(reply.params).equals(Buffer.from(plain.params)));
      ({ params, state } = reply);
      const values = readTensors(params);
      expected = Object.fromEntries(
        Object.entries(values).map(([name, { data }]) => [
          name,
          [...data].map((value, index) => (taken === 0 ? value : lerp(expected[name]?.[index] as number, value, 1 - DECAY))),
        ]),
      );
      const found = averages(state);
      for (const [name, own] of Object.entries(expected)) assert.deepEqual([...floats(found.get(name) as Buffer)], own, `${name} after step ${taken + 1}`);
    }
    // Without the option, the state keeps the average as it is.
    const rest = await step({ optimizer, params, grads: writeTensors(gradsAt(SMALL, STEPS)), state });
    assert.deepEqual(averages(rest.state), averages(state as Uint8Array));
  });
}

suite("ema", () => {
  const optimizer = { name: "adamw", ema: { decay: 0.9 } };
  const params = writeTensors(startParams(SMALL));
  const grads = writeTensors(gradsAt(SMALL, 0));

  test("init copies the parameters, plan counts the bytes, and both lead to the bits of a start without a state", async () => {
    const { state } = await service.call<Reply>("optimizer.init", { optimizer, params });
    const own = readFile(params).entries;
    for (const [name, bytes] of averages(state)) assert.deepEqual(bytes, own.get(name)?.bytes, name);
    const tensors = Object.fromEntries(Object.entries(SMALL).map(([name, shape]) => [name, { shape }]));
    const { state_bytes } = await service.call<{ state_bytes: number }>("optimizer.plan", { optimizer, tensors });
    assert.equal(state_bytes, state.length);
    const [fromInit, fromNothing] = [await step({ optimizer, params, grads, state }), await step({ optimizer, params, grads })];
    assert.ok(Buffer.from(fromInit.state).equals(Buffer.from(fromNothing.state)));
  });

  test("a group may have it alone, and an average that comes late starts at the parameter", async () => {
    const groups = [{ tensors: ["b"], optimizer: { ema: { decay: 0.5 } } }];
    const first = await step({ optimizer: { name: "adamw" }, params, grads });
    const second = await step({ optimizer: { name: "adamw" }, groups, params: first.params, grads, state: first.state });
    assert.deepEqual([...averages(second.state).keys()], ["b"]);
    assert.deepEqual(averages(second.state).get("b"), readFile(second.params).entries.get("b")?.bytes);
    // An optimizer of another family may go on beside an average, because it has no other slot.
    const sgd = await step({ optimizer: { name: "sgd", ema: { decay: 0.5 } }, params, grads });
    const lion = step({ optimizer: { name: "sgd", momentum: 0.9, ema: { decay: 0.5 } }, params: sgd.params, grads, state: sgd.state });
    assert.ok(averages((await lion).state).has("w"));
  });

  test("the average of narrow parameters is that of the float32 results, before they are rounded", async () => {
    const narrow = { params: writeTyped(typed(startParams(SMALL), "BF16")), grads: writeTyped(typed(gradsAt(SMALL, 0), "BF16")) };
    const found = await step({ optimizer, ...narrow });
    const masters = await step({ optimizer, ...narrow, master_weights: true });
    const entries = readFile(masters.state).entries;
    for (const [name, bytes] of averages(found.state)) {
      assert.deepEqual(bytes, entries.get(`master_param/${name}`)?.bytes, name);
      assert.deepEqual(bytes, entries.get(`ema/${name}`)?.bytes, name);
    }
    const wide = await step({ optimizer, params: writeTyped(typed(startParams(SMALL), "F64")), grads: writeTyped(typed(gradsAt(SMALL, 0), "F64")) });
    assert.equal(readFile(wide.state).entries.get("ema/w")?.dtype, "F64");
  });

  test("conversions keep the average, and torch has nothing that corresponds to it", async () => {
    const { state } = await step({ optimizer, params, grads });
    const { state: adam } = await service.call<Reply>("state.convert", { state, optimizer: "adam", state_dtype: "BF16" });
    assert.deepEqual(averages(adam), averages(state));
    const { lost } = await service.call<{ lost: string[] }>("state.convert", { state, to: { format: "torch" } });
    assert.match(lost[0] ?? "", /^torch has nothing that corresponds to ema/);
  });

  test("an invalid decay names its field", async () => {
    for (const [ema, field, expected] of [
      [{ decay: 1.5 }, "/optimizer/ema/decay", "at most 1"],
      [{}, "/optimizer/ema/decay", "a value"],
      [{ decay: 0.5, more: 1 }, "/optimizer/ema/more", "a known field (one of decay)"],
      [0.5, "/optimizer/ema", "object or null"],
    ] as const) {
      const error = await step({ optimizer: { name: "sgd", ema }, params, grads }).then(
        () => assert.fail("the call succeeded"),
        ({ data }: RpcError) => data,
      );
      assert.deepEqual([error.name, error.field, error.expected], ["INVALID_PARAMS", field, expected]);
    }
  });

  test("the averages of torch's AveragedModel", async () => {
    const { cases } = JSON.parse(readFileSync(new URL("../vectors/ema/averaged_model.json", import.meta.url), "utf8")) as {
      cases: readonly { readonly decay: number; readonly start: number[]; readonly grads: number[][]; readonly averages: number[][] }[];
    };
    for (const { decay, start, grads: all, averages: expected } of cases) {
      let reply: Reply = { params: writeTensors({ w: { shape: [start.length], data: Float32Array.from(start) } }), state: new Uint8Array() };
      for (const [index, grad] of all.entries()) {
        reply = await step({
          optimizer: { name: "sgd", lr: 0.5, ema: { decay } },
          params: reply.params,
          grads: writeTensors({ w: { shape: [grad.length], data: Float32Array.from(grad) } }),
          state: index === 0 ? null : reply.state,
        });
        const found = floats(averages(reply.state).get("w") as Buffer);
        for (const [at, value] of (expected[index] as number[]).entries()) {
          // torch may fuse the multiplication with the addition, which stepd never does.
          assert.ok(
            Math.abs((found[at] as number) - value) <= 2 ** -22 * Math.max(Math.abs(value), Math.abs(start[at] as number)),
            `${found[at]}, not ${value}`,
          );
        }
      }
    }
  });
});
