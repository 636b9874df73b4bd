/**
 * Tests that numbers in parameters decode to float64 in both formats, and that numbers beyond float64 are refused where it
 * matters.
 */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { schemas } from "../../src/generated/schemas.gen.ts";
import { JSON_TYPE, MSGPACK, pack, TestService } from "../support/service.ts";

let service: TestService;
before(async () => {
  service = await TestService.start({ STEPD_WORKERS: "1" });
});
after(() => service[Symbol.asyncDispose]());

test("every integer of a request has a maximum that float64 can hold", () => {
  const requireMaximum = (schema: unknown, path: string): void => {
    if (typeof schema !== "object" || schema === null) return;
    const { type, maximum } = schema as { type?: string | string[]; maximum?: number };
    if ([type].flat().includes("integer")) assert.ok(maximum !== undefined && maximum <= Number.MAX_SAFE_INTEGER, path);
    for (const [key, value] of Object.entries(schema)) requireMaximum(value, `${path}/${key}`);
  };
  const inputs = schemas.filter(({ $id }) => !$id.includes("-result") && $id !== "error.schema.json");
  assert.ok(inputs.length > 10);
  for (const schema of inputs) requireMaximum(schema, schema.$id);
});

/** Returns a step of a parameter 0 with lr 1. The gradient is given as JSON text. */
const stepJson = (grad: string, more = ""): string =>
  `{"optimizer":{"name":"sgd","lr":1},"params":{"w":{"shape":[1],"dtype":"F64","values":[0]}},"grads":{"w":{"shape":[1],"dtype":"F64","values":[${grad}]}}${more}}`;

const newValue = async (response: Response): Promise<number | undefined> => {
  const { params } = (await response.json()) as { params?: { w: { values: number[] } } };
  return params?.w.values[0];
};

for (const whole of [2n ** 53n + 1n, 2n ** 60n, 2n ** 64n - 1n, -(2n ** 63n)]) {
  test(`${whole} as a value is the same real number in both formats`, async () => {
    const fromJson = await newValue(await service.post("/v1/step", stepJson(String(whole)), JSON_TYPE));
    const call = {
      optimizer: { name: "sgd", lr: 1 },
      params: { w: { shape: [1], dtype: "F64", values: [0] } },
      grads: { w: { shape: [1], dtype: "F64", values: [whole] } },
    };
    const fromMsgpack = await newValue(await service.post("/v1/step", pack(call), MSGPACK, { Accept: JSON_TYPE }));
    assert.deepEqual([fromJson, fromMsgpack], [-Number(whole), -Number(whole)]);
  });
}

for (const [what, body, field, expected] of [
  ["a value beyond float64", stepJson("1e400"), "/grads/w/values/0", "a finite number or one of NaN, Infinity, -Infinity"],
  ["a value that is no number", stepJson('"Inf"'), "/grads/w/values/0", "a finite number or one of NaN, Infinity, -Infinity"],
  ["a limit beyond float64", stepJson("1", ',"clip":{"max_norm":1e400}'), "/clip/max_norm", "a finite number"],
  ["a seed beyond float64", stepJson("1", ',"stochastic_rounding":{"seed":1e400}'), "/stochastic_rounding/seed", "integer"],
  ["a seed of 2^53", stepJson("1", ',"stochastic_rounding":{"seed":9007199254740993}'), "/stochastic_rounding/seed", "at most 9007199254740991"],
  [
    "a milestone of 2^53",
    stepJson("1", ',"schedule":{"name":"multistep","milestones":[9007199254740993]}'),
    "/schedule/milestones/0",
    "at most 9007199254740991",
  ],
] as const) {
  test(`${what} is refused`, async () => {
    const response = await service.post("/v1/step", body, JSON_TYPE);
    const problem = (await response.json()) as { field: string; expected: string };
    assert.deepEqual([response.status, problem.field, problem.expected], [400, field, expected]);
  });
}
