/**
 * Tests that /openapi.json and /openrpc.json allow exactly the calls that the service accepts, and that OpenRPC's references do
 * not loop.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Ajv2020 } from "ajv/dist/2020.js";
import { openApi as makeOpenApi, openRpc as makeOpenRpc } from "../../src/rpc/discover.ts";
import { methods } from "../../src/rpc/methods.ts";
import { validate } from "../../src/validation/validate.ts";

type Schema = Readonly<Record<string, unknown>>;

interface Document {
  readonly components: { readonly schemas: Readonly<Record<string, Schema>> };
}

interface OpenRpc extends Document {
  readonly methods: readonly { readonly name: string; readonly params: readonly { readonly name: string; readonly schema: Schema }[] }[];
}

const openApi = makeOpenApi(methods, "0.0.0") as unknown as Document & {
  readonly paths: Readonly<Record<string, { readonly post?: { readonly operationId: string } }>>;
};
const openRpc = makeOpenRpc(methods, "0.0.0") as unknown as OpenRpc;

/** Returns whether a document's schema accepts a value. */
const accepts = (document: Document, schema: Schema, value: unknown): boolean =>
  new Ajv2020({ strict: false, validateFormats: false }).validate({ ...schema, components: document.components }, value);

const tensors = { w: { shape: [2], values: [1, "NaN"] } };
const optimizer = { name: "adamw" };
const step = { optimizer, params: tensors, grads: tensors };
const shared = { file: "f", offset: 0, length: 8 };
const cached = { handle: "0" };
const linear = { name: "linear" };
const sequence = (...schedules: readonly object[]): object => ({ name: "sequence", schedules, milestones: schedules.slice(1).map((_, index) => index + 1) });

/** The params of methods: valid params, and params with a single mistake. */
const CASES: Readonly<Record<string, { readonly right: readonly object[]; readonly wrong: readonly object[] }>> = {
  step: {
    right: [
      step,
      { ...step, params: shared, grads: cached },
      { ...step, params: "AAAA", grads: "Ag==", state: "/+8=" },
      { ...step, state: null },
      { ...step, state: shared },
      { ...step, state: cached },
      { ...step, params: { file: { shape: [], values: [0] } } },
      { ...step, params: {} },
      { ...step, schedule: sequence(linear, sequence(linear, linear)) },
      { ...step, groups: [{ tensors: ["*"], optimizer: { lr: 1 } }] },
      { ...step, groups: [{ tensors: ["*"], optimizer: { name: "adamw" } }] },
      { ...step, clip: { max_norm: 1, total_norm: 2 } },
      { ...step, reply: { into: { params: shared } } },
    ],
    wrong: [
      { ...step, params: { file: "f" } },
      { ...step, params: { file: "f", offset: 0 } },
      { ...step, grads: { ...shared, offset: -1 } },
      { ...step, grads: { ...shared, more: 1 } },
      { ...step, state: { file: "f" } },
      { ...step, state: { handle: "" } },
      { ...step, state: tensors },
      { ...step, state: 1 },
      { ...step, params: { w: { shape: [1] } } },
      { ...step, params: { w: { shape: [1], values: ["nan"] } } },
      { ...step, params: [] },
      { ...step, optimizer: { name: "adamw", betas: [0.9] } },
      { ...step, optimizer: { name: "adamv" } },
      { ...step, optimizer: {} },
      { ...step, schedule: sequence(linear, { name: "linear", total_iters: 0 }) },
      { ...step, schedule: sequence(linear, sequence({ name: "linear", total_iters: 0 })) },
      { ...step, groups: [{ tensors: ["*"], optimizer: { name: 1 } }] },
      { ...step, clip: { max_norm: 1, max_value: 2 } },
      { ...step, clip: {} },
      { ...step, more: 1 },
    ],
  },
  inspect: { right: [{ state: "" }, { state: shared }, { state: cached }], wrong: [{}, { state: { file: "f" } }, { state: tensors }] },
  evaluate: { right: [{ schedule: linear }], wrong: [{ schedule: {} }, { schedule: linear, count: 0 }, { schedule: linear, count: 10_001 }] },
};

const METHODS: Readonly<Record<string, string>> = { step: "optimizer.step", inspect: "state.inspect", evaluate: "schedule.evaluate" };

for (const [name, { right, wrong }] of Object.entries(CASES)) {
  for (const [isRight, value] of [...right.map((one) => [true, one] as const), ...wrong.map((one) => [false, one] as const)]) {
    test(`${name}: the service and both documents ${isRight ? "take" : "refuse"} ${JSON.stringify(value)}`, () => {
      const check = () => validate(`${name}.schema.json`, value);
      if (isRight) assert.doesNotThrow(check);
      else assert.throws(check);
      const title = `${name[0]?.toUpperCase()}${name.slice(1)}Params`;
      assert.equal(accepts(openApi, openApi.components.schemas[title] as Schema, value), isRight, "OpenAPI");
      // OpenRPC describes each parameter separately.
      const { params = [] } = openRpc.methods.find((method) => method.name === METHODS[name]) ?? {};
      const properties = Object.fromEntries(params.map((param) => [param.name, param.schema]));
      const required = params.filter((param) => (param as { required?: boolean }).required).map((param) => param.name);
      assert.equal(accepts(openRpc, { type: "object", properties, required, additionalProperties: false }, value), isRight, "OpenRPC");
    });
  }
}

/** Returns the components that a schema refers to. */
const referencesIn = (schema: Schema): readonly string[] =>
  [...JSON.stringify(schema).matchAll(/"#\/components\/schemas\/([^"]+)"/g)].map(([, name = ""]) => name);

test("OpenRPC's references have no cycle, because its tools replace references by schemas", () => {
  const follow = (name: string, path: readonly string[]): void => {
    assert.ok(!path.includes(name), [...path, name].join(" -> "));
    for (const next of referencesIn(openRpc.components.schemas[name] as Schema)) follow(next, [...path, name]);
  };
  for (const name of Object.keys(openRpc.components.schemas)) follow(name, []);
});

test("every component has its name as title, and none of stepd's own keywords", () => {
  for (const { components } of [openApi, openRpc]) {
    for (const [name, schema] of Object.entries(components.schemas)) assert.equal(schema["title"], name);
    assert.doesNotMatch(JSON.stringify(components), /"(tsType|blob|if|then|else|\$defs)":/);
  }
});

test("methods with a body have an OpenAPI example that their schema accepts", () => {
  const { paths } = openApi;
  const posts = Object.values(paths).flatMap(({ post }) => post?.operationId ?? []);
  const withBody = methods.filter(({ name }) => posts.includes(name));
  assert.equal(withBody.length, 10);
  for (const { params } of withBody) {
    const stem = params.replace(".schema.json", "");
    const { examples = [] } = openApi.components.schemas[`${stem[0]?.toUpperCase()}${stem.slice(1)}Params`] as { examples?: unknown[] };
    assert.ok(examples.length > 0, params);
    for (const example of examples) validate(params, example);
  }
});
