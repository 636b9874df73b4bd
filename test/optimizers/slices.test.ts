/** Tests slices: a tensor sent in several calls has the bits of one call. A step that needs whole tensors refuses slices. */
import assert from "node:assert/strict";
import { after, before, suite, test } from "node:test";
import { registry } from "../../src/optimizers/registry.ts";
import { gradsAt, type StepReply, startParams } from "../support/run.ts";
import { type RpcError, TestService } from "../support/service.ts";
import { rawTensors, readFile } from "../support/tensors.ts";
import { type Dtype, typed, writeTyped } from "../support/typed.ts";
import { type Variant, variants } from "../support/variants.ts";

let service: TestService;
before(async () => {
  service = await TestService.start({ STEPD_WORKERS: "2" });
});
after(() => service[Symbol.asyncDispose]());

/** The last slice of `w` is so short that Q8 would leave it in F32 if it were a tensor. */
const SHAPES = { w: [2, 65_536 + 35], b: [70] } as const;
const ELEMENTS = SHAPES.w[0] * SHAPES.w[1];
const CUTS = [
  [0, 131_072],
  [131_072, ELEMENTS],
] as const;

interface Entry {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly bytes: Buffer;
}

type Entries = ReadonlyMap<string, Entry>;

const entriesOf = (file: Uint8Array): Entries => readFile(file).entries;

const write = (entries: Entries, metadata?: object): Buffer => {
  let offset = 0;
  const header: Record<string, unknown> = metadata ? { __metadata__: metadata } : {};
  for (const [name, { dtype, shape, bytes }] of entries) {
    header[name] = { dtype, shape, data_offsets: [offset, offset + bytes.length] };
    offset += bytes.length;
  }
  return rawTensors(JSON.stringify(header), Buffer.concat([...entries.values()].map(({ bytes }) => bytes)));
};

const isOfW = (key: string): boolean => key === "w" || key.endsWith("/w");
const isScale = (key: string): boolean => key.includes(".scale/");

/** Cuts elements `from` to `to` of `w` out of a file. Other tensors go with the first slice. */
const cut = (file: Uint8Array, [from, to]: readonly [number, number]): Buffer => {
  const { metadata, entries } = readFile(file);
  const own = [...entries].flatMap(([key, entry]): [string, Entry][] => {
    if (!isOfW(key)) return from === 0 ? [[key, entry]] : [];
    if (entry.shape.length === 0) return [[key, entry]];
    const share = isScale(key) ? 64 : 1;
    const total = isScale(key) ? Math.ceil(ELEMENTS / share) : ELEMENTS;
    const [first, last] = [from / share, Math.ceil(to / share)];
    const size = entry.bytes.length / total;
    return [[key, { dtype: entry.dtype, shape: [last - first], bytes: entry.bytes.subarray(first * size, last * size) }]];
  });
  return write(new Map(own), "format" in metadata ? metadata : undefined);
};

/** Requires that the files of all slices together have the bytes of the whole file. */
const requireJoined = (parts: readonly Uint8Array[], whole: Uint8Array): void => {
  const files = parts.map(entriesOf);
  for (const [key, { dtype, shape, bytes }] of entriesOf(whole)) {
    const found = files.flatMap((file) => file.get(key) ?? []);
    assert.ok(
      found.every((entry) => entry.dtype === dtype),
      `dtype of ${key}`,
    );
    const joined = shape.length === 0 ? found.map((entry) => entry.bytes)[0] : Buffer.concat(found.map((entry) => entry.bytes));
    assert.ok(joined?.equals(bytes), key);
  }
};

const step = (options: object, params: Uint8Array, grads: Uint8Array, state: Uint8Array | null): Promise<StepReply> =>
  service.call<StepReply>("optimizer.step", { ...options, params, grads, state });

const files = new Map<string, Buffer>();
/** Writes a file of tensors in a dtype, once. */
const fileOf = (dtype: Dtype, count: number | undefined): Buffer => {
  const key = `${dtype} ${count}`;
  const file = files.get(key) ?? writeTyped(typed(count === undefined ? startParams(SHAPES) : gradsAt(SHAPES, count), dtype));
  files.set(key, file);
  return file;
};

const requireSameBits = async (options: object, paramDtype: Dtype, gradDtype: Dtype): Promise<void> => {
  let params: Uint8Array = fileOf(paramDtype, undefined);
  let state: Uint8Array | null = null;
  for (let count = 1; count <= 2; count++) {
    const grads = fileOf(gradDtype, count);
    const whole: StepReply = await step(options, params, grads, state);
    const parts: StepReply[] = [];
    for (const slice of CUTS) {
      const slices = { w: { offset: slice[0] } };
      parts.push(await step({ ...options, slices }, cut(params, slice), cut(grads, slice), state && cut(state, slice)));
    }
    requireJoined(
      parts.map((part) => part.params),
      whole.params,
    );
    requireJoined(
      parts.map((part) => part.state),
      whole.state,
    );
    ({ params, state } = whole);
  }
};

const needsWholeTensors = ({ optimizer }: Variant): boolean => {
  const whole = registry.get(optimizer.name)?.wholeTensors;
  return whole === true || (whole !== undefined && optimizer[whole] === true);
};

suite("slices have the bits of one call", () => {
  for (const variant of variants.filter((one) => !needsWholeTensors(one))) {
    const { label, optimizer } = variant;
    test(label, async () => {
      await requireSameBits({ optimizer, stochastic_rounding: { seed: 7 } }, "BF16", "F32");
      if (label !== optimizer.name) return;
      await requireSameBits({ optimizer }, "F32", "F32");
      await requireSameBits({ optimizer }, "F64", "F32");
      await requireSameBits({ optimizer, master_weights: true }, "F16", "BF16");
    });
    const isNarrow = registry.get(optimizer.name)?.moments && optimizer["centered"] !== true;
    if (!isNarrow) continue;
    for (const state_dtype of ["BF16", "Q8"]) {
      test(`${label}, moments in ${state_dtype}`, async () => {
        await requireSameBits({ optimizer: { ...optimizer, state_dtype }, stochastic_rounding: { seed: 7 } }, "BF16", "BF16");
      });
    }
  }

  test("init, in each format of the moments", async () => {
    for (const state_dtype of ["F32", "BF16", "Q8"]) {
      const options = { optimizer: { name: "adamw", state_dtype }, master_weights: true };
      const params = fileOf("BF16", undefined);
      const init = async (given: object): Promise<Uint8Array> =>
        (await service.call<{ readonly state: Uint8Array }>("optimizer.init", { ...options, ...given })).state;
      const parts: Uint8Array[] = [];
      for (const slice of CUTS) parts.push(await init({ params: cut(params, slice), slices: { w: { offset: slice[0] } } }));
      requireJoined(parts, await init({ params }));
    }
  });

  test("clipping by the norm over all gradients, whose sums come by shard", async () => {
    interface Norms {
      readonly tensors: Readonly<Record<string, Readonly<Record<"grad_squares" | "param_squares", number>> & Readonly<Record<string, readonly number[]>>>>;
      readonly grad_norm: number;
    }
    const [params, grads] = [fileOf("BF16", undefined), fileOf("F32", 1)];
    const norms = (given: object): Promise<Norms> => service.call<Norms>("optimizer.norms", { loss_scale: 3, ...given });
    const whole = await norms({ params, grads });
    const parts: Norms[] = [];
    for (const slice of CUTS) parts.push(await norms({ params: cut(params, slice), grads: cut(grads, slice), slices: { w: { offset: slice[0] } } }));
    const sum = (field: string): number => parts.flatMap(({ tensors }) => tensors["w"]?.[field] ?? []).reduce((total, square) => total + square, 0);
    assert.equal(sum("grad_shard_squares"), whole.tensors["w"]?.grad_squares);
    assert.equal(sum("param_shard_squares"), whole.tensors["w"]?.param_squares);
    assert.ok(!("grad_shard_squares" in (whole.tensors["w"] ?? {})));
    await requireSameBits({ optimizer: { name: "adamw" }, clip: { max_norm: 0.5, total_norm: whole.grad_norm } }, "BF16", "F32");
  });
});

suite("what needs the whole tensor is refused", () => {
  const [params, grads] = [cut(fileOf("F32", undefined), CUTS[1]), cut(fileOf("F32", 1), CUTS[1])];
  const refused = async (given: object, field: string, expected: RegExp): Promise<void> => {
    const call = { optimizer: { name: "adamw" }, params, grads, slices: { w: { offset: 131_072 } }, ...given };
    await assert.rejects(service.call("optimizer.step", call), ({ message, data }: RpcError) => {
      assert.equal(data.field, field, message);
      assert.match(message, expected);
      return true;
    });
  };

  for (const variant of variants.filter(needsWholeTensors)) {
    test(variant.label, () =>
      refused(
        { optimizer: variant.optimizer, ...(variant.optimizer["max_grad_norm"] !== undefined && { clip: { total_norm: 1 } }) },
        "/slices/w",
        /the whole tensor, which (lamb|lars|adafactor|prodigy|(adam|adamw|lion) with caution).* needs.*131072/s,
      ),
    );
  }

  test("sums over the call, and slices that are none", async () => {
    await refused({ stats: "global" }, "/stats", /"w" is a slice/);
    await refused({ clip: { max_norm: 1 } }, "/clip/total_norm", /"w" is a slice/);
    await refused({ slices: { v: { offset: 0 } } }, "/slices/v", /the name of a tensor in params/);
    await refused({ slices: { w: { offset: 65_535 } } }, "/slices/w/offset", /a multiple of 65536/);
    await refused({ slices: { w: { offset: -65_536 } } }, "/slices/w/offset", /0/);
    await refused({ slices: { w: { offset: 2 ** 53 } } }, "/slices/w/offset", /9007199254675456/);
    await refused({ params: fileOf("F32", undefined), grads: fileOf("F32", 1) }, "/params/w", /shape \[n\]/);
  });

  test("the registry says of every optimizer whether a stage needs sums over tensors", () => {
    for (const variant of variants) {
      const { name, ...settings } = variant.optimizer;
      const definition = registry.get(name);
      const defaults = Object.fromEntries(Object.entries(definition?.hyperparameters ?? {}).map(([key, { default: value }]) => [key, value]));
      const stages = definition?.stages({ ...defaults, ...settings } as Parameters<typeof definition.stages>[0], [8, 8]) ?? [];
      if (stages.some(({ sums }) => sums > 0)) assert.ok(needsWholeTensors(variant), `${variant.label}: wholeTensors`);
    }
  });
});
