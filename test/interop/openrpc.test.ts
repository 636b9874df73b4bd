/** Tests /openrpc.json: OpenRPC's own tools read it, resolve its references, and validate calls with it. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { TestService } from "../support/service.ts";
import { run } from "./_packages.ts";

let service: TestService;
before(async () => {
  service = await TestService.start({ STEPD_WORKERS: "1", STEPD_ARENA_MIB: "32" });
});
after(() => service[Symbol.asyncDispose]());

const tensors = { w: { shape: [1], values: [1] } };
const optimizer = { name: "adamw" };
const linear = { name: "linear" };
const sequence = (...schedules: readonly object[]): object => ({ name: "sequence", schedules, milestones: schedules.slice(1).map((_, index) => index + 1) });

/** Calls, each with the expected verdict of the tools. */
const CALLS: readonly (readonly [method: string, params: object, isTaken: boolean])[] = [
  ["optimizer.list", {}, true],
  ["optimizer.describe", { name: "adamw" }, true],
  ["optimizer.describe", {}, false],
  ["optimizer.step", { optimizer, params: tensors, grads: tensors }, true],
  ["optimizer.step", { optimizer, params: tensors, grads: tensors, schedule: sequence(linear, sequence(linear, linear)) }, true],
  ["optimizer.step", { optimizer, params: { file: "w", offset: 0, length: 8 }, grads: "AAAA" }, true],
  ["optimizer.step", { optimizer, params: { file: "w", offset: 0 }, grads: "AAAA" }, false],
  ["optimizer.step", { optimizer, params: tensors, grads: "no base64" }, false],
  ["optimizer.step", { optimizer: { name: "adamv" }, params: tensors, grads: tensors }, false],
];

test("OpenRPC's schema-utils parses the document, accepts valid calls and rejects invalid ones", async () => {
  const calls = JSON.stringify(CALLS.map(([method, params]) => ({ method, params })));
  const output = await run(process.execPath, ["javascript/openrpc.mjs", `${service.url}/openrpc.json`], { input: calls });
  const { methods, taken } = JSON.parse(output) as { methods: string[]; taken: boolean[] };
  assert.equal(methods.length, 13);
  assert.deepEqual(
    taken,
    CALLS.map(([, , isTaken]) => isTaken),
  );
});
