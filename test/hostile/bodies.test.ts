/** Tests bodies that are truncated, too large or malformed, or contradict their headers. Tests unknown addresses too. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import http from "node:http";
import net from "node:net";
import { test } from "node:test";
import { gzipSync, zstdCompressSync } from "node:zlib";
import { JSON_TYPE, MSGPACK, pack, readReply, unpack } from "../support/service.ts";
import { CALLER_TEXT, checkNothingIsLeft, ERRORS, type Expected, requireNoInternals, requireRefusal, service, step, toJson, useService } from "./_harness.ts";

useService();

const bytes = (...items: readonly (number | string | Uint8Array)[]): Buffer =>
  Buffer.concat(items.map((item) => (typeof item === "number" ? Buffer.from([item]) : Buffer.from(item as string))));
const u32 = (value: number): Buffer => {
  const buffer = Buffer.alloc(4);
  buffer.writeUInt32BE(value);
  return buffer;
};

const call = { jsonrpc: "2.0", id: 1, method: "optimizer.step", params: step() };
const jsonCall = toJson(call);
const packedCall = pack(call);
/** The start of a MessagePack call, up to its parameters. */
const packedStart = bytes(0x84, 0xa7, "jsonrpc", 0xa3, "2.0", 0xa2, "id", 1, 0xa6, "method", 0xae, "optimizer.step", 0xa6, "params");

const malformed = (body: string | Uint8Array, pattern: RegExp): readonly [string | Uint8Array, RegExp] => [body, pattern];

/** The server refuses these bodies with PARSE_ERROR. Its HTTP status is 200 on /rpc, as JSON-RPC demands, and 400 on REST. */
const NOT_JSON: Readonly<Record<string, readonly [string | Uint8Array, RegExp]>> = {
  "an empty body": malformed("", /not valid JSON/),
  "a JSON body that is cut off": malformed(jsonCall.slice(0, -20), /not valid JSON/),
  "a JSON body with bytes after it": malformed(`${jsonCall}x`, /not valid JSON/),
  "two JSON values": malformed(`${jsonCall}\n${jsonCall}`, /not valid JSON/),
  "MessagePack sent as JSON": malformed(packedCall, /not UTF-8/),
  "JSON that is not UTF-8": malformed(bytes('{"jsonrpc":"2.0","id":"', 0xe9, '"}'), /not UTF-8/),
  "JSON in UTF-16": malformed(Buffer.from(`\ufeff${jsonCall}`, "utf16le"), /not UTF-8/),
  "JSON with a byte order mark": malformed(`\ufeff${jsonCall}`, /not valid JSON/),
  "JSON with NaN": malformed('{"lr":NaN}', /not valid JSON/),
  "JSON with a comma too many": malformed('{"a":1,}', /not valid JSON/),
  "JSON with a comment": malformed("{} // step", /not valid JSON/),
  "JSON with single quotes": malformed("{'a':1}", /not valid JSON/),
  "JSON arrays 100,000 deep": malformed("[".repeat(1e5) + "]".repeat(1e5), /nesting deeper than 64/),
  "JSON objects 100,000 deep": malformed(`${'{"a":'.repeat(1e5)}1${"}".repeat(1e5)}`, /nesting deeper than 64/),
  "JSON with a key twice": malformed('{"jsonrpc":"2.0","id":1,"id":2}', /the key "id" stands twice/),
  "JSON with a tensor twice": malformed(`{"params":{"${CALLER_TEXT}":1,"${CALLER_TEXT}":1}}`, /stands twice/),
  "JSON with the key __proto__": malformed('{"__proto__":{"name":"adam"}}', /"__proto__" is not allowed/),
  "JSON with the key __proto__ deep inside": malformed('{"params":{"optimizer":{"__proto__":{}}}}', /"__proto__" is not allowed/),
  "a bomb of JSON objects": malformed(`[${"{},".repeat(6e6)}{}]`, /more than 4194304 values/),
  "a string of escaped quotes without an end": malformed(`"${'\\"'.repeat(1e6)}`, /not valid JSON/),
};

const NOT_MSGPACK: Readonly<Record<string, readonly [string | Uint8Array, RegExp]>> = {
  "an empty MessagePack body": malformed("", /ends early/),
  "a MessagePack body that is cut off": malformed(packedCall.subarray(0, -20), /ends early/),
  "a MessagePack body with bytes after it": malformed(bytes(packedCall, 0), /1 bytes after the value/),
  "JSON sent as MessagePack": malformed(jsonCall, /bytes after the value/),
  "the byte 0xc1": malformed(bytes(packedStart, 0xc1), /0xc1/),
  "an array32 of 2^32-1 values": malformed(bytes(packedStart, 0xdd, u32(2 ** 32 - 1)), /ends early/),
  "a map32 of 2^32-1 pairs": malformed(bytes(packedStart, 0xdf, u32(2 ** 32 - 1)), /ends early/),
  "a bin32 of 2^32-1 bytes": malformed(bytes(packedStart, 0xc6, u32(2 ** 32 - 1)), /ends early/),
  "a str32 of 2^32-1 bytes": malformed(bytes(packedStart, 0xdb, u32(2 ** 32 - 1)), /ends early/),
  "an array32 of 20 million nils": malformed(bytes(packedStart, 0xdd, u32(2e7), Buffer.alloc(2e7, 0xc0)), /more than 4194304 values/),
  "a bomb of empty maps": malformed(bytes(packedStart, 0xdd, u32(2e7), Buffer.alloc(2e7, 0x80)), /more than 4194304 values/),
  "an extension type": malformed(bytes(packedStart, 0xc7, 4, 1, "abcd"), /extension type/),
  "a timestamp": malformed(bytes(packedStart, 0xd6, 0xff, u32(0)), /extension type/),
  "msgpackr's record definition": malformed(bytes(packedStart, 0xd4, 0x72, 0x40, 0x91, 0xa1, "a"), /extension type/),
  "MessagePack arrays 100,000 deep": malformed(bytes(packedStart, Buffer.alloc(1e5, 0x91), 0xc0), /nesting deeper than 64/),
  "MessagePack maps 100,000 deep": malformed(bytes(packedStart, Buffer.alloc(3e5, bytes(0x81, 0xa1, "a")), 0xc0), /nesting deeper than 64/),
  "a MessagePack map with a key twice": malformed(bytes(0x82, 0xa2, "id", 1, 0xa2, "id", 2), /the key "id" for the second time/),
  "a MessagePack map with the key __proto__": malformed(bytes(packedStart, 0x81, 0xa9, "__proto__", 0x80), /"__proto__"/),
  "a MessagePack key that is a number": malformed(bytes(packedStart, 0x81, 1, 1), /not a string/),
  "a MessagePack key that is nil": malformed(bytes(packedStart, 0x81, 0xc0, 1), /not a string/),
  "a MessagePack string that is not UTF-8": malformed(bytes(packedStart, 0x81, 0xa2, 0xc3, 0x28, 1), /not UTF-8/),
};

for (const [type, cases] of [
  [JSON_TYPE, NOT_JSON],
  [MSGPACK, NOT_MSGPACK],
] as const) {
  for (const [name, [body, pattern]] of Object.entries(cases)) {
    test(`refuses ${name}`, async () => {
      const found = await requireRefusal(await service().post("/rpc", body, type), { error: "PARSE_ERROR", pattern }, 200);
      const rest = await requireRefusal(await service().post("/v1/step", body, type), { error: "PARSE_ERROR", pattern }, 400);
      assert.equal(found.message, rest.message);
    });
  }
}

interface HeaderCase extends Expected {
  readonly body?: string | Uint8Array;
  readonly type?: string;
  readonly headers?: Readonly<Record<string, string>>;
}

const unsupported = (field: string, rest: Omit<HeaderCase, "error" | "field">): HeaderCase => ({ error: "UNSUPPORTED_MEDIA_TYPE", field, ...rest });
const digest = (data: string | Uint8Array): string => createHash("sha256").update(data).digest("base64");
const bomb = Buffer.from(`"${"a".repeat(17 * 2 ** 20)}"`);

/** A refusal because of a header has the same status on /rpc and on REST. */
const HEADER_CASES: Readonly<Record<string, HeaderCase>> = {
  "an invalid content type": unsupported("Content-Type", { type: "json", pattern: /application\/json, application\/vnd.msgpack/ }),
  "text/plain": unsupported("Content-Type", { type: "text/plain", pattern: /found text\/plain/ }),
  "a form": unsupported("Content-Type", { type: "application/x-www-form-urlencoded" }),
  "an octet stream": unsupported("Content-Type", { type: "application/octet-stream" }),
  "JSON with another suffix": unsupported("Content-Type", { type: "application/problem+json" }),
  "JSON in Latin-1": unsupported("Content-Type", { type: "application/json; charset=iso-8859-1", pattern: /charset utf-8, found iso-8859-1/ }),
  "JSON in UTF-16 by its header": unsupported("Content-Type", { type: 'application/json;charset="UTF-16"', pattern: /found utf-16/ }),
  "an unknown content encoding": unsupported("Content-Encoding", { headers: { "Content-Encoding": "br" }, pattern: /gzip or zstd with JSON, found br/ }),
  "two content encodings": unsupported("Content-Encoding", { headers: { "Content-Encoding": "gzip, gzip" } }),
  "a content encoding called constructor": unsupported("Content-Encoding", { headers: { "Content-Encoding": "constructor" } }),
  "gzip with MessagePack": unsupported("Content-Encoding", { type: MSGPACK, body: gzipSync(packedCall), headers: { "Content-Encoding": "gzip" } }),
  "an Accept that nothing meets": { error: "NOT_ACCEPTABLE", field: "Accept", headers: { Accept: "text/html, image/*" }, pattern: /found text\/html/ },
  "an Accept that refuses all": { error: "NOT_ACCEPTABLE", field: "Accept", headers: { Accept: "*/*;q=0" } },
  "a wrong digest": {
    error: "DIGEST_MISMATCH",
    field: "Content-Digest",
    headers: { "Content-Digest": `sha-256=:${digest("other")}:` },
    pattern: new RegExp(digest(jsonCall).replaceAll(/[+/]/g, "\\$&")),
  },
  "a digest of another length": { error: "DIGEST_MISMATCH", field: "Content-Digest", headers: { "Content-Digest": "sha-256=:AAAA:" } },
  "an empty digest": { error: "DIGEST_MISMATCH", field: "Content-Digest", headers: { "Content-Digest": "sha-256=::" } },
  "a digest that is not in colons": { error: "DIGEST_MISMATCH", field: "Content-Digest", headers: { "Content-Digest": `sha-256=${digest(jsonCall)}` } },
  "a wrong digest behind one that is not known": {
    error: "DIGEST_MISMATCH",
    field: "Content-Digest",
    headers: { "Content-Digest": `md5=:AAAA:, sha-256=:${digest("other")}:` },
  },
  "a digest of the inflated body": {
    error: "DIGEST_MISMATCH",
    field: "Content-Digest",
    body: gzipSync(jsonCall),
    headers: { "Content-Encoding": "gzip", "Content-Digest": `sha-256=:${digest(jsonCall)}:` },
  },
  "what is not gzip": { error: "PARSE_ERROR", field: "the body", headers: { "Content-Encoding": "gzip" }, pattern: /gzip data/ },
  "gzip that is cut off": { error: "PARSE_ERROR", field: "the body", body: gzipSync(jsonCall).subarray(0, -10), headers: { "Content-Encoding": "gzip" } },
  "what is not zstd": { error: "PARSE_ERROR", field: "the body", headers: { "Content-Encoding": "zstd" }, pattern: /zstd data/ },
  "zstd that is cut off": {
    error: "PARSE_ERROR",
    field: "the body",
    body: zstdCompressSync(jsonCall).subarray(0, -10),
    headers: { "Content-Encoding": "zstd" },
  },
  "a gzip bomb": {
    error: "PAYLOAD_TOO_LARGE",
    field: "the body",
    body: gzipSync(bomb),
    headers: { "Content-Encoding": "gzip" },
    pattern: /16777216 bytes after inflation/,
  },
  "a zstd bomb": {
    error: "PAYLOAD_TOO_LARGE",
    field: "the body",
    body: zstdCompressSync(bomb),
    headers: { "Content-Encoding": "zstd" },
    pattern: /16777216 bytes after inflation/,
  },
  "a compressed body that is too large as it is": {
    error: "PAYLOAD_TOO_LARGE",
    field: "Content-Length",
    body: gzipSync(Buffer.from(Array.from({ length: 2 ** 21 }, (_, i) => (i * i * 2654435761) >>> 23))),
    headers: { "Content-Encoding": "gzip" },
    pattern: /at most 1048576 bytes of gzip/,
  },
  "a body larger than the arena": { error: "PAYLOAD_TOO_LARGE", type: MSGPACK, body: Buffer.alloc(65 * 2 ** 20), pattern: /needs 68157440 bytes at once/ },
};

for (const [name, { body = jsonCall, type = JSON_TYPE, headers = {}, ...expected }] of Object.entries(HEADER_CASES)) {
  test(`refuses ${name}`, async () => {
    const status = ERRORS[expected.error][1];
    const found = await requireRefusal(await service().post("/rpc", body, type, headers), expected, status);
    const rest = await requireRefusal(await service().post("/v1/step", body, type, headers), expected, status);
    assert.equal(found.message, rest.message);
  });
}

test("refuses a body without a content type", async () => {
  const response = await fetch(`${service().url}/rpc`, { method: "POST", body: Buffer.from(jsonCall) });
  await requireRefusal(response, { error: "UNSUPPORTED_MEDIA_TYPE", field: "Content-Type", pattern: /found none/ }, 415);
});

test("a step whose own tensors cannot fit into the arena gets PAYLOAD_TOO_LARGE, so that no client retries it", async () => {
  const data = new Float32Array(5 * 2 ** 20);
  const blob = bytes(u32(0), u32(0), "");
  const header = Buffer.from(`{"w":{"dtype":"F32","shape":[${data.length}],"data_offsets":[0,${data.byteLength}]}}`);
  blob.writeBigUInt64LE(BigInt(header.length));
  const tensors = Buffer.concat([blob, header, Buffer.from(data.buffer)]);
  const response = await service().post("/v1/step", pack({ optimizer: { name: "adam" }, params: tensors, grads: tensors }), MSGPACK);
  await requireRefusal(response, { error: "PAYLOAD_TOO_LARGE", pattern: /arena holds/ }, 413);
});

/** Sends bytes on a raw connection, and returns everything received until the connection closes. */
const exchangeRaw = (text: string | Uint8Array): Promise<string> =>
  new Promise((resolve, reject) => {
    const { hostname, port } = new URL(service().url);
    let reply = "";
    const socket = net.connect(Number(port), hostname, () => socket.end(text));
    socket.on("data", (chunk) => {
      reply += chunk.toString("latin1");
    });
    socket.on("error", reject);
    socket.on("close", () => resolve(reply));
  });

const RAW: Readonly<Record<string, readonly [string, RegExp]>> = {
  "a body shorter than its length": [`POST /rpc HTTP/1.1\r\nHost: x\r\nContent-Type: ${JSON_TYPE}\r\nContent-Length: 100\r\n\r\n{}`, /^$|^HTTP\/1.1 400 /],
  "a length that is not a number": [`POST /rpc HTTP/1.1\r\nHost: x\r\nContent-Type: ${JSON_TYPE}\r\nContent-Length: ten\r\n\r\n{}`, /^HTTP\/1.1 400 /],
  "a length below zero": [`POST /rpc HTTP/1.1\r\nHost: x\r\nContent-Type: ${JSON_TYPE}\r\nContent-Length: -1\r\n\r\n{}`, /^HTTP\/1.1 400 /],
  "a length of 2^64": [`POST /rpc HTTP/1.1\r\nHost: x\r\nContent-Type: ${JSON_TYPE}\r\nContent-Length: 18446744073709551616\r\n\r\n{}`, /^HTTP\/1.1 400 /],
  "a length of 2^53": [
    `POST /rpc HTTP/1.1\r\nHost: x\r\nContent-Type: ${MSGPACK}\r\nContent-Length: 9007199254740992\r\nExpect: 100-continue\r\n\r\n`,
    /^HTTP\/1.1 413 /,
  ],
  "two lengths": [`POST /rpc HTTP/1.1\r\nHost: x\r\nContent-Type: ${JSON_TYPE}\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}`, /^HTTP\/1.1 400 /],
  "a length beside chunks": [
    `POST /rpc HTTP/1.1\r\nHost: x\r\nContent-Type: ${JSON_TYPE}\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n`,
    /^HTTP\/1.1 400 /,
  ],
  "a chunk whose size is no number": [
    `POST /rpc HTTP/1.1\r\nHost: x\r\nContent-Type: ${JSON_TYPE}\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n`,
    /^$|^HTTP\/1.1 400 /,
  ],
  "headers over the limit": [`GET /v1 HTTP/1.1\r\nHost: x\r\nX-Long: ${"a".repeat(20_000)}\r\n\r\n`, /^HTTP\/1.1 431 /],
  "what is not HTTP": ["\x16\x03\x01\x02\x00", /^$|^HTTP\/1.1 400 /],
  "an expectation that is not 100-continue": [
    `POST /rpc HTTP/1.1\r\nHost: x\r\nContent-Type: ${JSON_TYPE}\r\nContent-Length: 2\r\nExpect: 200-ok\r\n\r\n{}`,
    /^HTTP\/1.1 417 /,
  ],
};

for (const [name, [text, status]] of Object.entries(RAW)) {
  test(`refuses ${name}`, async () => {
    const reply = await exchangeRaw(text);
    assert.match(reply, status);
    requireNoInternals(reply);
  });
}

/** Sends a method and a path unchanged. fetch would normalize both. */
const requestPath = (method: string, path: string): Promise<{ readonly status: number; readonly headers: http.IncomingHttpHeaders; readonly body: string }> =>
  new Promise((resolve, reject) => {
    const request = http.request(service().url, { method, path }, (response) => {
      let body = "";
      response.on("data", (chunk) => {
        body += chunk;
      });
      response.on("end", () => resolve({ status: response.statusCode ?? 0, headers: response.headers, body }));
    });
    request.on("error", reject).end();
  });

for (const [method, path, allow] of [
  ["GET", "/rpc", "POST"],
  ["PUT", "/rpc", "POST"],
  ["DELETE", "/v1/step", "POST"],
  ["GET", "/v1/step", "POST"],
  ["PATCH", "/v1/init", "POST"],
  ["POST", "/v1", "GET, HEAD"],
  ["POST", "/v1/optimizers", "GET, HEAD"],
  ["DELETE", "/v1/optimizers/adam", "GET, HEAD"],
  ["POST", "/health/live", "GET, HEAD"],
  ["PUT", "/metrics", "GET, HEAD"],
  ["POST", "/openrpc.json", "GET, HEAD"],
] as const) {
  test(`${method} ${path} gets METHOD_NOT_ALLOWED`, async () => {
    const { status, headers, body } = await requestPath(method, path);
    const problem = JSON.parse(body) as { code: number; name: string; field: string; detail: string; request_id: string };
    assert.deepEqual([status, headers.allow, problem.name, problem.code, problem.field], [405, allow, "METHOD_NOT_ALLOWED", -32027, path]);
    assert.ok(problem.detail.includes(method));
    assert.equal(problem.request_id, headers["x-request-id"]);
  });
}

for (const path of [
  "/v2",
  "/v1/nothing",
  `/${CALLER_TEXT}`,
  "/v1/optimizers/adam/more",
  "/rpc/x",
  "/../../etc/passwd",
  "/v1//step",
  "/%2e%2e/",
  "/v1/optimizers/%2e%2e%2fstep/x",
]) {
  test(`${path} gets NOT_FOUND`, async () => {
    const { status, body } = await requestPath("GET", path);
    const problem = JSON.parse(body) as { name: string; code: number };
    requireNoInternals(body);
    assert.deepEqual([status, problem.name, problem.code], [404, "NOT_FOUND", -32026]);
  });
}

for (const path of ["/v1/optimizers/%", "/v1/optimizers/%zz", "/v1/optimizers/%c3%28", "/v1/optimizers/%ff"]) {
  test(`the invalid percent escape in ${path} gets INVALID_REQUEST`, async () => {
    const { status, headers, body } = await requestPath("GET", path);
    const problem = JSON.parse(body) as { name: string; code: number; request_id: string };
    requireNoInternals(body);
    assert.deepEqual([status, problem.name, problem.code], [400, "INVALID_REQUEST", -32600]);
    assert.equal(problem.request_id, headers["x-request-id"]);
  });
}

for (const name of ["adamv", "ADAM", CALLER_TEXT, "__proto__", "constructor", "%00", "adam%2f", "é"]) {
  test(`the unknown optimizer /v1/optimizers/${name} gets NOT_FOUND`, async () => {
    const { status, body } = await requestPath("GET", `/v1/optimizers/${encodeURI(name).replaceAll("%25", "%")}`);
    const problem = JSON.parse(body) as { name: string; field: string };
    assert.deepEqual([status, problem.name, problem.field], [404, "NOT_FOUND", "/name"]);
  });
}

test("an invalid request id is replaced", async () => {
  for (const id of ["a b", "x".repeat(129), '"', ""]) {
    const response = await service().post("/rpc", "{}", JSON_TYPE, { "X-Request-Id": id });
    assert.match(response.headers.get("x-request-id") ?? "", /^[0-9a-f-]{36}$/);
    const { error } = (await readReply(response)) as { error: { data: { request_id: string } } };
    assert.equal(error.data.request_id, response.headers.get("x-request-id"));
  }
});

test("the valid bodies behind the refused ones are accepted", async () => {
  for (const [body, type, headers] of [
    [jsonCall, JSON_TYPE, {}],
    [packedCall, MSGPACK, {}],
    [gzipSync(jsonCall), JSON_TYPE, { "Content-Encoding": "gzip" }],
    [zstdCompressSync(jsonCall), JSON_TYPE, { "Content-Encoding": "zstd" }],
    [jsonCall, JSON_TYPE, { "Content-Digest": `md5=:AAAA:, sha-256=:${digest(jsonCall)}:` }],
    [gzipSync(jsonCall), "Application/JSON; Charset=UTF-8", { "Content-Encoding": "gzip", "Content-Digest": `sha-256=:${digest(gzipSync(jsonCall))}:` }],
  ] as const) {
    const reply = (await readReply(await service().post("/rpc", body, type, headers))) as { result?: unknown };
    assert.ok(reply.result, JSON.stringify(reply));
  }
  assert.deepEqual(Object.keys(unpack(packedCall) as object), ["jsonrpc", "id", "method", "params"]);
});

checkNothingIsLeft();
