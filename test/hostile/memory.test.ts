/**
 * Tests the memory taken by hostile calls. The resident memory of a real server stays under 1.5 times the sum of its settings
 * (docs/operations.md, "Sizing"), and the server answers every call.
 */
import assert from "node:assert/strict";
import net from "node:net";
import { after, before, test } from "node:test";
import zlib from "node:zlib";
import { serveSmall, untilEmpty } from "../http/_client.ts";
import { JSON_TYPE, MSGPACK, pack, type TestService } from "../support/service.ts";
import { memoryLimitMib, peakMib } from "./_memory.ts";

const MIB = 2 ** 20;
const LIMITS = { STEPD_ARENA_MIB: "64", STEPD_MAX_JSON_MIB: "8" };
const MOST_MIB = memoryLimitMib(LIMITS);

let service: TestService;

before(async () => {
  service = await serveSmall(LIMITS);
});

after(() => service[Symbol.asyncDispose]());

interface Call {
  readonly path?: string;
  readonly type?: string;
  readonly headers?: string;
  readonly body: Uint8Array;
}

/** Sends a call on a separate connection. Returns the status of the answer, or the reason why there is no answer. */
const statusOf = ({ path = "/v1/step", type = JSON_TYPE, headers = "", body }: Call): Promise<string> =>
  new Promise((resolve) => {
    const { port, hostname } = new URL(service.url);
    const socket = net.connect(Number(port), hostname);
    let received = "";
    socket.on("data", (chunk) => {
      if (received.length < 100) received += chunk.toString("latin1", 0, 100);
    });
    socket.on("error", (error) => resolve(received.slice(9, 12) || error.message));
    socket.on("close", () => resolve(received.slice(9, 12) || "closed"));
    socket.write(`POST ${path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: ${type}\r\nContent-Length: ${body.length}\r\n${headers}\r\n`);
    socket.write(body);
  });

/** Adds a test: all parallel calls get one of the expected statuses, within the memory limit. */
const requireSurvival = (name: string, calls: number, statuses: RegExp, make: () => Call): void => {
  test(`${name}: the server stays within its memory limit`, async (t) => {
    const call = make();
    peakMib(service);
    const answers = await Promise.all(Array.from({ length: calls }, () => statusOf(call)));
    const peak = peakMib(service);
    const counts = Object.groupBy(answers, (answer) => answer);
    t.diagnostic(`${peak.toFixed(0)} of ${MOST_MIB.toFixed(0)} MiB; ${Object.entries(counts).map(([status, all]) => `${all?.length} x ${status}`)}`);
    for (const answer of answers) assert.match(answer, statuses);
    assert.ok(peak < MOST_MIB, `${peak} MiB of ${MOST_MIB}`);
    await untilEmpty(service);
  });
};

const u32 = (value: number): Buffer => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
};

const bin = (bytes: Uint8Array): Buffer => Buffer.concat([Buffer.of(0xc6), u32(bytes.length), bytes]);

/** Returns a safetensors file that consists of its header. */
const headerOnly = (text: string): Buffer => {
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  return Buffer.concat([length, Buffer.from(text)]);
};

const list = (count: number, item: (index: number) => string): string => Array.from({ length: count }, (_, index) => item(index)).join(",");

const inflated = Buffer.from(`{"a":"${" ".repeat(16 * MIB - 10)}"}`);
requireSurvival("250 calls of 16 MiB in 546 bytes of zstd", 250, /400|413|429/, () => ({
  headers: "Content-Encoding: zstd\r\n",
  body: zlib.zstdCompressSync(inflated),
}));
requireSurvival("60 calls of 7 MiB in a few bytes of gzip", 60, /400|429/, () => ({
  headers: "Content-Encoding: gzip\r\n",
  body: zlib.gzipSync(inflated.subarray(0, 7 * MIB)),
}));
requireSurvival("zstd that asks for a window of 128 MiB", 100, /400/, () => ({
  headers: "Content-Encoding: zstd\r\n",
  // The body is a zstd frame: a header (no content size, no single segment, a window of 2^27 bytes), then a block of one
  // repeated byte.
  body: Buffer.of(0x28, 0xb5, 0x2f, 0xfd, 0x00, (27 - 10) << 3, 0x03 | (0 << 3), 0xff, 0x0f, 0x20),
}));

requireSurvival("JSON of nothing but keys", 20, /400|413|429/, () => ({ body: Buffer.from(`{${list(450_000, (i) => `"k${i}":0`)}}`) }));
requireSurvival("JSON of empty arrays", 20, /400|413|429/, () => ({ body: Buffer.from(`[${list(900_000, () => "[]")}]`) }));
requireSurvival("JSON of empty arrays, beyond the limit of values", 20, /400|413|429/, () => ({ body: Buffer.from(`[${list(2_500_000, () => "[]")}]`) }));
requireSurvival("JSON of one long string that is no name of a method", 20, /200|429/, () => ({
  path: "/rpc",
  body: Buffer.from(`{"jsonrpc":"2.0","id":1,"method":"${"\u00e9".repeat(3 * MIB)}"}`),
}));
requireSurvival("JSON of plain numbers as tensors", 20, /200|413|429/, () => ({
  body: Buffer.from(`{"optimizer":{"name":"sgd"},"params":{"w":{"shape":[1000000],"values":[${list(1_000_000, () => "1")}]}},"grads":{}}`),
}));

requireSurvival("MessagePack of nothing but keys", 6, /400|413|429/, () => ({
  type: MSGPACK,
  body: Buffer.concat([
    Buffer.of(0xdf),
    u32(600_000),
    ...Array.from({ length: 600_000 }, (_, i) => Buffer.concat([Buffer.of(0xa5), Buffer.from(i.toString(36).padStart(5, "0")), Buffer.of(0)])),
  ]),
}));
requireSurvival("MessagePack of four million empty maps", 14, /400|413|429/, () => ({
  type: MSGPACK,
  body: Buffer.concat([Buffer.of(0xdd), u32(4_000_000), Buffer.alloc(4_000_000, 0x80)]),
}));
requireSurvival("MessagePack of a string of 50 MiB", 4, /400|413|429/, () => ({
  type: MSGPACK,
  body: Buffer.concat([Buffer.of(0x81, 0xa1, 0x61, 0xdb), u32(50 * MIB), Buffer.alloc(50 * MIB, "a")]),
}));

for (const [what, text] of [
  ["tensors", () => `{${list(60_000, (i) => `"t${i}":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}`)}}`],
  ["one nested value", () => `{"a":[${list(500_000, () => "[]")}]}`],
] as const) {
  requireSurvival(`headers of blobs that are nothing but ${what}`, 6, /200|413|422|429/, () => {
    const blob = headerOnly(text());
    const optimizer = pack({ name: "sgd" });
    return {
      type: MSGPACK,
      body: Buffer.concat([
        Buffer.of(0x83, 0xa9),
        Buffer.from("optimizer"),
        optimizer,
        Buffer.of(0xa6),
        Buffer.from("params"),
        bin(blob),
        Buffer.of(0xa5),
        Buffer.from("grads"),
        bin(headerOnly("{}")),
      ]),
    };
  });
}

requireSurvival("replies in JSON to tensors in MessagePack", 12, /413|429|200/, () => {
  const data = new Uint8Array(24 * MIB);
  const header = `{"w":{"dtype":"F32","shape":[${data.length / 4}],"data_offsets":[0,${data.length}]}}`;
  const params = Buffer.concat([headerOnly(header), data]);
  return {
    type: MSGPACK,
    headers: `Accept: ${JSON_TYPE}\r\n`,
    body: pack({ optimizer: { name: "sgd" }, params, grads: headerOnly("{}") }),
  };
});

for (const type of [JSON_TYPE, MSGPACK]) {
  const encode = (value: unknown): Buffer => (type === MSGPACK ? pack(value) : Buffer.from(JSON.stringify(value)));
  requireSurvival(`batches of 100 large replies, ${type}`, 24, /200|413|429/, () => ({
    path: "/rpc",
    type,
    body: encode(Array.from({ length: 100 }, (_, id) => ({ jsonrpc: "2.0", id, method: "rpc.discover" }))),
  }));
  requireSurvival(`batches of 100 schedules of 10,000 steps, ${type}`, 12, /200|413|429/, () => ({
    path: "/rpc",
    type,
    body: encode(
      Array.from({ length: 100 }, (_, id) => ({
        jsonrpc: "2.0",
        id,
        method: "schedule.evaluate",
        params: { schedule: { name: "cosine", T_max: 3 }, count: 10_000 },
      })),
    ),
  }));
}

test("after all hostile calls the process is alive and has logged no failure", () => {
  assert.equal(service.process.exitCode, null);
  assert.doesNotMatch(service.log.join(""), /INTERNAL_ERROR|a call failed|a request failed/);
});
