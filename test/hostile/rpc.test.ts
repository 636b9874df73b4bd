/** Tests JSON-RPC itself: invalid requests, batches, notifications, ids. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { JSON_TYPE, MSGPACK, pack, readReply } from "../support/service.ts";
import { CALLER_TEXT, checkNothingIsLeft, type Expected, requireRefusal, service, step, toJson, useService } from "./_harness.ts";

useService();

interface RpcCase extends Expected {
  readonly body: unknown;
  readonly only?: "msgpack";
}

const list = (fields: Readonly<Record<string, unknown>> = {}) => ({ jsonrpc: "2.0", id: 1, method: "optimizer.list", ...fields });
const without = (key: string) => Object.fromEntries(Object.entries(list()).filter(([name]) => name !== key));
const invalid = (body: unknown, field: string | undefined, pattern: RegExp): RpcCase => ({
  body,
  error: "INVALID_REQUEST",
  pattern,
  ...(field !== undefined && { field }),
});

/** The reply to each of these requests is HTTP 200 with an error object, in JSON and in MessagePack. */
const CASES: Readonly<Record<string, RpcCase>> = {
  "a number": invalid(5, undefined, /a JSON-RPC request object, found 5/),
  "a text": invalid("optimizer.list", undefined, /a JSON-RPC request object/),
  null: invalid(null, undefined, /found null/),
  true: invalid(true, undefined, /found true/),
  bytes: { ...invalid(Buffer.from("abc"), undefined, /found 3 bytes/), only: "msgpack" },
  "an empty object": invalid({}, "/jsonrpc", /expected "2.0", found none/),
  "no jsonrpc": invalid(without("jsonrpc"), "/jsonrpc", /found none/),
  "jsonrpc 1.0": invalid(list({ jsonrpc: "1.0" }), "/jsonrpc", /found "1.0"/),
  "jsonrpc as a number": invalid(list({ jsonrpc: 2 }), "/jsonrpc", /found 2/),
  "no method": invalid(without("method"), "/method", /a string, found none/),
  "a method that is a number": invalid(list({ method: 1 }), "/method", /a string, found 1/),
  "a method that is an object": invalid(list({ method: {} }), "/method", /found an object/),
  "an id that is an object": invalid(list({ id: {} }), "/id", /found an object/),
  "an id that is a list": invalid(list({ id: [1] }), "/id", /found an array/),
  "an id that is true": invalid(list({ id: true }), "/id", /found true/),
  "an id that is bytes": { ...invalid(list({ id: Buffer.from("a") }), "/id", /found 1 bytes/), only: "msgpack" },
  "params that are text": invalid(list({ params: "adam" }), "/params", /an object, found "adam"/),
  "params that are a number": invalid(list({ params: 0 }), "/params", /an object, found 0/),
  "params that are bytes": { ...invalid(list({ params: Buffer.alloc(3) }), "/params", /found 3 bytes/), only: "msgpack" },
  "32 MiB of bytes as params": { ...invalid(list({ params: Buffer.alloc(2 ** 25) }), "/params", /found 33554432 bytes/), only: "msgpack" },
  "an unknown member": invalid(list({ [CALLER_TEXT]: 1 }), `/${CALLER_TEXT}`, /one of jsonrpc, method, params, id/),
  "an unknown method": { body: list({ method: CALLER_TEXT }), error: "METHOD_NOT_FOUND", field: "/method", pattern: /"hostile_mark"; rpc.discover lists them/ },
  "a method of the prototype": { body: list({ method: "constructor" }), error: "METHOD_NOT_FOUND", field: "/method" },
  "a method with a slash": { body: list({ method: "/v1/step" }), error: "METHOD_NOT_FOUND", field: "/method" },
  "an empty method": { body: list({ method: "" }), error: "METHOD_NOT_FOUND", field: "/method" },
  "a reserved method that is not there": { body: list({ method: "rpc.cancel" }), error: "METHOD_NOT_FOUND", field: "/method" },
  "params by position": { body: list({ params: [1] }), error: "INVALID_PARAMS", pattern: /parameters by name, found an array of 1/ },
  "two objects as params": { body: list({ params: [{}, {}] }), error: "INVALID_PARAMS", pattern: /parameters by name, found an array of 2/ },
  "a list in a list as params": { body: list({ params: [[]] }), error: "INVALID_PARAMS", pattern: /parameters by name, found an array of 1/ },
  "bytes in a list as params": { body: list({ params: [Buffer.alloc(3)] }), error: "INVALID_PARAMS", pattern: /found an array of 1/, only: "msgpack" },
  "params by name in a list, with an unknown one": { body: list({ params: [{ x: 1 }] }), error: "INVALID_PARAMS", field: "/x", pattern: /no fields/ },
  "params for a method that takes none": { body: list({ params: { x: 1 } }), error: "INVALID_PARAMS", field: "/x", pattern: /no fields/ },
  "describe without a name": { body: list({ method: "optimizer.describe" }), error: "INVALID_PARAMS", field: "/name", pattern: /found none/ },
  "describe of an unknown optimizer": {
    body: list({ method: "optimizer.describe", params: { name: "lam" } }),
    error: "INVALID_PARAMS",
    field: "/name",
    pattern: /nearest is lamb/,
  },
  "describe of an optimizer called __proto__": {
    body: list({ method: "optimizer.describe", params: { name: "__proto__" } }),
    error: "INVALID_PARAMS",
    field: "/name",
  },
  "an empty batch": invalid([], undefined, /a batch of 1 to 100 calls, found 0/),
  "a batch of 101": invalid(
    Array.from({ length: 101 }, () => list()),
    undefined,
    /a batch of 1 to 100 calls, found 101/,
  ),
};

for (const [name, { body, only, ...expected }] of Object.entries(CASES)) {
  test(`refuses ${name}`, async () => {
    if (only !== "msgpack") await requireRefusal(await service().post("/rpc", toJson(body), JSON_TYPE), expected, 200);
    const response = await service().post("/rpc", pack(body), MSGPACK);
    await requireRefusal(response.clone(), expected, 200);
    const { id } = (await readReply(response)) as { id: unknown };
    assert.equal(id, expected.error === "INVALID_REQUEST" ? null : 1, "the id is null where the request could not be read");
  });
}

const inBothFormats = async (body: unknown, check: (response: Response, reply: unknown) => void): Promise<void> => {
  for (const [bytes, type] of [
    [toJson(body), JSON_TYPE],
    [pack(body), MSGPACK],
  ] as const) {
    const response = await service().post("/rpc", bytes, type);
    check(response, await readReply(response));
  }
};

const requireNothing = (response: Response, reply: unknown): void => {
  assert.equal(response.status, 204);
  assert.equal(reply, undefined);
  assert.equal(response.headers.get("content-length"), null);
  assert.equal(response.headers.get("content-type"), null);
};

test("notifications get 204 and no body, even if they fail", async () => {
  for (const body of [
    without("id"),
    { ...without("id"), method: CALLER_TEXT },
    { jsonrpc: "2.0", method: "optimizer.step", params: {} },
    { jsonrpc: "2.0", method: "optimizer.step", params: [] },
  ])
    await inBothFormats(body, requireNothing);
});

test("a batch of only notifications gets 204", () => inBothFormats([without("id"), { ...without("id"), method: CALLER_TEXT }], requireNothing));

test("an invalid notification gets an error, as JSON-RPC demands", () =>
  inBothFormats({ jsonrpc: "2.0", method: 1 }, (response, reply) => {
    assert.equal(response.status, 200);
    assert.deepEqual([(reply as { id: unknown }).id, (reply as { error: { code: number } }).error.code], [null, -32600]);
  }));

for (const id of [null, 0, "", "x", -1, 1.5, 2 ** 53 - 1, "é".repeat(1000)]) {
  test(`the id ${JSON.stringify(id)?.slice(0, 20)} returns unchanged, with a result and with an error`, async () => {
    await inBothFormats(list({ id }), (_, reply) => assert.equal((reply as { id: unknown }).id, id));
    await inBothFormats(list({ id, method: CALLER_TEXT }), (_, reply) => assert.equal((reply as { id: unknown }).id, id));
  });
}

test("an id above 2^53 returns with all digits, in MessagePack and in JSON", async () => {
  const id = 2n ** 64n - 1n;
  const packed = (await readReply(await service().post("/rpc", pack(list({ id })), MSGPACK))) as { id: unknown };
  assert.equal(packed.id, id);
  const text = await (await service().post("/rpc", pack(list({ id })), MSGPACK, { Accept: JSON_TYPE })).text();
  assert.match(text, /"id":18446744073709551615\}/);
});

test("a batch is answered in order, without its notifications", () =>
  inBothFormats(
    [list({ id: "a" }), 5, without("id"), list({ id: "b", method: CALLER_TEXT }), [], list({ id: "c", params: [1] }), list({ id: null })],
    (response, reply) => {
      assert.equal(response.status, 200);
      const answers = (reply as { id: unknown; result?: unknown; error?: { code: number } }[]).map(({ id, error }) => [id, error?.code]);
      assert.deepEqual(answers, [
        ["a", undefined],
        [null, -32600],
        ["b", -32601],
        [null, -32600],
        ["c", -32602],
        [null, undefined],
      ]);
    },
  ));

test("a batch of 100 steps with one invalid step succeeds in the other 99", async () => {
  const calls = Array.from({ length: 100 }, (_, id) => list({ id, method: "optimizer.step", params: step(id === 50 ? { grads: Buffer.alloc(3) } : {}) }));
  await inBothFormats(calls, (_, reply) => {
    const answers = reply as { id: number; result?: unknown; error?: { data: { name: string } } }[];
    assert.deepEqual(
      answers.map(({ id }) => id),
      calls.map((_, id) => id),
    );
    for (const { id, result, error } of answers) assert.ok(id === 50 ? error?.data.name === "TENSORS_CORRUPT" : result, `call ${id}`);
  });
});

test("prototype members are not accepted as members", () =>
  inBothFormats(list({ params: {} }), (_, reply) => {
    assert.deepEqual(Object.keys(reply as object).sort(), ["id", "jsonrpc", "result"]);
  }));

checkNothingIsLeft();
