/** Tests the memory taken by connections that send much and read nothing, on a new server. */
import assert from "node:assert/strict";
import net from "node:net";
import { test } from "node:test";
import { serveSmall, untilEmpty } from "../http/_client.ts";
import { MSGPACK, type TestService } from "../support/service.ts";
import { memoryLimitMib, peakMib } from "./_memory.ts";

const LIMITS = { STEPD_ARENA_MIB: "64", STEPD_MAX_JSON_MIB: "8" };

const CONNECTIONS = 300;

/** The server closes a connection with 16 pipelined requests. The test sends one request less. */
const PIPELINED = 15;

/** Opens connections that send a text and read nothing. Waits until each connection has sent everything or is closed. */
const floodWith = async ({ url }: TestService, connections: number, text: string, use: () => Promise<void>): Promise<void> => {
  const { port, hostname } = new URL(url);
  const sockets = Array.from({ length: connections }, () => net.connect(Number(port), hostname));
  try {
    await Promise.all(
      sockets.map((socket) => {
        socket.pause();
        socket.on("error", () => {});
        return new Promise<void>((resolve) => {
          socket.once("close", () => resolve());
          socket.write(text, () => resolve());
        });
      }),
    );
    await use();
  } finally {
    for (const socket of sockets) socket.destroy();
  }
};

for (const [what, text] of [
  ["requests of pages", "GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n".repeat(PIPELINED)],
  ["requests of metrics", "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(PIPELINED)],
  ["calls", `POST /v1/step HTTP/1.1\r\nHost: x\r\nContent-Type: ${MSGPACK}\r\nContent-Length: 1\r\n\r\n\x01`.repeat(PIPELINED)],
  ["unfinished heads", `POST /v1/step HTTP/1.1\r\nHost: x\r\nX-A: ${"a".repeat(15_000)}`],
] as const) {
  test(`${CONNECTIONS} connections that send ${what} and read nothing stay within the memory limit`, async (t) => {
    await using service = await serveSmall(LIMITS);
    await floodWith(service, CONNECTIONS, text, async () => {
      assert.equal((await fetch(`${service.url}/health/live`)).status, 200, "the others go on");
      const [peak, most] = [peakMib(service), memoryLimitMib(LIMITS)];
      t.diagnostic(`${peak.toFixed(0)} of ${most.toFixed(0)} MiB`);
      assert.ok(peak < most, `${peak} MiB of ${most}`);
    });
    await untilEmpty(service);
  });
}
