/** Public JSON-RPC clients call a real server as their documentation says: list, describe, a step, and an error. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { JSON_TYPE, type RpcError, TestService } from "../support/service.ts";
import { goEthereum, python, run } from "./_packages.ts";

/** The params of the calls; those of step are by name, as stepd takes them. */
const CALLS = {
  describe: { name: "adamw" },
  step: {
    optimizer: { name: "adamw", lr: 0.01 },
    params: { w: { shape: [2, 2], values: [1, -2, 0.5, 3] }, b: { shape: [], values: [0.25] } },
    grads: { w: { shape: [2, 2], values: [0.1, 0.2, -0.3, 0] }, b: { shape: [], values: [1] } },
    stats: "global",
  },
  unknown: { name: "adamv" },
};

/** Each package with the command that calls through it. */
const CLIENTS: readonly (readonly [name: string, ...command: readonly string[]])[] = [
  ...["jsonrpclib-pelix", "jsonrpc-requests", "jsonrpcclient", "tinyrpc"].map((name) => [name, python, "python/clients.py", name] as const),
  ...["@open-rpc/client-js", "jayson", "json-rpc-2.0"].map((name) => [name, process.execPath, "javascript/clients.mjs", name] as const),
  ["go-ethereum", goEthereum],
];

let service: TestService;
let expected: { readonly list: unknown; readonly describe: unknown; readonly step: unknown; readonly error: unknown };

before(async () => {
  service = await TestService.start({ STEPD_WORKERS: "1", STEPD_ARENA_MIB: "32" });
  const call = async (method: string, params: unknown): Promise<{ result?: unknown; error?: RpcError }> => {
    const reply = await service.post("/rpc", JSON.stringify({ jsonrpc: "2.0", id: 1, method, params }), JSON_TYPE);
    return (await reply.json()) as { result?: unknown; error?: RpcError };
  };
  const { error } = await call("optimizer.describe", CALLS.unknown);
  expected = {
    list: (await call("optimizer.list", {})).result,
    describe: (await call("optimizer.describe", CALLS.describe)).result,
    step: (await call("optimizer.step", CALLS.step)).result,
    error: { code: error?.code, message: error?.message },
  };
});
after(() => service[Symbol.asyncDispose]());

for (const [name, command = "", ...values] of CLIENTS) {
  test(`${name} lists, describes, steps, and tells of an error`, async () => {
    const output = await run(command, [...values, `${service.url}/rpc`], { input: JSON.stringify(CALLS) });
    assert.deepEqual(JSON.parse(output), expected);
  });
}
