/** Tests media types, compression, digests, request ids, keep-alive, and many parallel callers. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import http from "node:http";
import { after, before, test } from "node:test";
import { gzipSync, zstdCompressSync } from "node:zlib";
import { JSON_TYPE, MSGPACK, pack, readReply, TestService, unpack } from "../support/service.ts";
import { random, randomTensors, readTensors, writeTensors } from "../support/tensors.ts";
import { RawClient, requireResult, sgdBody, sgdParams, untilEmpty } from "./_client.ts";

let service: TestService;
before(async () => {
  service = await TestService.start({ STEPD_WORKERS: "2" });
});
after(async () => {
  await untilEmpty(service);
  await service[Symbol.asyncDispose]();
});

const list = { jsonrpc: "2.0", id: 7, method: "optimizer.list" };
const encoded = (type: string): string | Buffer => (type === JSON_TYPE ? JSON.stringify(list) : pack(list));

for (const type of [JSON_TYPE, MSGPACK, "application/msgpack", "application/x-msgpack"]) {
  test(`a request in ${type} gets a reply in the same type`, async () => {
    const response = await service.post("/rpc", encoded(type), type);
    assert.deepEqual([response.status, response.headers.get("content-type")], [200, type]);
    assert.equal(((await readReply(response)) as { id: number }).id, 7);
  });
}

for (const [own, accept, expected] of [
  [JSON_TYPE, MSGPACK, MSGPACK],
  [JSON_TYPE, "application/x-msgpack", "application/x-msgpack"],
  [MSGPACK, JSON_TYPE, JSON_TYPE],
  ["application/msgpack", MSGPACK, MSGPACK],
  [MSGPACK, "*/*", MSGPACK],
  [MSGPACK, "application/*", MSGPACK],
  [JSON_TYPE, "text/html, */*;q=0.1", JSON_TYPE],
  [JSON_TYPE, "application/json;q=0.5, application/vnd.msgpack;q=0.9", MSGPACK],
  [JSON_TYPE, "application/json;q=0, */*", MSGPACK],
] as const) {
  test(`${own} with Accept ${accept} gets ${expected}`, async () => {
    const response = await service.post("/rpc", encoded(own), own, { Accept: accept });
    assert.equal(response.headers.get("content-type"), expected);
    assert.equal(((await readReply(response)) as { id: number }).id, 7);
  });
}

for (const [type, accept, expected] of [
  ["application/json-rpc", undefined, "application/json-rpc"],
  ["application/jsonrequest", undefined, "application/jsonrequest"],
  ["Application/JSON-RPC; Charset=UTF-8", undefined, "application/json-rpc"],
  ['application/json;charset="utf-8"', undefined, JSON_TYPE],
  ["application/json; charset=utf8", undefined, JSON_TYPE],
  ["application/json; charset=us-ascii; profile=x", undefined, JSON_TYPE],
  ["application/json-rpc", "application/json", JSON_TYPE],
  ["application/json-rpc", "application/json-rpc, application/json;q=0.9", "application/json-rpc"],
  ["application/json-rpc", "application/vnd.msgpack", MSGPACK],
  [JSON_TYPE, "application/json; charset=utf-8", JSON_TYPE],
  [JSON_TYPE, 'APPLICATION/VND.MSGPACK; profile="a, b; q=0";q=0.5', MSGPACK],
  [JSON_TYPE, "application/json; charset=utf-8; q=0, application/vnd.msgpack; q=0.1", MSGPACK],
] as const) {
  test(`JSON as ${type} with Accept ${accept} gets ${expected}`, async () => {
    const response = await service.post("/rpc", encoded(JSON_TYPE), type, accept === undefined ? {} : { Accept: accept });
    assert.deepEqual([response.status, response.headers.get("content-type")], [200, expected]);
    assert.equal(((await readReply(response)) as { id: number }).id, 7);
  });
}

const PROBLEM = ["code", "detail", "expected", "field", "found", "name", "request_id", "status", "title", "type"];
const PROBLEM_TYPE = "application/problem+json";

test("an error has the requested media type", async () => {
  const body = JSON.stringify({ ...list, method: "none" });
  const rpc = await service.post("/rpc", body, JSON_TYPE, { Accept: MSGPACK });
  assert.equal(rpc.headers.get("content-type"), MSGPACK);
  assert.equal(((await readReply(rpc)) as { error: { code: number } }).error.code, -32601);
  for (const [type, accept, expected] of [
    [MSGPACK, undefined, MSGPACK],
    ["application/x-msgpack", undefined, "application/x-msgpack"],
    [MSGPACK, JSON_TYPE, PROBLEM_TYPE],
    [JSON_TYPE, MSGPACK, MSGPACK],
    [JSON_TYPE, undefined, PROBLEM_TYPE],
    ["application/json-rpc", undefined, PROBLEM_TYPE],
  ] as const) {
    const rest = await service.post("/v1/step", type.includes("json") ? "{}" : pack({}), type, accept === undefined ? {} : { Accept: accept });
    assert.deepEqual([rest.status, rest.headers.get("content-type")], [400, expected]);
    const problem = (await readReply(rest)) as { name: string };
    assert.deepEqual([Object.keys(problem).sort(), problem.name], [PROBLEM, "INVALID_PARAMS"]);
  }
});

test("a refusal before any method runs has the requested media type, over RPC and REST", async () => {
  for (const [method, path, headers, status, json] of [
    ["GET", "/nowhere", {}, 404, PROBLEM_TYPE],
    ["POST", "/v1/optimizers", { "Content-Type": MSGPACK }, 405, PROBLEM_TYPE],
    ["GET", "/v1/optimizers/%", {}, 400, PROBLEM_TYPE],
    ["POST", "/v1/step", { "Content-Type": "text/plain" }, 415, PROBLEM_TYPE],
    ["POST", "/rpc", { "Content-Type": "text/plain" }, 415, JSON_TYPE],
    ["POST", "/rpc", { "Content-Type": JSON_TYPE, "Content-Encoding": "br" }, 415, JSON_TYPE],
  ] as const) {
    for (const [accept, expected] of [
      [MSGPACK, MSGPACK],
      [JSON_TYPE, json],
    ] as const) {
      const response = await fetch(service.url + path, { method, headers: { ...headers, Accept: accept }, ...(method === "POST" && { body: "{}" }) });
      assert.deepEqual([response.status, response.headers.get("content-type")], [status, expected], `${method} ${path}`);
      const reply = (await readReply(response)) as { status?: number; error?: { code: number } };
      assert.ok(path === "/rpc" ? (reply.error?.code ?? 0) < -32000 : reply.status === status);
    }
  }
  // If the service supports no type in Accept, the reply has the request's type.
  const sent = await service.post("/v1/step", pack({}), MSGPACK, { Accept: "text/html" });
  assert.deepEqual([sent.status, sent.headers.get("content-type")], [406, MSGPACK]);
});

test("a step in JSON can return MessagePack, and the reverse", async () => {
  const params = sgdParams(3, 2);
  const asJson = JSON.stringify({ ...params, params: params.params.toString("base64"), grads: params.grads.toString("base64") });
  const packed = (await readReply(await service.post("/v1/step", asJson, JSON_TYPE, { Accept: MSGPACK }))) as { params: Uint8Array; state: Uint8Array };
  const text = (await readReply(await service.post("/v1/step", pack(params), MSGPACK, { Accept: JSON_TYPE }))) as { params: string; state: string };
  assert.equal(Buffer.from(packed.params).toString("base64"), text.params);
  assert.equal(Buffer.from(packed.state).toString("base64"), text.state);
  assert.deepEqual([...(readTensors(packed.params)["w"]?.data ?? [])], [1, 1, 1]);
});

test("tensors by name keep every value, including negative zeros and non-finite values", async () => {
  const values = [0, -0, 1e-45, 3.4028234663852886e38, "NaN", "Infinity", "-Infinity"];
  const zeros = values.map(() => 0);
  const body = JSON.stringify({
    optimizer: { name: "sgd" },
    params: { w: { shape: [7], values: "VALUES" } },
    grads: { w: { shape: [7], values: zeros } },
  }).replace('"VALUES"', '[0,-0,1e-45,3.4028234663852886e38,"NaN","Infinity","-Infinity"]');
  for (const accept of [JSON_TYPE, MSGPACK]) {
    const { params } = (await readReply(await service.post("/v1/step", body, JSON_TYPE, { Accept: accept }))) as { params: { w: { values: unknown[] } } };
    assert.deepEqual(
      params.w.values.map((value) => (typeof value === "number" ? Math.fround(value) : value)),
      values.map((value) => (typeof value === "number" ? Math.fround(value) : value)),
    );
  }
});

for (const [encoding, compress] of [
  ["gzip", gzipSync],
  ["zstd", zstdCompressSync],
  ["GZIP", gzipSync],
  ["identity", Buffer.from],
] as const) {
  test(`JSON with Content-Encoding ${encoding} is accepted`, async () => {
    const response = await service.post("/rpc", compress(Buffer.from(JSON.stringify(list))), JSON_TYPE, { "Content-Encoding": encoding });
    assert.equal(((await readReply(response)) as { id: number }).id, 7);
  });
}

const digest = (bytes: Uint8Array): string => `sha-256=:${createHash("sha256").update(bytes).digest("base64")}:`;

for (const type of [JSON_TYPE, MSGPACK]) {
  test(`Want-Repr-Digest returns the digest of a reply in ${type}`, async () => {
    const response = await service.post("/v1/step", sgdBody(1000, 1), MSGPACK, { Accept: type, "Want-Repr-Digest": "sha-512=1, sha-256=5" });
    assert.equal(response.headers.get("repr-digest"), digest(new Uint8Array(await response.arrayBuffer())));
  });
}

test("a reply has no digest without Want-Repr-Digest, or with weight 0", async () => {
  for (const headers of [{}, { "Want-Repr-Digest": "sha-256=0" }, { "Want-Repr-Digest": "sha-512=1" }] as Record<string, string>[])
    assert.equal((await service.post("/rpc", encoded(MSGPACK), MSGPACK, headers)).headers.get("repr-digest"), null);
});

test("a body with a correct digest is accepted", async () => {
  const body = sgdBody(10, 1);
  assert.equal((await service.post("/v1/step", body, MSGPACK, { "Content-Digest": digest(body) })).status, 200);
});

test("X-Request-Id is returned with results, errors, refusals and pages", async () => {
  const headers = { "X-Request-Id": "trace-1:a.b_C" };
  const id = (response: Response): string | null => response.headers.get("x-request-id");
  assert.equal(id(await service.post("/rpc", encoded(MSGPACK), MSGPACK, headers)), "trace-1:a.b_C");
  const error = await service.post("/v1/step", "{}", JSON_TYPE, headers);
  assert.deepEqual([id(error), ((await error.json()) as { request_id: string }).request_id], ["trace-1:a.b_C", "trace-1:a.b_C"]);
  assert.equal(id(await service.post("/rpc", "{}", "text/plain", headers)), "trace-1:a.b_C");
  for (const path of ["/v1", "/health/ready", "/nothing", "/rpc"]) assert.equal(id(await fetch(service.url + path, { headers })), "trace-1:a.b_C", path);
});

test("an X-Request-Id that is too long, or has other characters, is replaced", async () => {
  for (const given of ["x".repeat(129), "two words", "a/b", 'a"b'])
    assert.match((await fetch(`${service.url}/v1`, { headers: { "X-Request-Id": given } })).headers.get("x-request-id") ?? "", /^[0-9a-f-]{36}$/);
  assert.equal((await fetch(`${service.url}/v1`, { headers: { "X-Request-Id": "x".repeat(128) } })).headers.get("x-request-id"), "x".repeat(128));
});

test("a refusal of a method names the allowed methods; HEAD is allowed wherever GET is", async () => {
  for (const [path, method, allowed] of [
    ["/v1", "PUT", "GET, HEAD"],
    ["/rpc", "GET", "POST"],
    ["/v1/step", "DELETE", "POST"],
  ] as const) {
    const response = await fetch(service.url + path, { method });
    assert.deepEqual([response.status, response.headers.get("allow")], [405, allowed], path);
  }
});

test("a notification gets 204 without a length or a type", async () => {
  const { id: _, ...notification } = list;
  const response = await service.post("/rpc", JSON.stringify(notification), JSON_TYPE);
  assert.deepEqual([response.status, response.headers.get("content-length"), response.headers.get("content-type")], [204, null, null]);
});

test("a body may inflate to 16 MiB and no further", async () => {
  for (const [bytes, status] of [
    [2 ** 24, 400],
    [2 ** 24 + 1, 413],
  ] as const) {
    const body = gzipSync(Buffer.from("{}".padEnd(bytes)));
    assert.equal((await service.post("/v1/step", body, JSON_TYPE, { "Content-Encoding": "gzip" })).status, status, `${bytes}`);
  }
});

test("a request without an id gets a new one each time", async () => {
  const ids = await Promise.all([1, 2, 3].map(async () => (await service.post("/rpc", encoded(MSGPACK), MSGPACK)).headers.get("x-request-id")));
  assert.equal(new Set(ids).size, 3);
  for (const id of ids) assert.match(id ?? "", /^[0-9a-f-]{36}$/);
});

test("a connection stays open over many calls, valid and invalid", async () => {
  const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
  const sockets = new Set<unknown>();
  const post = (body: Buffer): Promise<number> =>
    new Promise((resolve, reject) => {
      const request = http.request(
        `${service.url}/v1/step`,
        { method: "POST", agent, headers: { "Content-Type": MSGPACK, "Content-Length": body.length } },
        (response) => {
          sockets.add(response.socket);
          response.resume().on("end", () => resolve(response.statusCode ?? 0));
        },
      );
      request.on("error", reject).end(body);
    });
  for (let i = 0; i < 200; i++) assert.equal(await post(i % 3 === 2 ? Buffer.from([0xc1]) : sgdBody(1 + i, 5)), i % 3 === 2 ? 400 : 200);
  assert.equal(sockets.size, 1);
  agent.destroy();
});

test("pipelined calls are answered in order", async () => {
  using client = await RawClient.connect(service);
  const bodies = Array.from({ length: 20 }, (_, index) => sgdBody(1 + index * 1000, index));
  for (const body of bodies) {
    client.head("/v1/step", { "Content-Length": body.length });
    client.send(body);
  }
  for (const [index] of bodies.entries()) {
    const reply = await client.reply();
    const data = readTensors((unpack(reply?.body as Buffer) as { params: Uint8Array }).params)["w"]?.data;
    assert.deepEqual([data?.length, data?.[0]], [1 + index * 1000, index - 1]);
  }
});

test("many parallel callers each get their own result, inline and on workers", async () => {
  const next = random(9);
  const sizes = Array.from({ length: 40 }, (_, index) => (index % 8 === 0 ? 200_000 : 1 + Math.floor(Math.abs(next()) * 20_000)));
  const calls = sizes.map((elements, seed) => {
    const params = randomTensors({ a: [elements], b: [3, 5] }, seed);
    const grads = randomTensors({ a: [elements], b: [3, 5] }, seed + 1000);
    return { optimizer: { name: ["adamw", "lamb", "sgd", "qhadam"][seed % 4] }, params: writeTensors(params), grads: writeTensors(grads) };
  });
  const step = (call: unknown) => service.call<{ params: Uint8Array; state: Uint8Array }>("optimizer.step", call);
  const alone = [];
  for (const call of calls) alone.push(await step(call));
  const together = await Promise.all(calls.map(step));
  for (const [index, { params, state }] of together.entries()) {
    assert.ok(Buffer.compare(params, alone[index]?.params as Uint8Array) === 0, `params of call ${index}`);
    assert.ok(Buffer.compare(state, alone[index]?.state as Uint8Array) === 0, `state of call ${index}`);
  }
});

test("HEAD of a page returns its headers without a body", async () => {
  for (const path of ["/v1", "/v1/optimizers", "/health/live", "/metrics"]) {
    const response = await fetch(service.url + path, { method: "HEAD" });
    assert.equal(response.status, 200);
    assert.equal(await response.text(), "");
  }
});

test("joined replies that wait for their readers are not overwritten by other replies", async () => {
  const ELEMENTS = 15_000;
  const clients = await Promise.all(Array.from({ length: 3 }, () => RawClient.connect(service)));
  const CALLS = 100;
  for (const [index, client] of clients.entries()) {
    client.socket.pause();
    for (let call = 0; call < CALLS; call++) {
      const body = sgdBody(ELEMENTS, index * CALLS + call);
      client.head("/v1/step", { "Content-Length": body.length });
      client.send(body);
    }
  }
  await service.call("optimizer.list", {});
  for (const client of clients) client.socket.resume();
  await Promise.all(
    clients.map(async (client, index) => {
      for (let call = 0; call < CALLS; call++) {
        const reply = await client.reply();
        assert.equal(reply?.status, 200);
        requireResult(reply?.body ?? Buffer.alloc(0), ELEMENTS, index * CALLS + call - 1);
      }
      client[Symbol.dispose]();
    }),
  );
});
