/**
 * Tests public JSON-RPC clients, which call a real server as their documentation shows: list, describe, a step, and an error.
 */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { TestService } from "../support/service.ts";
import { type Answers, answers, CALLS } from "./_calls.ts";
import { goEthereum, python, run } from "./_packages.ts";

/** Each package, with the command that runs its calls. */
const CLIENTS: readonly (readonly [name: string, ...command: readonly string[]])[] = [
  ...["jsonrpclib-pelix", "jsonrpc-requests", "jsonrpcclient", "tinyrpc"].map((name) => [name, python, "python/clients.py", name] as const),
  ...["@open-rpc/client-js", "jayson", "json-rpc-2.0"].map((name) => [name, process.execPath, "javascript/clients.mjs", name] as const),
  ["go-ethereum", goEthereum],
];

let service: TestService;
let expected: Answers;
before(async () => {
  service = await TestService.start({ STEPD_WORKERS: "1", STEPD_ARENA_MIB: "32" });
  expected = await answers(service);
});
after(() => service[Symbol.asyncDispose]());

for (const [name, command = "", ...values] of CLIENTS) {
  test(`${name} lists, describes, steps, and reports an error`, async () => {
    const output = await run(command, [...values, `${service.url}/rpc`], { input: JSON.stringify(CALLS) });
    assert.deepEqual(JSON.parse(output), expected);
  });
}
