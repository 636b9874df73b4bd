/**
 * Tests the memory taken by calls with many tensors, each kind of call on a new server. The memory stays within 1.5 times the
 * sum of the settings, and the server answers every call.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { serveSmall, untilEmpty } from "../http/_client.ts";
import { MSGPACK, pack } from "../support/service.ts";
import { memoryLimitMib, peakMib } from "./_memory.ts";

const LIMITS = { STEPD_ARENA_MIB: "64", STEPD_MAX_JSON_MIB: "8" };
const MOST_MIB = memoryLimitMib(LIMITS);
const CALLS = 30;

const mapOf = (count: number, tensor: unknown): Record<string, unknown> => Object.fromEntries(Array.from({ length: count }, (_, i) => [`t${i}`, tensor]));

const plainOf = (count: number): Record<string, unknown> => mapOf(count, { shape: [1], values: [1] });

const fileOf = (count: number): Buffer => {
  const entries = Array.from({ length: count }, (_, i) => `"t${i}":{"dtype":"F32","shape":[1],"data_offsets":[${4 * i},${4 * i + 4}]}`);
  const header = Buffer.from(`{${entries.join(",")}}`);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(header.length));
  return Buffer.concat([length, header, Buffer.alloc(4 * count, 1)]);
};

const optimizer = { name: "adamw" };
const CASES: Readonly<Record<string, readonly [path: string, make: (count: number) => unknown]>> = {
  plans: ["/v1/plan", (count) => ({ optimizer, tensors: mapOf(count, { shape: [1] }) })],
  "steps by name": ["/v1/step", (count) => ({ optimizer, params: plainOf(count), grads: plainOf(count), stats: "tensor" })],
  "steps in blobs": ["/v1/step", (count) => ({ optimizer, params: fileOf(count), grads: fileOf(count) })],
  "sums by name": ["/v1/norms", (count) => ({ grads: plainOf(count) })],
};

for (const [name, [path, make]] of Object.entries(CASES)) {
  for (const count of [15_000, 60_000]) {
    test(`${CALLS} parallel calls of ${name} with ${count} tensors stay within the memory limit`, async (t) => {
      await using service = await serveSmall(LIMITS);
      const body = new Uint8Array(pack(make(count)));
      const headers = { "Content-Type": MSGPACK };
      const statuses = await Promise.all(
        Array.from({ length: CALLS }, async () => {
          const response = await fetch(`${service.url}${path}`, { method: "POST", headers, body });
          await response.arrayBuffer();
          return response.status;
        }),
      );
      const peak = peakMib(service);
      t.diagnostic(`${peak.toFixed(0)} of ${MOST_MIB.toFixed(0)} MiB; ${[...new Set(statuses)]}`);
      for (const status of statuses) assert.ok([200, 413, 429].includes(status), String(status));
      assert.ok(peak < MOST_MIB, `${peak} MiB of ${MOST_MIB}`);
      await untilEmpty(service);
    });
  }
}
