/**
 * Tests that two services in one process share no cache, rate or counter, and that no module of src keeps state between calls.
 */
import assert from "node:assert/strict";
import { globSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { readConfig } from "../../src/config.ts";
import { Service } from "../../src/service.ts";
import { gradsAt, SMALL, startParams } from "../support/run.ts";
import { MSGPACK, pack, readReply } from "../support/service.ts";
import { writeTensors } from "../support/tensors.ts";
import { root } from "../support/tree.ts";

const settings = { STEPD_PORT: "0", STEPD_ARENA_MIB: "32", STEPD_WORKERS: "1", STEPD_LOG_LEVEL: "silent", STEPD_CACHE_MIB: "8" };

let used: Service;
let unused: Service;
before(async () => {
  used = await Service.start(readConfig(settings));
  unused = await Service.start(readConfig(settings));
});
after(async () => {
  await used[Symbol.asyncDispose]();
  await unused[Symbol.asyncDispose]();
});

const params = writeTensors(startParams(SMALL));
const grads = writeTensors(gradsAt(SMALL, 0));

const post = async ({ address }: Service, params: unknown, path = "/v1/step"): Promise<{ status: number; value: unknown }> => {
  const response = await fetch(`${address}${path}`, { method: "POST", headers: { "Content-Type": MSGPACK }, body: pack(params) as BodyInit });
  return { status: response.status, value: await readReply(response) };
};

/** Returns the series that count calls. Both services share the gauges of the process, so these are omitted. */
const counted = async (service: Service): Promise<readonly string[]> => {
  const text = await (await fetch(`${service.address}/metrics`)).text();
  return text.split("\n").filter((line) => /^stepd_(requests|refused|phase|bytes|steps|cache|non_finite|in_flight)/.test(line));
};

test("calls to one service change neither the counters nor the answers of the other", async () => {
  const before = await counted(unused);
  const kept: { handle: string }[] = [];
  for (let round = 0; round < 3; round++) {
    const { status, value } = await post(used, { optimizer: { name: "adamw" }, params, grads, reply: { cache: true } });
    assert.equal(status, 200);
    kept.push((value as { cached: { state: { handle: string } } }).cached.state);
  }
  assert.equal((await post(used, { optimizer: { name: "adam" } })).status, 400);
  assert.notDeepEqual(await counted(used), before);
  assert.deepEqual(await counted(unused), before);
  const next = { optimizer: { name: "adamw" }, params, grads, state: kept[0] };
  assert.equal((await post(used, next)).status, 200);
  const { status, value } = await post(unused, next);
  assert.equal(status, 404);
  assert.equal((value as { name: string }).name, "BLOB_MISSING");
});

test("no module of src has a variable or an empty container that calls could fill", () => {
  const files = globSync("src/**/*.ts", { cwd: root }).filter((file) => !file.startsWith("src/kernels/"));
  assert.ok(files.length > 100);
  const mutable = /^(?:export )?(?:let|var) |^(?:export )?const [^=]*= (?:new (?:Map|Set|WeakMap|WeakSet|Array|LRUCache)\b[^(]*\((?:\)|\{)|\[\];|\{\};)/;
  const found = files.flatMap((file) =>
    readFileSync(join(root, file), "utf8")
      .split("\n")
      .filter((line) => mutable.test(line))
      .map((line) => `${file}: ${line}`),
  );
  assert.deepEqual(found, []);
});
