/** Tests invalid schedules on the running service: the error names the field, in JSON and in MessagePack. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { registry } from "../../src/schedules/registry.ts";
import { JSON_TYPE, MSGPACK, pack, type RpcError, readReply, TestService } from "../support/service.ts";

let service: TestService;
before(async () => {
  service = await TestService.start();
});
after(() => service[Symbol.asyncDispose]());

type Fields = Readonly<Record<string, unknown>>;

const call = async (params: unknown, type: string): Promise<{ readonly result?: unknown; readonly error?: RpcError }> => {
  const body = { jsonrpc: "2.0", id: 1, method: "schedule.evaluate", params };
  return (await readReply(await service.post("/rpc", type === MSGPACK ? pack(body) : JSON.stringify(body), type))) as never;
};

/**
 * Asserts that a call is refused at a field, with equal messages in both encodings. `words` must occur in the expected or found
 * text.
 */
const requireRefused = async (params: unknown, field: string, words = "", types: readonly string[] = [JSON_TYPE, MSGPACK]): Promise<void> => {
  for (const type of types) {
    const { error } = await call(params, type);
    assert.ok(error, `${JSON.stringify(params)} was accepted`);
    assert.equal(error.code, -32602, error.message);
    assert.equal(error.data.name, "INVALID_PARAMS");
    assert.equal(error.data.field, field, error.message);
    assert.ok(error.message.startsWith(`${field}: expected `) && error.message.includes(words), `${error.message} does not say ${words}`);
  }
};

/** A minimal valid object for each schedule. */
const valid: Readonly<Record<string, Fields>> = {
  constant: {},
  step: { step_size: 3 },
  multistep: { milestones: [3, 5] },
  exponential: { gamma: 0.9 },
  linear: {},
  polynomial: {},
  cosine: { T_max: 10 },
  cosine_warm_restarts: { T_0: 10 },
  one_cycle: { max_lr: 1, total_steps: 10 },
  cyclic: { base_lr: 0.1, max_lr: 1 },
  inverse_sqrt: {},
  warmup_cosine: { warmup_steps: 2, total_steps: 10 },
  warmup_stable_decay: { warmup_steps: 2, stable_steps: 3, decay_steps: 4 },
  table: { lrs: [0.1, 0.2] },
  chained: { schedules: [{ name: "constant" }, { name: "linear" }] },
  sequence: { schedules: [{ name: "constant" }, { name: "linear" }], milestones: [4] },
};

interface Bounds {
  readonly type: string | readonly string[];
  readonly default?: unknown;
  readonly minimum?: number;
  readonly exclusiveMinimum?: number;
  readonly maximum?: number;
  readonly exclusiveMaximum?: number;
}

/** Returns invalid values for an argument with these bounds. */
const badValues = ({ type, minimum, exclusiveMinimum, maximum, exclusiveMaximum }: Bounds): readonly unknown[] => {
  const types = [type].flat();
  const bad: unknown[] = [{}, types.includes("string") ? "nearly" : "1", types.includes("boolean") ? 1 : true];
  if (!types.includes("array")) bad.push([1]);
  if (!types.includes("null")) bad.push(null);
  if (types.includes("integer")) bad.push(1.5);
  if (minimum !== undefined) bad.push(minimum - 1);
  if (exclusiveMinimum !== undefined) bad.push(exclusiveMinimum);
  if (maximum !== undefined) bad.push(maximum * 1.5);
  if (exclusiveMaximum !== undefined) bad.push(exclusiveMaximum);
  return bad;
};

test("every schedule has a valid example, which is accepted", async () => {
  assert.deepEqual(Object.keys(valid).sort(), [...registry.keys()].sort());
  for (const [name, fields] of Object.entries(valid)) {
    for (const type of [JSON_TYPE, MSGPACK]) {
      const { result, error } = await call({ schedule: { name, ...fields }, count: 10 }, type);
      assert.equal((result as { lrs: unknown[] } | undefined)?.lrs.length, 10, error?.message);
    }
  }
});

for (const [name, { arguments: all }] of registry) {
  const given = valid[name] as Fields;
  for (const [key, argument] of Object.entries(all)) {
    test(`${name}: ${key} is refused by its name if it has the wrong type, is out of range, or is missing`, async () => {
      for (const bad of badValues(argument as Bounds)) await requireRefused({ schedule: { name, ...given, [key]: bad } }, `/schedule/${key}`);
      if ([argument.type].flat().some((type) => ["number", "integer"].includes(type))) {
        for (const bad of [Number.NaN, Number.POSITIVE_INFINITY])
          await requireRefused({ schedule: { name, ...given, [key]: bad } }, `/schedule/${key}`, "", [MSGPACK]);
      }
      if (!("default" in argument)) {
        const { [key]: _, ...rest } = given;
        await requireRefused({ schedule: { name, ...rest } }, `/schedule/${key}`, "expected a value, found none");
      }
    });
  }

  test(`${name}: an unknown argument is refused, with a suggestion`, async () => {
    const nearest = Object.keys(all)[0] as string;
    await requireRefused({ schedule: { name, ...given, [`${nearest}x`]: 1 } }, `/schedule/${nearest}x`, `the nearest is ${nearest})`);
  });
}

/** Calls with one mistake, the field that the error names, and words of the error's message. */
const refused: Readonly<Record<string, readonly [Fields, string, string]>> = {
  "no schedule": [{}, "/schedule", "found none"],
  "a schedule that is null": [{ schedule: null }, "/schedule", "expected object, found null"],
  "a schedule that is a string": [{ schedule: "cosine" }, "/schedule", "expected object"],
  "a schedule that is an array": [{ schedule: [] }, "/schedule", "expected object"],
  "a schedule without a name": [{ schedule: {} }, "/schedule/name", "none"],
  "a name that is a number": [{ schedule: { name: 3 } }, "/schedule/name", "found 3"],
  "a name with a letter too few": [{ schedule: { name: "cosin" } }, "/schedule/name", "the nearest is cosine)"],
  "torch's class name": [{ schedule: { name: "OneCycleLR" } }, "/schedule/name", "one of chained, constant, cosine"],
  "a field of another schedule": [{ schedule: { name: "exponential", gamma: 1, step_size: 3 } }, "/schedule/step_size", "a known field (one of name, gamma)"],
  "T_0 0": [{ schedule: { name: "cosine_warm_restarts", T_0: 0 } }, "/schedule/T_0", "at least 1, found 0"],
  "T_mult 0": [{ schedule: { name: "cosine_warm_restarts", T_0: 1, T_mult: 0 } }, "/schedule/T_mult", "at least 1, found 0"],
  "total_steps 0": [{ schedule: { name: "one_cycle", max_lr: 1, total_steps: 0 } }, "/schedule/total_steps", "at least 1, found 0"],
  "pct_start below 0": [{ schedule: { name: "one_cycle", max_lr: 1, total_steps: 9, pct_start: -0.1 } }, "/schedule/pct_start", "at least 0"],
  "pct_start above 1": [{ schedule: { name: "one_cycle", max_lr: 1, total_steps: 9, pct_start: 1.1 } }, "/schedule/pct_start", "at most 1"],
  "div_factor 0": [{ schedule: { name: "one_cycle", max_lr: 1, total_steps: 9, div_factor: 0 } }, "/schedule/div_factor", "more than 0"],
  "an anneal_strategy that is none": [
    { schedule: { name: "one_cycle", max_lr: 1, total_steps: 9, anneal_strategy: "cosine" } },
    "/schedule/anneal_strategy",
    "one of cos, linear",
  ],
  "one_cycle past its end": [
    { schedule: { name: "one_cycle", max_lr: 1, total_steps: 9 }, from: 5, count: 5 },
    "/schedule/total_steps",
    "more than the 9 steps taken, found 9",
  ],
  "exp_range that grows with a momentum": [
    { schedule: { name: "cyclic", base_lr: 0, max_lr: 1, mode: "exp_range", gamma: 1.1 } },
    "/schedule/gamma",
    "at most 1 where the momentum cycles",
  ],
  "milestones that fall": [
    { schedule: { name: "multistep", milestones: [3, 9, 8] } },
    "/schedule/milestones/2",
    "at least 9, the milestone before it, found 8",
  ],
  "a milestone below 0": [{ schedule: { name: "multistep", milestones: [-1] } }, "/schedule/milestones/0", "at least 0"],
  "a milestone that is not whole": [{ schedule: { name: "multistep", milestones: [1, 2.5] } }, "/schedule/milestones/1", "integer"],
  "milestones that are equal in a sequence": [
    { schedule: { name: "sequence", schedules: [{ name: "constant" }, { name: "constant" }, { name: "constant" }], milestones: [4, 4] } },
    "/schedule/milestones/1",
    "more than 4, the milestone before it, found 4",
  ],
  "a sequence that begins with a milestone of 0": [
    { schedule: { name: "sequence", schedules: [{ name: "constant" }, { name: "constant" }], milestones: [0] } },
    "/schedule/milestones/0",
    "at least 1",
  ],
  "as many milestones as schedules": [
    { schedule: { name: "sequence", schedules: [{ name: "constant" }], milestones: [4] } },
    "/schedule/milestones",
    "0 milestones, one fewer than schedules, found 1",
  ],
  "too few milestones": [
    { schedule: { name: "sequence", schedules: [{ name: "constant" }, { name: "linear" }, { name: "linear" }], milestones: [4] } },
    "/schedule/milestones",
    "2 milestones, one fewer than schedules, found 1",
  ],
  "a warm-up as long as the schedule": [
    { schedule: { name: "warmup_cosine", warmup_steps: 10, total_steps: 10 } },
    "/schedule/warmup_steps",
    "less than total_steps, 10",
  ],
  "a schedule that sets the rate, chained": [
    { schedule: { name: "chained", schedules: [{ name: "linear" }, { name: "one_cycle", max_lr: 1, total_steps: 10 }] } },
    "/schedule/schedules/1",
    "multiplies the base rate",
  ],
  "a table without rates": [{ schedule: { name: "table", lrs: [] } }, "/schedule/lrs", "at least 1 items"],
  "a negative rate in a table": [{ schedule: { name: "table", lrs: [0.1, -1] } }, "/schedule/lrs/1", "at least 0"],
  "a sequence of nothing": [{ schedule: { name: "sequence", schedules: [], milestones: [] } }, "/schedule/schedules", "at least 1 items"],
  "a part with an unknown name": [
    { schedule: { name: "sequence", schedules: [{ name: "linear" }, { name: "cosinus" }], milestones: [4] } },
    "/schedule/schedules/1/name",
    "the nearest is cosine)",
  ],
  "a part of a part that is out of range": [
    { schedule: { name: "sequence", schedules: [{ name: "sequence", schedules: [{ name: "step", step_size: 0 }], milestones: [] }], milestones: [] } },
    "/schedule/schedules/0/schedules/0/step_size",
    "at least 1",
  ],
  "a part of a part whose arguments do not fit": [
    {
      schedule: {
        name: "sequence",
        schedules: [{ name: "constant" }, { name: "sequence", schedules: [{ name: "multistep", milestones: [2, 1] }], milestones: [] }],
        milestones: [1],
      },
    },
    "/schedule/schedules/1/schedules/0/milestones/1",
    "at least 2",
  ],
  "a part past its end": [
    {
      schedule: { name: "sequence", schedules: [{ name: "constant" }, { name: "one_cycle", max_lr: 1, total_steps: 5 }], milestones: [10] },
      from: 15,
    },
    "/schedule/schedules/1/total_steps",
    "more than the 5 steps taken, found 5",
  ],
  "rates that grow beyond float32": [{ schedule: { name: "exponential", gamma: 10 }, from: 45 }, "/schedule", "float32 can hold, found 9.99"],
  "rates that are infinite": [{ schedule: { name: "exponential", gamma: 10 }, from: 2 ** 53 - 2 }, "/schedule", "found Infinity"],
  "rates that are no number": [{ schedule: { name: "exponential", gamma: 10 }, lr: 0, from: 1000 }, "/schedule", "found NaN at step 1000"],
  "an lr below 0": [{ schedule: { name: "constant" }, lr: -1 }, "/lr", "at least 0"],
  "an lr that is a string": [{ schedule: { name: "constant" }, lr: "0.1" }, "/lr", "number"],
  "a range from below 0": [{ schedule: { name: "constant" }, from: -1 }, "/from", "at least 0"],
  "a range from half a step": [{ schedule: { name: "constant" }, from: 0.5 }, "/from", "integer"],
  "a range beyond whole numbers": [{ schedule: { name: "constant" }, from: 2 ** 53 - 2, count: 2 }, "/count", "at most 1 steps"],
  "no steps": [{ schedule: { name: "constant" }, count: 0 }, "/count", "at least 1"],
  "more steps than a call may ask for": [{ schedule: { name: "constant" }, count: 10_001 }, "/count", "at most 10000"],
  "a field that the method does not have": [{ schedule: { name: "constant" }, step: 1 }, "/step", "a known field"],
};

for (const [what, [params, field, words]] of Object.entries(refused)) test(`refuses ${what}`, () => requireRefused(params, field, words));

test("deep sequences are refused, and sequences of moderate depth are accepted", async () => {
  const nest = (depth: number): unknown => (depth === 0 ? { name: "constant" } : { name: "sequence", schedules: [nest(depth - 1)], milestones: [] });
  for (const type of [JSON_TYPE, MSGPACK]) {
    assert.deepEqual((await call({ schedule: nest(20), lr: 0.5, from: 9 }, type)).result, { lrs: [0.5] });
    assert.ok((await call({ schedule: nest(200) }, type)).error);
  }
});

test("the largest range is returned whole, and its last value equals that of the single step", async () => {
  const schedule = { name: "cosine", T_max: 10_000 };
  const { result } = (await call({ schedule, from: 7, count: 10_000 }, JSON_TYPE)) as { result: { lrs: number[] } };
  assert.equal(result.lrs.length, 10_000);
  assert.deepEqual((await call({ schedule, from: 10_006 }, MSGPACK)).result, { lrs: result.lrs.slice(-1) });
});

test("a sequence returns a null momentum for a part that has none", async () => {
  const schedules = [{ name: "constant" }, { name: "one_cycle", max_lr: 1, total_steps: 5 }];
  const params = { schedule: { name: "sequence", schedules, milestones: [2] }, from: 1, count: 2 };
  for (const type of [JSON_TYPE, MSGPACK]) assert.deepEqual(((await call(params, type)).result as { momentums: unknown }).momentums, [null, 0.95]);
});

test("POST /v1/schedule is the same method, with errors as problem details", async () => {
  const good = await service.post("/v1/schedule", JSON.stringify({ schedule: { name: "step", step_size: 2 }, lr: 1, count: 3 }), JSON_TYPE);
  assert.equal(good.status, 200);
  assert.deepEqual(await readReply(good), { lrs: [1, 1, 0.1] });
  const bad = await service.post("/v1/schedule", JSON.stringify({ schedule: { name: "step", step_size: 0 } }), JSON_TYPE);
  assert.equal(bad.status, 400);
  assert.match(bad.headers.get("content-type") ?? "", /^application\/problem\+json/);
  assert.equal(((await readReply(bad)) as { field: string }).field, "/schedule/step_size");
});

interface Described {
  readonly components: { readonly schemas: Readonly<Record<string, { oneOf?: { $ref: string }[]; properties?: { name?: { const?: string } } }>> };
}

test("the API documents contain the method and every schedule", async () => {
  const openRpc = (await (await fetch(`${service.url}/openrpc.json`)).json()) as Described & { methods: { name: string }[] };
  assert.ok(openRpc.methods.some(({ name }) => name === "schedule.evaluate"));
  const openApi = (await (await fetch(`${service.url}/openapi.json`)).json()) as Described & { paths: object };
  assert.ok("/v1/schedule" in openApi.paths);
  for (const { components } of [openRpc, openApi]) {
    const branches = (components.schemas["Schedule"]?.oneOf ?? []).map(({ $ref }) => components.schemas[$ref.split("/").at(-1) ?? ""]);
    assert.deepEqual(branches.map((branch) => branch?.properties?.name?.const).sort(), [...registry.keys()].sort());
  }
});
