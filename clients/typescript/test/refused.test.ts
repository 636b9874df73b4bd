/** Tests a server that restarts, a missing server, and connections that send or read one byte at a time. */
import assert from "node:assert/strict";
import { once } from "node:events";
import { type AddressInfo, createServer, type Socket } from "node:net";
import { after, before, suite, test } from "node:test";
import { setTimeout } from "node:timers/promises";
import { encode } from "@msgpack/msgpack";
import { TestService } from "../../../test/support/service.ts";
import { Client, type ClientOptions, ShardedClient, type Tensors, TransportError } from "../src/index.ts";
import { FakeServer, MSGPACK } from "./_fake-server.ts";

const optimizer = { name: "adamw", lr: 0.1 } as const;
const params: Tensors = { a: { shape: [2], data: Float32Array.of(1, 2) }, b: { shape: [1], data: Float32Array.of(3) } };
const step = { optimizer, params, grads: params };

const unusedPort = async (): Promise<number> => {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, "close");
  return port;
};

const kinds: readonly (readonly [string, (url: string, options?: ClientOptions) => Pick<Client, "step">])[] = [
  ["Client", (url, options) => new Client(url, options)],
  ["ShardedClient", (url, options) => new ShardedClient([url, url], { ...options, requestBytes: 1 }) as unknown as Client],
];

suite("refused connections", () => {
  let service: TestService;
  before(async () => {
    service = await TestService.start();
  });
  after(() => service[Symbol.asyncDispose]());

  for (const [kind, make] of kinds) {
    test(`${kind}: the client waits for a restarting server, and warns`, async () => {
      const port = await unusedPort();
      const warnings: string[] = [];
      const starting = setTimeout(1500).then(() => TestService.start({ STEPD_PORT: String(port) }));
      const stepping = make(`http://127.0.0.1:${port}`, { warn: (sentence) => warnings.push(sentence) }).step(step);
      await using _ = await starting;
      const { state } = await stepping;
      assert.deepEqual(state.bytes, (await new Client(service.url).step(step)).state.bytes);
      assert.match(warnings[0] ?? "", /refuses connections; trying again for 30 s$/);
    });

    test(`${kind}: the client gives up an address where nothing listens`, async () => {
      const url = `http://127.0.0.1:${await unusedPort()}`;
      const quiet = { warn: () => {} };
      for (const options of [{ retries: 0 }, { refusedMs: 0 }, { refusedMs: 200 }])
        await assert.rejects(make(url, { ...quiet, ...options }).step(step), (error) => error instanceof TransportError && error.isRefused);
      const start = performance.now();
      await assert.rejects(make(url, quiet).step(step, { signal: AbortSignal.timeout(300) }), { name: "TimeoutError" });
      assert.ok(performance.now() - start < 20_000);
    });
  }

  test("the default warning goes to the console", async (context) => {
    const warn = context.mock.method(console, "warn", () => {});
    await assert.rejects(new Client(`http://127.0.0.1:${await unusedPort()}`, { refusedMs: 100 }).info(), TransportError);
    assert.equal(warn.mock.callCount(), 1);
  });

  test("a lost connection is not a refused connection", async () => {
    await using fake = await FakeServer.start((req) => void req.socket.destroy());
    await assert.rejects(new Client(fake.url, { retries: 1 }).info(), (error) => error instanceof TransportError && !error.isRefused);
    assert.equal(fake.calls, 2);
  });
});

suite("slow bytes", () => {
  const drips: readonly (readonly [string, string, Uint8Array])[] = [
    ["JSON", "application/json", new TextEncoder().encode(JSON.stringify({ optimizers: ["x".repeat(200)] }))],
    ["MessagePack", MSGPACK, encode({ optimizers: ["x".repeat(200)] })],
  ];
  for (const [what, type, body] of drips) {
    test(`a reply in ${what} times out`, async () => {
      await using fake = await FakeServer.start(async (_, res) => {
        res.writeHead(200, { "Content-Type": type, "Content-Length": body.length });
        for (let at = 0; at < body.length && !res.destroyed; at++) {
          res.write(body.subarray(at, at + 1));
          await setTimeout(50);
        }
        res.end();
      });
      await assert.rejects(new Client(fake.url, { timeoutMs: 500, retries: 0 }).optimizers(), { name: "TransportError", message: /within 500 ms/ });
    });
  }

  test("an upload that stalls times out", async () => {
    const sockets: Socket[] = [];
    const server = createServer((socket) => void sockets.push(socket.pause())).listen(0, "127.0.0.1");
    await once(server, "listening");
    try {
      const large = { w: { shape: [2 ** 23], data: new Float32Array(2 ** 23) } };
      const client = new Client(`http://127.0.0.1:${(server.address() as AddressInfo).port}`, { timeoutMs: 500, retries: 0 });
      await assert.rejects(client.step({ optimizer, params: large, grads: large }), { name: "TransportError", message: /within 500 ms/ });
    } finally {
      for (const socket of sockets) socket.destroy();
      server.close();
    }
  });
});
