/**
 * Tests that finished calls do not stay in memory, even at thousands of refusals per second. The service runs in this process,
 * which can count its objects.
 */
import assert from "node:assert/strict";
import { once } from "node:events";
import http from "node:http";
import net from "node:net";
import { test } from "node:test";
import v8 from "node:v8";
import { readConfig } from "../../src/config.ts";
import { Service } from "../../src/service.ts";

const CALLS = 300;

for (const [how, headers] of [
  ["asks before it sends its body", "Expect: 100-continue\r\n"],
  ["goes away in the middle of its body", ""],
] as const) {
  test(`a refused call whose caller ${how} is not retained`, async () => {
    await using service = await Service.start(readConfig({ STEPD_PORT: "0", STEPD_ARENA_MIB: "8", STEPD_WORKERS: "1", STEPD_LOG_LEVEL: "silent" }));
    const refuse = async (): Promise<void> => {
      const socket = net.connect(Number(new URL(service.address).port), "127.0.0.1").on("error", () => {});
      socket.write(`POST /v1/step HTTP/1.1\r\nHost: x\r\nContent-Type: application/vnd.msgpack\r\nContent-Length: 9000000\r\n${headers}\r\n`);
      const [reply] = (await once(socket, "data")) as [Buffer];
      assert.match(reply.toString(), /^HTTP\/1\.1 413 /);
      socket.destroy();
    };
    for (let call = 0; call < CALLS; call++) await refuse();
    const deadline = performance.now() + 10_000;
    // queryObjects collects garbage before it counts.
    const kept = (): number => v8.queryObjects(http.IncomingMessage, { format: "count" }) as number;
    while (kept() > CALLS / 10 && performance.now() < deadline) await new Promise((resolve) => setTimeout(resolve, 50));
    assert.ok(kept() <= CALLS / 10, `${kept()} of ${CALLS} requests are kept`);
  });
}
