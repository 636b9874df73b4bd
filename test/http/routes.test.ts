/** Tests every address of the service, and compares the REST endpoints with JSON-RPC. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { errors } from "../../src/errors/errors.ts";
import { registry } from "../../src/optimizers/registry.ts";
import { JSON_TYPE, MSGPACK, pack, readReply, TestService } from "../support/service.ts";
import { writeState } from "../support/tensors.ts";
import { sgdParams } from "./_client.ts";

let service: TestService;
before(async () => {
  service = await TestService.start({ STEPD_WORKERS: "1", STEPD_ARENA_MIB: "32" });
});
after(() => service[Symbol.asyncDispose]());

const get = async <T>(path: string): Promise<T> => {
  const response = await fetch(service.url + path);
  assert.equal(response.status, 200, path);
  return (await response.json()) as T;
};

test("live and ready answer, also under KServe's names", async () => {
  for (const path of ["/health/live", "/v2/health/live"]) assert.deepEqual(await get(path), { live: true });
  for (const path of ["/health/ready", "/v2/health/ready"]) assert.deepEqual(await get(path), { ready: true });
});

test("GET /v1 returns the version, the kernels and the limits", async () => {
  const info = await get<{
    name: string;
    version: string;
    node: string;
    kernels: string[];
    workers: number;
    shared_memory: boolean;
    limits: Record<string, number>;
  }>("/v1");
  assert.deepEqual([info.name, info.node, info.workers], ["stepd", process.version, 1]);
  assert.match(info.version, /^\d+\.\d+\.\d+$/);
  for (const kernel of ["sgd_f32", "adam_f32", "lamb_apply_f32"]) assert.ok(info.kernels.includes(kernel));
  assert.ok((info.limits["arena_bytes"] ?? 0) > 31 * 2 ** 20);
  // By default the service has no cache and no shared folder.
  for (const [name, limit] of Object.entries(info.limits)) assert.ok(Number.isSafeInteger(limit) && limit > 0 === (name !== "cache_bytes"), name);
  assert.equal(info.shared_memory, false);
});

test("/metrics has Prometheus's format", async () => {
  const response = await fetch(`${service.url}/metrics`);
  assert.match(response.headers.get("content-type") ?? "", /^text\/plain; version=0\.0\.4/);
  const text = await response.text();
  for (const name of ["stepd_arena_used_bytes", "stepd_in_flight_requests", "stepd_workers", "process_cpu_seconds_total"])
    assert.match(text, new RegExp(`^${name} `, "m"));
});

const rpc = async (method: string, params: unknown, type: string): Promise<unknown> => {
  const body = { jsonrpc: "2.0", id: 1, method, params };
  const reply = (await readReply(await service.post("/rpc", type === MSGPACK ? pack(body) : JSON.stringify(body), type))) as { result: unknown };
  assert.notEqual(reply.result, undefined, JSON.stringify(reply));
  return reply.result;
};

test("GET /v1/optimizers equals optimizer.list and contains the whole registry", async () => {
  const { optimizers } = await get<{ optimizers: { name: string }[] }>("/v1/optimizers");
  assert.deepEqual(optimizers.map(({ name }) => name).sort(), [...registry.keys()].sort());
  assert.deepEqual({ optimizers }, await rpc("optimizer.list", {}, JSON_TYPE));
});

for (const name of registry.keys()) {
  test(`GET /v1/optimizers/${name} equals optimizer.describe, in both encodings`, async () => {
    const described = await get<{ name: string; bytes_per_parameter: { in: number; out: number; state: number } }>(`/v1/optimizers/${name}`);
    assert.equal(described.name, name);
    const { in: into, out, state } = described.bytes_per_parameter;
    assert.deepEqual([into - 8, out - 4], [state, state]);
    assert.deepEqual(described, await rpc("optimizer.describe", { name }, JSON_TYPE));
    assert.deepEqual(described, await rpc("optimizer.describe", { name }, MSGPACK));
    const packed = await fetch(`${service.url}/v1/optimizers/${name}`, { headers: { Accept: MSGPACK } });
    assert.deepEqual(described, await readReply(packed));
  });
}

test("GET of an unknown optimizer is 404 with a suggestion; JSON-RPC reports a wrong parameter", async () => {
  for (const [name, pattern] of [
    ["AdamV", /nearest is adamw\), found "AdamV"$/],
    ["nope", /, yogi, found "nope"$/],
    ["__proto__", /found "__proto__"$/],
    ["a%2Fb", /found "a\/b"$/],
  ] as const) {
    const response = await fetch(`${service.url}/v1/optimizers/${name}`);
    const problem = (await response.json()) as { name: string; status: number; detail: string };
    assert.deepEqual([response.status, problem.status, problem.name], [404, 404, "NOT_FOUND"]);
    assert.match(problem.detail, pattern);
  }
  const reply = await service.post("/rpc", JSON.stringify({ jsonrpc: "2.0", id: 1, method: "optimizer.describe", params: { name: "nope" } }), JSON_TYPE);
  assert.equal(((await reply.json()) as { error: { code: number } }).error.code, -32602);
});

const tensors = { w: { shape: [2], dtype: "F32", values: [1, 2] } };

/** Valid parameters for every method that has a POST endpoint. */
const VALID_PARAMS: Readonly<Record<string, unknown>> = {
  "optimizer.step": { optimizer: { name: "adamw" }, params: tensors, grads: tensors },
  "optimizer.init": { optimizer: { name: "lamb" }, params: tensors },
  "optimizer.average": {
    optimizer: { name: "schedule_free_sgd" },
    params: tensors,
    state: writeState({
      optimizer: "schedule_free_sgd",
      steps: { w: 1 },
      slots: { z: { w: { shape: [2], data: Float32Array.of(1, 3) } } },
      scalars: { lr_max: { w: 1 }, weight_sum: { w: 1 } },
    }).toString("base64"),
  },
  "optimizer.norms": { grads: tensors },
  "optimizer.distances": { updates: [{ tensors }, { tensors }] },
  "optimizer.reduce": { params: tensors, updates: [{ tensors, weight: 2 }] },
  "optimizer.plan": { optimizer: { name: "adamw" }, tensors: { w: { shape: [2] } } },
  "schedule.evaluate": { schedule: { name: "linear" }, count: 3 },
};

interface OpenApi {
  readonly openapi: string;
  readonly paths: Readonly<Record<string, Readonly<Record<string, { readonly operationId: string }>>>>;
}

test("every OpenRPC method has an OpenAPI endpoint that returns the same", async () => {
  const openRpc = await get<{ openrpc: string; methods: { name: string; errors: { code: number; data: { name: string } }[] }[] }>("/openrpc.json");
  const openApi = await get<OpenApi>("/openapi.json");
  assert.match(openRpc.openrpc, /^1\./);
  assert.match(openApi.openapi, /^3\.1/);
  const twins = new Map(
    Object.entries(openApi.paths).flatMap(([path, verbs]) => Object.entries(verbs).map(([verb, { operationId }]) => [operationId, { path, verb }])),
  );
  const table = Object.entries(errors).map(([name, { code }]) => [name, code]);
  for (const { name, errors: documented } of openRpc.methods) {
    const twin = twins.get(name);
    assert.ok(twin, `${name} has no address`);
    assert.deepEqual(
      documented.map(({ code, data }) => [data.name, code]),
      table,
    );
    if (twin.verb !== "post") continue;
    for (const type of [JSON_TYPE, MSGPACK]) {
      const state = await rpc("optimizer.init", VALID_PARAMS["optimizer.init"], type);
      const params = VALID_PARAMS[name] ?? state;
      const response = await service.post(twin.path, type === MSGPACK ? pack(params) : JSON.stringify(params), type);
      const text = response.status === 200 ? "" : await response.clone().text();
      assert.equal(response.status, 200, `${name}: ${text}`);
      assert.equal(response.headers.get("content-type"), type);
      assert.deepEqual(await readReply(response), await rpc(name, params, type), name);
    }
  }
});

test("rpc.discover equals /openrpc.json", async () => {
  assert.deepEqual(await rpc("rpc.discover", {}, JSON_TYPE), await get("/openrpc.json"));
});

test("every reference in the OpenRPC and OpenAPI documents resolves", async () => {
  for (const path of ["/openrpc.json", "/openapi.json"]) {
    const document = await get<object>(path);
    const check = (value: unknown): void => {
      if (typeof value !== "object" || value === null) return;
      for (const [key, item] of Object.entries(value)) {
        if (key !== "$ref") check(item);
        else {
          const target = String(item)
            .split("/")
            .slice(1)
            .reduce<unknown>((at, part) => (at as Record<string, unknown> | undefined)?.[part], document);
          assert.ok(target, `${path}: ${item}`);
        }
      }
    };
    check(document);
  }
});

test("equal requests get equal bytes, by either address and in every call", async () => {
  const body = pack({ ...sgdParams(1000, 3), optimizer: { name: "adamw" } });
  const replies = await Promise.all([1, 2, 3].map(async () => Buffer.from(await (await service.post("/v1/step", body, MSGPACK)).arrayBuffer())));
  assert.ok(replies.every((reply) => reply.equals(replies[0] as Buffer)));
});
