/** Tests that a new option of a step needs one change in the schema and one in the engine. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { gradsAt, SMALL, startParams } from "../support/run.ts";
import { JSON_TYPE, MSGPACK, pack, readReply, TestService } from "../support/service.ts";
import { writeTensors } from "../support/tensors.ts";
import { TreeCopy } from "../support/tree.ts";

const params = writeTensors(startParams(SMALL));
const grads = writeTensors(gradsAt(SMALL, 0));

interface Reply {
  readonly params: Buffer;
  readonly state: Buffer;
}

type Call = Readonly<Record<string, unknown>>;

/** Returns the reply to a call in MessagePack or JSON: tensors as base64, without members that vary between calls. */
const post = async (service: TestService, call: Call, type: string = MSGPACK): Promise<unknown> => {
  const text = (_: string, value: unknown) => ((value as { type?: string } | null)?.type === "Buffer" ? Buffer.from(value as never).toString("base64") : value);
  const reply = (await readReply(await service.post("/v1/step", type === MSGPACK ? pack(call) : JSON.stringify(call, text), type))) as Record<string, unknown>;
  const { request_id: _, ...rest } = reply;
  return JSON.parse(JSON.stringify(rest, text));
};

/** Returns a call whose state comes from an earlier step. */
const nextCall = async (service: TestService): Promise<Call> => {
  const first = (await readReply(await service.post("/v1/step", pack({ optimizer: { name: "adamw" }, params, grads }), MSGPACK))) as Reply;
  return { optimizer: { name: "adamw", lr: 0.25 }, params: first.params, grads, state: first.state };
};

test("an option added in the schema and in one place of the engine takes effect in first and later calls", async () => {
  using tree = new TreeCopy(["src", "schemas", "build/kernels.wasm", "docs"]);
  const replaceOnce = (file: string, text: string, by: string): void => {
    const parts = tree.read(file).split(text);
    assert.equal(parts.length, 2, `${file} has ${JSON.stringify(text)} once`);
    tree.write(file, parts.join(by));
  };
  replaceOnce("schemas/step.schema.json", '"loss_scale": {', '"gradient_factor": { "type": "number" },\n    "loss_scale": {');
  replaceOnce("src/engine/step.ts", "clipScale(layout, gradSums)", "clipScale(layout, gradSums) * (options.gradient_factor ?? 1)");
  const { status, stderr } = tree.run("generate.ts");
  assert.equal(status, 0, stderr);

  const start = () => TestService.start({}, [], undefined, join(tree.path, "src/main.ts"));
  await using warm = await start();
  const call = await nextCall(warm);
  const factors = [undefined, 0.5, -2].map((factor) => (factor === undefined ? call : { ...call, gradient_factor: factor }));
  const expected = await Promise.all(
    factors.map(async (variant) => {
      await using cold = await start();
      return await post(cold, variant);
    }),
  );
  assert.equal(new Set(expected.map((reply) => (reply as { params: string }).params)).size, factors.length, "the option changes the result");
  for (let time = 0; time < 4; time++) {
    for (const [index, variant] of factors.entries()) {
      for (const type of [MSGPACK, JSON_TYPE]) assert.deepEqual(await post(warm, variant, type), expected[index], `${type}, call ${time}`);
    }
  }
});
