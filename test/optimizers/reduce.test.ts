/** Tests optimizer.reduce: its results have the bits of plain float64 loops, and its accumulators and options work. */
import assert from "node:assert/strict";
import { after, before, suite, test } from "node:test";
import { type Shapes, SMALL } from "../support/run.ts";
import { JSON_TYPE, type RpcError, readReply, TestService } from "../support/service.ts";
import { random, rawTensors, readFile } from "../support/tensors.ts";
import { type Dtype, readTyped, type Typed, writeTyped } from "../support/typed.ts";
import { combine, type Method, type UpdateTensors, updateOf, type Weighted, writeUpdate } from "../support/updates.ts";

let service: TestService;
before(async () => {
  service = await TestService.start({ STEPD_WORKERS: "2" });
});
after(() => service[Symbol.asyncDispose]());

interface Reply {
  readonly grads?: Uint8Array;
  readonly accumulator?: Uint8Array;
  readonly count: number;
  readonly weight: number;
  readonly dropped: readonly number[];
  readonly skipped: boolean;
}

interface Options {
  readonly params?: Readonly<Record<string, Typed>>;
  readonly form?: string;
  readonly method?: Method;
  readonly [option: string]: unknown;
}

const call = (updates: readonly Weighted[], { params, ...more }: Options = {}): Promise<Reply> =>
  service.call<Reply>("optimizer.reduce", {
    ...(params && { params: writeTyped(params) }),
    updates: updates.map(({ tensors, weight }) => ({ tensors: writeUpdate(tensors), ...(weight !== undefined && { weight }) })),
    ...more,
  });

const gradsOf = ({ grads }: Reply): Record<string, Typed> => readTyped(grads as Uint8Array);

/** Compares tensors bit for bit. */
const requireSameBits = (found: Readonly<Record<string, Typed>>, expected: Readonly<Record<string, Typed>>): void => {
  assert.deepEqual(Object.keys(found).sort(), Object.keys(expected).sort());
  for (const [name, { dtype, shape, values }] of Object.entries(expected)) {
    const tensor = found[name] as Typed;
    assert.deepEqual([tensor.dtype, tensor.shape], [dtype, shape], name);
    const first = values.findIndex((value, index) => !Object.is(value, tensor.values[index]));
    assert.equal(first, -1, `${name}[${first}]: ${tensor.values[first]}, not ${values[first]}`);
  }
};

const MEAN: Method = { name: "mean" };

/** A tensor larger than a shard of the worker pool, and a small one. */
const WIDE = { w: [263, 331], b: [13] } as const;

const updatesOf = (count: number, shapes: Shapes, dtype: Dtype | "I8", isWeighted = true): Weighted[] =>
  Array.from({ length: count }, (_, index) => ({ tensors: updateOf(shapes, 100 + index, dtype), ...(isWeighted && { weight: index + 0.3 }) }));

const paramsOf = (shapes: Shapes, dtype: Dtype): Record<string, Typed> => updateOf(shapes, 7, dtype) as Record<string, Typed>;

const METHODS: readonly Method[] = [MEAN, { name: "mean", divisor: 3.7 }, { name: "median" }, { name: "trimmed_mean", cut: 1 }];

suite("a reduction has the bits of plain float64 loops", () => {
  for (const method of METHODS) {
    for (const form of ["params", "deltas", "gradients"]) {
      test(`${JSON.stringify(method)} of ${form} in every dtype`, async () => {
        for (const dtype of ["F32", "F64", "BF16", "F16", "I8"] as const) {
          const updates = updatesOf(5, SMALL, dtype, method.name === "mean");
          const params = form === "params" ? paramsOf(SMALL, dtype === "I8" ? "F32" : dtype) : undefined;
          const options = { ...(params && { params }), form, method };
          requireSameBits(gradsOf(await call(updates, options)), combine(updates, options));
        }
      });
    }
    test(`${JSON.stringify(method)} of large tensors, on workers`, async () => {
      const updates = [...updatesOf(3, WIDE, "F32", false), ...updatesOf(2, WIDE, "BF16", false), ...updatesOf(1, WIDE, "I8", false)];
      const options = { params: paramsOf(WIDE, "F32"), method };
      requireSameBits(gradsOf(await call(updates, options)), combine(updates, options));
    });
  }

  test("a median and a trimmed mean sort any number of updates", async () => {
    for (let count = 1; count <= 40; count++) {
      const updates = updatesOf(count, { w: [67] }, "F32", false);
      for (const method of [{ name: "median" }, { name: "trimmed_mean", cut: Math.floor((count - 1) / 3) }] as const)
        requireSameBits(gradsOf(await call(updates, { form: "gradients", method })), combine(updates, { form: "gradients", method }));
    }
    const many = updatesOf(1025, { w: [131] }, "F32", false);
    const options = { form: "gradients", method: { name: "median" } } as const;
    requireSameBits(gradsOf(await call(many, options)), combine(many, options));
  });

  test("a median of zeros, of infinities and of NaN", async () => {
    const rows = [
      [-0, 1, Number.POSITIVE_INFINITY, Number.NaN, Number.NEGATIVE_INFINITY],
      [0, 1, Number.POSITIVE_INFINITY, 1, Number.POSITIVE_INFINITY],
      [-0, 2, 3, 2, 7],
    ];
    const updates = rows.map((values) => ({ tensors: { w: { dtype: "F32" as const, shape: [5], values } } }));
    const reply = await call(updates, { form: "gradients", method: { name: "median" }, non_finite: "propagate" });
    assert.deepEqual(gradsOf(reply)["w"]?.values, [0, 1, Number.POSITIVE_INFINITY, Number.NaN, 7]);
  });

  test("the scale of I8 values is one number, or one for each row", async () => {
    const one = { w: { dtype: "I8" as const, shape: [2, 3], values: [1, -2, 3, -4, 5, -128], scale: [0.25] } };
    const rows = { w: { ...one.w, scale: [0.25, -0.125] } };
    for (const tensors of [one, rows]) requireSameBits(gradsOf(await call([{ tensors }], { form: "deltas" })), combine([{ tensors }], { form: "deltas" }));
  });

  test("each tensor by itself has the bits of all in one call", async () => {
    const updates = updatesOf(4, SMALL, "F32");
    const params = paramsOf(SMALL, "F32");
    const whole = gradsOf(await call(updates, { params }));
    for (const name of Object.keys(SMALL)) {
      const pick = <T>(tensors: Readonly<Record<string, T>>): Record<string, T> => ({ [name]: tensors[name] as T });
      const part = await call(
        updates.map(({ tensors, ...more }) => ({ tensors: pick(tensors), ...more })),
        { params: pick(params) },
      );
      requireSameBits(gradsOf(part), pick(whole));
    }
  });

  test("1 and 2 workers give the same bytes, in every method", async () => {
    await using other = await TestService.start({ STEPD_WORKERS: "1" });
    const params = writeTyped(paramsOf(WIDE, "F32"));
    const updates = updatesOf(6, WIDE, "F32").map(({ tensors, weight }) => ({ tensors: writeUpdate(tensors), weight }));
    const plain = updates.map(({ tensors }) => ({ tensors }));
    const calls = [
      ...METHODS.map((method) => ["optimizer.reduce", { params, updates: method.name === "mean" ? updates : plain, method }] as const),
      ["optimizer.reduce", { params, updates, finish: false }],
      ["optimizer.distances", { updates: plain }],
    ] as const;
    for (const [method, call] of calls) {
      const [first, second] = await Promise.all([service, other].map((one) => one.call<Record<string, unknown>>(method, call)));
      assert.deepEqual(first, second);
    }
  });
});

suite("identities", () => {
  test("the mean of equal updates is the update", async () => {
    const [update] = updatesOf(1, SMALL, "F32");
    const reply = await call(Array<Weighted>(7).fill(update as Weighted), { form: "gradients" });
    requireSameBits(gradsOf(reply), combine([update as Weighted], { form: "gradients" }));
    assert.equal(reply.count, 7);
  });

  test("another order of the updates changes a mean within rounding, and a median not at all", async () => {
    const updates = updatesOf(9, SMALL, "F32", false);
    const shuffled = [...updates.slice(4), ...updates.slice(0, 4).reverse()];
    const [first, second] = await Promise.all([updates, shuffled].map(async (order) => gradsOf(await call(order, { form: "deltas" }))));
    for (const [name, { values }] of Object.entries(first ?? {})) {
      for (const [index, value] of values.entries())
        assert.ok(Math.abs(value - (second?.[name]?.values[index] as number)) <= 2 ** -23 * Math.abs(value) + 1e-12, `${name}[${index}]`);
    }
    const median = { form: "deltas", method: { name: "median" } } as const;
    assert.deepEqual((await call(updates, median)).grads, (await call(shuffled, median)).grads);
  });

  test("an accumulator carried over calls has the bits of one call", async () => {
    for (const dtype of ["F32", "F64", "BF16"] as const) {
      const updates = updatesOf(6, SMALL, dtype);
      const params = paramsOf(SMALL, dtype);
      for (const options of [{ params }, { form: "deltas" }, { form: "gradients", method: { name: "mean", divisor: 2 } as const }]) {
        const whole = await call(updates, options);
        let accumulator: Uint8Array | undefined;
        for (const part of [updates.slice(0, 1), updates.slice(1, 4), [], updates.slice(4)])
          ({ accumulator } = await call(part, { ...options, finish: false, ...(accumulator && { accumulator }) }));
        const folded = await call([], { ...options, accumulator });
        assert.deepEqual(folded, whole);
        const last = await call(updates.slice(4), { ...options, accumulator: (await call(updates.slice(0, 4), { ...options, finish: false })).accumulator });
        assert.deepEqual(last, whole);
      }
    }
  });

  test("the accumulator is a safetensors file of sums, weights and counts", async () => {
    const { accumulator, grads, count, weight, skipped } = await call(updatesOf(3, { w: [2], b: [1] }, "F64"), { form: "deltas", finish: false });
    assert.deepEqual([grads, count, weight, skipped], [undefined, 3, 0.3 + 1.3 + 2.3, false]);
    const { metadata, entries } = readFile(accumulator as Uint8Array);
    assert.deepEqual(metadata, { format: "stepd.sum/1", form: "deltas", "dtype/w": "F64", "dtype/b": "F64" });
    assert.deepEqual(
      [...entries].map(([name, { dtype, shape }]) => [name, dtype, shape]),
      [
        ["count/b", "I64", []],
        ["count/w", "I64", []],
        ["sum/b", "F64", [1]],
        ["sum/w", "F64", [2]],
        ["weight/b", "F64", []],
        ["weight/w", "F64", []],
      ],
    );
    assert.equal(entries.get("count/w")?.bytes.readBigInt64LE(), 3n);
  });
});

suite("forged accumulators", () => {
  const forge = (count: bigint, weight: number): Buffer => {
    const data = Buffer.alloc(24);
    data.writeBigInt64LE(count, 0);
    data.writeDoubleLE(1, 8);
    data.writeDoubleLE(weight, 16);
    const entries = ["count/w", "sum/w", "weight/w"].map((name, index) => {
      const [dtype, shape] = index === 0 ? ["I64", "[]"] : ["F64", index === 1 ? "[1]" : "[]"];
      return `"${name}":{"dtype":"${dtype}","shape":${shape},"data_offsets":[${8 * index},${8 * index + 8}]}`;
    });
    return rawTensors(`{"__metadata__":{"format":"stepd.sum/1","form":"deltas"},${entries.join(",")}}`, data);
  };
  const one: Weighted = { tensors: { w: { dtype: "F32", shape: [1], values: [1] } } };

  test("a count or weight out of range is refused, with room for the updates of the call", async () => {
    const refusals = [
      [2n ** 53n - 1n, 1, [one], "count/w from 0 to 2^53 - 2"],
      [2n ** 53n, 1, [], "count/w from 0 to 2^53 - 1"],
      [-1n, 1, [], "count/w from 0 to 2^53 - 1"],
      [1n, -1, [], "weight/w to be finite and at least 0"],
      [1n, Number.NaN, [], "weight/w to be finite and at least 0"],
    ] as const;
    for (const [count, weight, updates, expected] of refusals) {
      await assert.rejects(call(updates, { form: "deltas", accumulator: forge(count, weight) }), ({ data }: RpcError) => {
        assert.deepEqual([data.name, data.field, data.expected], ["STATE_CORRUPT", "/accumulator", expected]);
        return true;
      });
    }
    const { accumulator, count } = await call([one], { form: "deltas", accumulator: forge(2n ** 53n - 2n, 1), finish: false });
    assert.equal(Number(count), Number.MAX_SAFE_INTEGER);
    assert.equal((await call([], { form: "deltas", accumulator })).skipped, false);
  });
});

suite("updates that are not like the others", () => {
  const clean = updatesOf(4, SMALL, "F32");
  const spoil = ({ tensors, ...more }: Weighted, value: number): Weighted => {
    const [name, tensor] = Object.entries(tensors)[0] as [string, UpdateTensors[string]];
    return { ...more, tensors: { ...tensors, [name]: { ...tensor, values: tensor.values.with(2, value) } } };
  };
  const spoilt = [spoil(clean[0] as Weighted, Number.NaN), clean[1] as Weighted, spoil(clean[2] as Weighted, Number.NEGATIVE_INFINITY), clean[3] as Weighted];

  test("NaN and infinity are refused with the update and the tensor", async () => {
    await assert.rejects(call(spoilt, { form: "deltas" }), ({ data, message }: RpcError & Error) => {
      assert.deepEqual([data.name, data.field], ["NON_FINITE_GRADIENT", "/updates/0/tensors"]);
      assert.match(message, /NaN or infinity in "w", and in 1 more updates/);
      return true;
    });
  });

  test("non_finite drop leaves out the whole update, in every method", async () => {
    for (const method of METHODS) {
      const isMean = method.name === "mean";
      const pick = (list: readonly Weighted[]): Weighted[] => list.map(({ tensors, weight }) => ({ tensors, ...(isMean && { weight: weight as number }) }));
      const reply = await call(pick([...spoilt, clean[0] as Weighted]), { form: "deltas", method, non_finite: "drop" });
      assert.deepEqual([reply.dropped, reply.count], [[0, 2], 3]);
      const rest = await call(pick([clean[1] as Weighted, clean[3] as Weighted, clean[0] as Weighted]), { form: "deltas", method });
      assert.deepEqual([reply.grads, reply.weight], [rest.grads, rest.weight]);
    }
  });

  test("non_finite drop of all updates skips", async () => {
    const reply = await call([spoilt[0] as Weighted], { form: "deltas", non_finite: "drop" });
    assert.deepEqual([reply.skipped, reply.dropped, reply.count, gradsOf(reply)], [true, [0], 0, {}]);
  });

  test("non_finite propagate goes on", async () => {
    const reply = await call(spoilt, { form: "deltas", non_finite: "propagate" });
    assert.ok(Number.isNaN(gradsOf(reply)["w"]?.values[2]));
    assert.ok(Number.isFinite(gradsOf(reply)["w"]?.values[1]));
  });

  test("an accumulator with NaN or infinity is refused with its tensor, unless non_finite is propagate", async () => {
    for (const spoiler of [spoilt[0], spoilt[2]]) {
      const { accumulator } = await call([spoiler as Weighted], { form: "deltas", finish: false, non_finite: "propagate" });
      for (const non_finite of ["error", "drop"]) {
        for (const finish of [true, false]) {
          await assert.rejects(call([clean[1] as Weighted], { form: "deltas", accumulator, finish, non_finite }), ({ data, message }: RpcError & Error) => {
            assert.deepEqual([data.name, data.field], ["NON_FINITE_GRADIENT", "/accumulator"]);
            assert.match(message, /finite sums \(or non_finite propagate\), found NaN or infinity in "w"/);
            return true;
          });
        }
      }
      const reply = await call([clean[1] as Weighted], { form: "deltas", accumulator, non_finite: "propagate" });
      assert.ok(!Number.isFinite(gradsOf(reply)["w"]?.values[2]));
    }
  });

  test("missing renormalize combines each tensor over the updates that have it", async () => {
    const [first, second, third] = clean as [Weighted, Weighted, Weighted];
    const { w, ...others } = second.tensors;
    const reply = await call([first, { ...second, tensors: others }, third], { form: "deltas", missing: "renormalize" });
    const all = combine([first, second, third], { form: "deltas" });
    requireSameBits(gradsOf(reply), { ...all, w: combine([first, third], { form: "deltas" })["w"] as Typed });
    const strict = { name: "TENSOR_MISMATCH", field: "/updates/1/tensors/w" };
    await assert.rejects(call([first, { ...second, tensors: others }, third], { form: "deltas" }), ({ data: { name, field } }: RpcError) => {
      assert.deepEqual({ name, field }, strict);
      return true;
    });
  });

  test("no update, and weights of 0, skip", async () => {
    const params = paramsOf(SMALL, "F32");
    for (const updates of [[], clean.map(({ tensors }) => ({ tensors, weight: 0 }))]) {
      const reply = await call(updates, { params });
      assert.deepEqual([reply.skipped, reply.weight, gradsOf(reply)], [true, 0, {}]);
    }
  });
});

suite("a step with reduce", () => {
  const optimizer = { name: "adamw", lr: 0.01 };
  const params = writeTyped(paramsOf(SMALL, "F32"));
  const updates = updatesOf(4, SMALL, "F32").map(({ tensors, weight }) => ({ tensors: writeUpdate(tensors), weight }));

  interface StepReply {
    readonly params: Uint8Array;
    readonly state: Uint8Array;
    readonly step: number;
    readonly skipped: boolean;
    readonly warnings?: readonly string[];
    readonly reduce?: Omit<Reply, "grads" | "accumulator">;
  }

  const step = (fields: Readonly<Record<string, unknown>>): Promise<StepReply> => service.call<StepReply>("optimizer.step", { optimizer, params, ...fields });

  test("has the bits of a step with the pseudo-gradient", async () => {
    const first = await step({ grads: writeTyped(paramsOf(SMALL, "F32")) });
    const { accumulator } = await service.call<Reply>("optimizer.reduce", { params, updates: updates.slice(0, 2), finish: false });
    for (const reduce of [
      { updates },
      { updates: updates.slice(2), accumulator },
      { updates, form: "deltas", method: { name: "mean", divisor: 3 } },
      { updates: updates.map(({ tensors }) => ({ tensors })), method: { name: "median" } },
    ]) {
      const { grads, ...report } = await service.call<Reply>("optimizer.reduce", { params, ...reduce });
      const { reduce: found, ...direct } = await step({ reduce, state: first.state, clip: { max_norm: 0.5 } });
      assert.deepEqual(direct, await step({ grads, state: first.state, clip: { max_norm: 0.5 } }));
      assert.deepEqual(found, report);
    }
  });

  test("steps parameters in BF16 and tensors by name", async () => {
    const narrow = writeTyped(paramsOf(SMALL, "BF16"));
    const { grads } = await service.call<Reply>("optimizer.reduce", { params: narrow, updates });
    const direct = await service.call<StepReply>("optimizer.step", { optimizer, params: narrow, reduce: { updates } });
    assert.deepEqual(direct.params, (await service.call<StepReply>("optimizer.step", { optimizer, params: narrow, grads })).params);
    const plain = { w: { shape: [2], values: [1, 2] } };
    const { params: stepped } = await step({
      params: plain,
      optimizer: { name: "sgd", lr: 1 },
      reduce: { updates: [{ tensors: { w: { shape: [2], values: [3, 5] } } }] },
    });
    assert.deepEqual(stepped, { w: { shape: [2], dtype: "F32", values: [3, 5] } });
  });

  test("a reduction of nothing leaves parameters and state as they are", async () => {
    const { state } = await step({ grads: writeTyped(paramsOf(SMALL, "F32")) });
    for (const reduce of [{ updates: [] }, { updates: updates.map(({ tensors }) => ({ tensors, weight: 0 })) }]) {
      const reply = await step({ reduce, state });
      assert.deepEqual([reply.params, reply.state, reply.step, reply.skipped, reply.warnings], [params, state, 1, true, undefined]);
      assert.equal(reply.reduce?.skipped, true);
    }
  });

  test("names the field of the reduction, and takes gradients or updates, not both", async () => {
    const refusals = [
      [{ reduce: { updates: [{ tensors: writeUpdate({}) }] } }, "TENSOR_MISMATCH", "/reduce/updates/0/tensors/w"],
      [{ reduce: { updates, method: { name: "trimmed_mean", cut: 2 } } }, "INVALID_PARAMS", "/reduce/updates/0/weight"],
      [{ reduce: { updates, accumulator: params } }, "STATE_CORRUPT", "/reduce/accumulator"],
      [{ reduce: { updates, finish: false } }, "INVALID_PARAMS", "/reduce/finish"],
      [{ reduce: { updates }, grads: params }, "INVALID_PARAMS", "/grads"],
      [{ reduce: { updates, form: "deltas", method: { name: "mean", divisor: 5e-324 } } }, "NON_FINITE_GRADIENT", "/reduce"],
      [{}, "INVALID_PARAMS", "/grads"],
    ] as const;
    for (const [fields, name, field] of refusals) {
      await assert.rejects(step(fields), ({ data }: RpcError) => {
        assert.deepEqual([data.name, data.field], [name, field]);
        return true;
      });
    }
  });
});

suite("optimizer.distances", () => {
  const distances = async (updates: readonly UpdateTensors[], earlier?: number[][]): Promise<number[][]> => {
    const given = updates.map((tensors) => ({ tensors: writeUpdate(tensors) }));
    return (await service.call<{ distances: number[][] }>("optimizer.distances", { updates: given, ...(earlier && { distances: earlier }) })).distances;
  };

  const BLOCK = 4096;

  /** Sums of squared differences in the documented order: four partial sums by index, then blocks, then tensors by name. */
  const expectedOf = (updates: readonly UpdateTensors[]): number[][] =>
    updates.map((a) =>
      updates.map((b) => {
        let total = 0;
        for (const name of Object.keys(a).sort()) {
          const [left, right] = [combine([{ tensors: a }], { form: "gradients" }), combine([{ tensors: b }], { form: "gradients" })].map(
            (one) => one[name]?.values ?? [],
          );
          let ofTensor = 0;
          for (let start = 0; start < (left?.length ?? 0); start += BLOCK) {
            const partial = [0, 0, 0, 0];
            for (let i = start; i < Math.min(start + BLOCK, left?.length ?? 0); i++) {
              const difference = (left?.[i] as number) - (right?.[i] as number);
              partial[(i - start) % 4] = (partial[(i - start) % 4] as number) + difference * difference;
            }
            const [one = 0, two = 0, three = 0, four = 0] = partial;
            ofTensor += one + two + three + four;
          }
          total += ofTensor;
        }
        return total;
      }),
    );

  test("has the bits of loops in float64, for any number of updates", async () => {
    for (const [count, shapes] of [
      [1, SMALL],
      [2, { w: [9001], b: [3] }],
      [5, { w: [9001], b: [3] }],
      [40, { w: [67], b: [3] }],
    ] as const) {
      const updates = updatesOf(count, shapes, "F32").map(({ tensors }) => tensors);
      assert.deepEqual(await distances(updates), expectedOf(updates));
    }
    const wide = updatesOf(4, { w: [50, 1000] }, "F64").map(({ tensors }) => tensors);
    assert.deepEqual(await distances(wide), expectedOf(wide));
  });

  test("calls in the order of names have the bits of one call", async () => {
    const updates = updatesOf(6, { a: [5000], b: [70], c: [3, 7] }, "F32").map(({ tensors }) => tensors);
    let earlier: number[][] | undefined;
    for (const name of ["a", "b", "c"]) {
      earlier = await distances(
        updates.map((tensors) => ({ [name]: tensors[name] as UpdateTensors[string] })),
        earlier,
      );
    }
    assert.deepEqual(earlier, await distances(updates));
  });

  test("names an update that differs, and a matrix of another size", async () => {
    const [first, second] = updatesOf(2, { w: [3] }, "F32").map(({ tensors }) => tensors) as [UpdateTensors, UpdateTensors];
    const refusals = [
      [distances([first, { v: second["w"] as UpdateTensors[string] }]), "TENSOR_MISMATCH", "/updates/1/tensors/v"],
      [distances([first, second], [[0]]), "INVALID_PARAMS", "/distances"],
    ] as const;
    for (const [call, name, field] of refusals) {
      await assert.rejects(call, ({ data }: RpcError) => {
        assert.deepEqual([data.name, data.field], [name, field]);
        return true;
      });
    }
    assert.deepEqual(await distances([]), []);
  });
});

suite("forms of requests", () => {
  const plain = (tensors: UpdateTensors) => Object.fromEntries(Object.entries(tensors).map(([name, tensor]) => [name, { ...tensor }]));

  test("tensors by name, base64 and MessagePack give the same numbers", async () => {
    const updates = updatesOf(3, { w: [5], s: [] }, "F32");
    const params = paramsOf({ w: [5], s: [] }, "F32");
    const binary = gradsOf(await call(updates, { params }));
    const post = async (body: unknown) => (await readReply(await service.post("/v1/reduce", JSON.stringify(body), JSON_TYPE))) as { grads: never };
    const named = await post({ params: plain(params), updates: updates.map(({ tensors, weight }) => ({ tensors: plain(tensors), weight })) });
    assert.deepEqual(named.grads, Object.fromEntries(Object.entries(binary).map(([name, { shape, dtype, values }]) => [name, { shape, dtype, values }])));
    const encoded = await post({
      params: writeTyped(params).toString("base64"),
      updates: updates.map(({ tensors, weight }) => ({ tensors: writeUpdate(tensors).toString("base64"), weight })),
    });
    requireSameBits(readTyped(Buffer.from(encoded.grads, "base64")), binary);
  });

  test("parameters and updates may be handles, which stay unchanged", async () => {
    await using storing = await TestService.start({ STEPD_CACHE_MIB: "4" });
    const params = writeTyped(paramsOf(SMALL, "F32"));
    const [update, other] = updatesOf(2, SMALL, "F32").map(({ tensors }) => writeTyped(tensors as Record<string, Typed>));
    const sgd = { name: "sgd", lr: 0 };
    const keep = async (params: unknown): Promise<unknown> =>
      (await storing.call<{ cached: { params: unknown } }>("optimizer.step", { optimizer: sgd, params, grads: writeTyped({}), reply: { cache: true } })).cached
        .params;
    const handles = { params: await keep(params), updates: [{ tensors: await keep(update), weight: 3 }, { tensors: other }] };
    const sent = { params, updates: [{ tensors: update, weight: 3 }, { tensors: other }] };
    const expected = await storing.call<Reply>("optimizer.reduce", sent);
    const step = { optimizer: { name: "sgd", lr: 0.5 } };
    const stepped = await storing.call("optimizer.step", { ...step, params, reduce: { updates: sent.updates } });
    for (let times = 0; times < 2; times++) {
      assert.deepEqual(await storing.call("optimizer.reduce", handles), expected);
      assert.deepEqual(await storing.call("optimizer.step", { ...step, params: handles.params, reduce: { updates: handles.updates } }), stepped);
    }
    const distances = await storing.call("optimizer.distances", { updates: sent.updates });
    assert.deepEqual(await storing.call("optimizer.distances", { updates: handles.updates }), distances);
  });

  test("optimizer.reduce has no option reply", async () => {
    await assert.rejects(call(updatesOf(1, SMALL, "F32"), { form: "deltas", reply: { cache: true } }), ({ data }: RpcError) => {
      assert.deepEqual([data.name, data.field], ["INVALID_PARAMS", "/reply"]);
      return true;
    });
  });

  test("many updates of many tensors", async () => {
    const shapes = Object.fromEntries(Array.from({ length: 100 }, (_, index) => [`layer.${index}`, [3]]));
    const next = random(5);
    const updates = Array.from({ length: 60 }, (_, index) => ({ tensors: updateOf(shapes, index, "F32"), weight: Math.abs(next()) }));
    requireSameBits(gradsOf(await call(updates, { form: "deltas" })), combine(updates, { form: "deltas" }));
  });
});
