/** Tests the README's example over a Unix socket: undici's fetch with a dispatcher. */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import os from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { Agent, fetch as send } from "undici";
import { TestService } from "../../../test/support/service.ts";
import { Client, type Fetch, StepdError } from "../src/index.ts";

test("steps over a Unix socket", async () => {
  const folder = mkdtempSync(join(os.tmpdir(), "stepd-socket-"));
  const socketPath = join(folder, "stepd.sock");
  const dispatcher = new Agent({ connect: { socketPath } });
  // undici's types differ from the types of the global fetch, but its objects match.
  const overSocket: Fetch = (url, init) => send(url, { ...init, dispatcher } as never) as Promise<unknown> as Promise<Response>;
  try {
    await using _ = await TestService.start({ STEPD_SOCKET: socketPath });
    const client = new Client("http://stepd", { fetch: overSocket });
    const large = { w: { shape: [300_000], data: new Float32Array(300_000).fill(1) } };
    const { params, state } = await client.step({ optimizer: { name: "sgd", lr: 0.5 }, params: large, grads: large });
    assert.ok(params["w"]?.data.every((value) => value === 0.5));
    assert.equal(state.steps["w"], 1);
    await assert.rejects(client.describe("adamv"), StepdError);
    assert.equal(await client.isReady(), true);
  } finally {
    await dispatcher.close();
    rmSync(folder, { recursive: true, force: true });
  }
});
