/** Tests the examples of the JSON-RPC 2.0 specification, section 7, with methods of stepd in the place of the specification's. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { JSON_TYPE, TestService } from "../support/service.ts";

let service: TestService;
before(async () => {
  service = await TestService.start();
});
after(() => service[Symbol.asyncDispose]());

const SGD = '{"name": "sgd"}';
const isListOf = (result: unknown): void => assert.ok(Array.isArray((result as { optimizers: unknown }).optimizers));
const isSgd = (result: unknown): void => assert.equal((result as { name: string }).name, "sgd");

/** What a response must have: its id, and an error's code or a check of its result. */
type Expected = readonly [id: unknown, outcome: number | ((result: unknown) => void)];

const EXAMPLES: Readonly<Record<string, readonly [request: string, replies: Expected | readonly Expected[] | undefined]>> = {
  "a call with positional parameters": [`{"jsonrpc": "2.0", "method": "optimizer.describe", "params": [${SGD}], "id": 1}`, [1, isSgd]],
  "a call with named parameters": [`{"jsonrpc": "2.0", "method": "optimizer.describe", "params": ${SGD}, "id": 3}`, [3, isSgd]],
  "a notification": [`{"jsonrpc": "2.0", "method": "optimizer.describe", "params": ${SGD}}`, undefined],
  "a notification of a method that does not exist": ['{"jsonrpc": "2.0", "method": "foobar"}', undefined],
  "a call of a method that does not exist": ['{"jsonrpc": "2.0", "method": "foobar", "id": "1"}', ["1", -32601]],
  "a call that is not JSON": ['{"jsonrpc": "2.0", "method": "foobar, "params": "bar", "baz]', [null, -32700]],
  "a call that is no request": ['{"jsonrpc": "2.0", "method": 1, "params": "bar"}', [null, -32600]],
  "a batch that is not JSON": ['[{"jsonrpc": "2.0", "method": "optimizer.list", "id": "1"}, {"jsonrpc": "2.0", "method"', [null, -32700]],
  "an empty list": ["[]", [null, -32600]],
  "a batch of one value that is no request": ["[1]", [[null, -32600]]],
  "a batch of values that are no requests": [
    "[1,2,3]",
    [
      [null, -32600],
      [null, -32600],
      [null, -32600],
    ],
  ],
  "a batch": [
    `[{"jsonrpc": "2.0", "method": "optimizer.describe", "params": [${SGD}], "id": "1"}, {"jsonrpc": "2.0", "method": "optimizer.describe", "params": [${SGD}]},
      {"jsonrpc": "2.0", "method": "optimizer.describe", "params": ${SGD}, "id": "2"}, {"foo": "boo"},
      {"jsonrpc": "2.0", "method": "foo.get", "params": {"name": "myself"}, "id": "5"}, {"jsonrpc": "2.0", "method": "optimizer.list", "id": "9"}]`,
    [
      ["1", isSgd],
      ["2", isSgd],
      [null, -32600],
      ["5", -32601],
      ["9", isListOf],
    ],
  ],
  "a batch of notifications": ['[{"jsonrpc": "2.0", "method": "optimizer.list"}, {"jsonrpc": "2.0", "method": "optimizer.list", "params": {}}]', undefined],
};

interface Response {
  readonly jsonrpc: string;
  readonly id: unknown;
  readonly result?: unknown;
  readonly error?: { readonly code: number; readonly message: string };
}

const requireResponse = (response: Response, [id, outcome]: Expected): void => {
  assert.equal(response.jsonrpc, "2.0");
  assert.deepEqual(response.id, id);
  assert.equal("result" in response, typeof outcome === "function");
  assert.equal("error" in response, typeof outcome === "number");
  if (typeof outcome === "number") assert.equal(response.error?.code, outcome);
  else outcome(response.result);
};

for (const [name, [request, expected]] of Object.entries(EXAMPLES)) {
  test(name, async () => {
    const response = await service.post("/rpc", request, JSON_TYPE);
    const text = await response.text();
    if (expected === undefined) {
      assert.equal(text, "");
      return;
    }
    const reply = JSON.parse(text) as Response | readonly Response[];
    if (!Array.isArray(expected[0])) requireResponse(reply as Response, expected as Expected);
    else {
      const replies = reply as readonly Response[];
      assert.equal(replies.length, expected.length);
      for (const [at, one] of (expected as readonly Expected[]).entries()) requireResponse(replies[at] as Response, one);
    }
  });
}
