/**
 * Tests that no call within the limits blocks the main thread for long, so that health checks and other calls run in between.
 */
import assert from "node:assert/strict";
import { once } from "node:events";
import { after, before, suite, test } from "node:test";
import { Packr } from "msgpackr";
import { JSON_TYPE, MSGPACK, readReply, TestService } from "../support/service.ts";
import { rawTensors } from "../support/tensors.ts";

/**
 * The longest turn of a call's own work, in ms. docs/performance-findings.md shows less than 50 ms on a shared machine; slower machines
 * may take longer.
 */
const MOST_MS = 150;

/** The longest turn with its garbage collections, whose time depends on the whole heap. */
const MOST_COLLECTED_MS = 500;

const TENSORS = 65536;
const ELEMENTS = 3;
const PATTERNS = 256;

const names = Array.from({ length: TENSORS }, (_, index) => `model.layers.${index >> 8}.self_attn.${index & 255}.weight`).sort();
const entry = (start: number) => `{"dtype":"F32","shape":[${ELEMENTS}],"data_offsets":[${start},${start + 4 * ELEMENTS}]}`;
const header = `{${names.map((name, index) => `"${name}":${entry(4 * ELEMENTS * index)}`).join(",")}}`;
const file = rawTensors(header, Buffer.from(new Float32Array(TENSORS * ELEMENTS).fill(0.5).buffer));
const base64 = file.toString("base64");
const plain = Object.fromEntries(names.map((name) => [name, { shape: [ELEMENTS], values: [0.5, 0.25, 0.125] }]));
const otherNames = Object.fromEntries(names.map((name) => [`other.${name}`, plain[name]]));
const named = Array.from({ length: PATTERNS }, (_, group) => ({
  tensors: names.slice(group * PATTERNS, (group + 1) * PATTERNS),
  optimizer: { lr: 1e-3 / (group + 1) },
}));
const shapes = Object.fromEntries(names.map((name) => [name, { shape: [ELEMENTS] }]));
const groups = [{ tensors: Array.from({ length: PATTERNS }, (_, index) => `*.layers.*.${index}x.*.bias*`), optimizer: { weight_decay: 0 } }];
const optimizer = { name: "adamw" };

const MANY = 2_000_000;
const numbers = { w: { shape: [MANY], values: Array.from({ length: MANY }, (_, index) => index / 1024) } };
/** The number of elements of the largest tensor that the JSON limit below admits as base64. */
const LARGE = 5_500_000;
const large = rawTensors(`{"w":{"dtype":"F32","shape":[${LARGE}],"data_offsets":[0,${4 * LARGE}]}}`, Buffer.alloc(4 * LARGE)).toString("base64");

const oneTensor = rawTensors('{"w":{"dtype":"F32","shape":[300],"data_offsets":[0,1200]}}', Buffer.alloc(1200));

const packr = new Packr({ useRecords: false, variableMapSize: true });

interface Call {
  readonly method: string;
  readonly params: unknown;
}

const steps: readonly (readonly [label: string, type: string, body: Call | readonly Call[]])[] = [
  ["a step of 65,536 tensors", MSGPACK, { method: "optimizer.step", params: { optimizer, params: file, grads: file } }],
  ["with 256 patterns", MSGPACK, { method: "optimizer.step", params: { optimizer, groups, params: file, grads: file } }],
  [
    "with statistics and a norm",
    MSGPACK,
    { method: "optimizer.step", params: { optimizer, params: file, grads: file, stats: "tensor", clip: { max_norm: 1 } } },
  ],
  ["in JSON, as base64", JSON_TYPE, { method: "optimizer.step", params: { optimizer, params: base64, grads: base64 } }],
  ["in JSON, as numbers", JSON_TYPE, { method: "optimizer.step", params: { optimizer, params: plain, grads: plain } }],
  ["in MessagePack, as numbers", MSGPACK, { method: "optimizer.step", params: { optimizer, params: plain, grads: plain } }],
  ["optimizer.init of 65,536 tensors", MSGPACK, { method: "optimizer.init", params: { optimizer, groups, params: file } }],
  ["optimizer.norms of 65,536 tensors", MSGPACK, { method: "optimizer.norms", params: { grads: file, params: file } }],
  [
    "optimizer.reduce of 4 updates of 65,536 tensors",
    MSGPACK,
    { method: "optimizer.reduce", params: { params: file, updates: Array(4).fill({ tensors: file }) } },
  ],
  [
    "an accumulator of 65,536 tensors",
    MSGPACK,
    { method: "optimizer.reduce", params: { form: "deltas", finish: false, updates: Array(2).fill({ tensors: file }) } },
  ],
  [
    "the median of 4,096 updates",
    MSGPACK,
    { method: "optimizer.reduce", params: { form: "deltas", method: { name: "median" }, updates: Array(4096).fill({ tensors: oneTensor }) } },
  ],
  ["optimizer.plan of 65,536 tensors", MSGPACK, { method: "optimizer.plan", params: { optimizer, groups, tensors: shapes } }],
  ["optimizer.plan in JSON", JSON_TYPE, { method: "optimizer.plan", params: { optimizer, groups, tensors: shapes } }],
  ["2,000,000 numbers in JSON", JSON_TYPE, { method: "optimizer.step", params: { optimizer, params: numbers, grads: numbers } }],
  ["2,000,000 numbers in MessagePack", MSGPACK, { method: "optimizer.step", params: { optimizer, params: numbers, grads: numbers } }],
  ["59 MB of base64", JSON_TYPE, { method: "optimizer.step", params: { optimizer, params: large, grads: large } }],
  ["a field of 60 MB that no method has", JSON_TYPE, { method: "optimizer.step", params: { optimizer, x: "A".repeat(60_000_000) } }],
  [
    "a schedule of the most steps",
    MSGPACK,
    { method: "schedule.evaluate", params: { schedule: { name: "cosine", T_max: 10_000 }, lr: 1, from: 0, count: 10_000 } },
  ],
  [
    "4,000,000 numbers in JSON",
    JSON_TYPE,
    { method: "optimizer.norms", params: { grads: { w: { shape: [2 * MANY], values: Array<number>(2 * MANY).fill(1) } } } },
  ],
  [
    "4,000,000 numbers in 244 tensors",
    MSGPACK,
    {
      method: "optimizer.norms",
      params: { grads: Object.fromEntries(Array.from({ length: 244 }, (_, i) => [`w${i}`, { shape: [16_390], values: Array<number>(16_390).fill(1) }])) },
    },
  ],
  ["gradients of other names", MSGPACK, { method: "optimizer.step", params: { optimizer, params: plain, grads: otherNames } }],
  [
    "131,072 fields that no method has",
    MSGPACK,
    { method: "optimizer.step", params: Object.fromEntries(Array.from({ length: 2 * TENSORS }, (_, i) => [`x${i}`, 1])) },
  ],
  [
    "a million milestones",
    MSGPACK,
    { method: "schedule.evaluate", params: { schedule: { name: "multistep", milestones: Array.from({ length: 1e6 }, (_, i) => i) } } },
  ],
  [
    "100,000 schedules",
    JSON_TYPE,
    { method: "schedule.evaluate", params: { schedule: { name: "sequence", milestones: [1], schedules: Array(1e5).fill({ name: "constant" }) } } },
  ],
  ["names of groups for each tensor", MSGPACK, { method: "optimizer.plan", params: { optimizer, groups: named, tensors: shapes } }],
  [
    "a batch of 100",
    MSGPACK,
    Array.from({ length: 100 }, () => ({
      method: "optimizer.plan",
      params: { optimizer, groups, tensors: Object.fromEntries(Object.entries(shapes).slice(0, 500)) },
    })),
  ],
];

suite("no turn of the main thread is long", () => {
  let service: TestService;
  before(async () => {
    service = await TestService.start({ STEPD_ARENA_MIB: "2048", STEPD_MAX_JSON_MIB: "64" }, [
      "--import",
      new URL("../support/turns.ts", import.meta.url).pathname,
    ]);
  });
  after(() => service?.[Symbol.asyncDispose]());

  const longestTurn = async (): Promise<{ readonly processor: number; readonly own: number; readonly collection: number; readonly histogram: number }> => {
    const answer = once(service.process, "message");
    service.process.send?.("longest");
    return (await answer)[0];
  };

  const call = (body: Call | readonly Call[], type: string): Promise<Response> => {
    const toRequest = (one: Call) => ({ jsonrpc: "2.0", id: 1, ...one });
    const value = "method" in body ? toRequest(body) : body.map(toRequest);
    return service.post("/rpc", type === MSGPACK ? Buffer.from(packr.pack(value)) : JSON.stringify(value), type);
  };

  const requireShortTurns = async (t: { diagnostic(text: string): void }, run: () => Promise<Response>): Promise<unknown> => {
    let reply: unknown;
    for (const time of ["first", "second"]) {
      await longestTurn();
      const response = await run();
      assert.equal(response.status, 200);
      reply = await readReply(response);
      const { processor, own, collection, histogram } = await longestTurn();
      t.diagnostic(
        `${time}: ${own.toFixed(1)} ms of the processor, ${processor.toFixed(1)} with collections of the heap, of which the longest took ${collection.toFixed(1)}; ${histogram.toFixed(1)} by the histogram`,
      );
      assert.ok(own <= MOST_MS, `the ${time} call held the main thread for ${own.toFixed(1)} ms`);
      assert.ok(processor <= MOST_COLLECTED_MS, `the ${time} call and collections held the main thread for ${processor.toFixed(1)} ms`);
    }
    return reply;
  };

  for (const [label, type, body] of steps) {
    test(`${label} has only short turns`, async (t) => {
      await requireShortTurns(t, () => call(body, type));
    });
  }

  test("a step from a state, its inspection and its conversion have only short turns", async (t) => {
    const { result } = (await readReply(await call({ method: "optimizer.init", params: { optimizer, params: file } }, MSGPACK))) as {
      result: { state: Uint8Array };
    };
    const { state } = result;
    await requireShortTurns(t, () => call({ method: "optimizer.step", params: { optimizer, groups, params: file, grads: file, state } }, MSGPACK));
    await requireShortTurns(t, () => call({ method: "state.inspect", params: { state } }, MSGPACK));
    await requireShortTurns(t, () => call({ method: "state.convert", params: { state, to: { format: "torch" } } }, MSGPACK));
  });
});
