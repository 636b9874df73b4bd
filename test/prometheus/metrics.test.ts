/**
 * Tests each metric of a real server with calls that change it: the right series changes by the right amount, and no other
 * series changes.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { readConfig } from "../../src/config.ts";
import { Service } from "../../src/service.ts";
import { RawClient, sgdBody, sgdParams } from "../http/_client.ts";
import { JSON_TYPE, MSGPACK, pack, TestService } from "../support/service.ts";
import { byteSeries, Changes, elementSeries, exposition, phaseSecondsSeries, phaseSeries, requestSeries } from "./_exposition.ts";
import { promtool } from "./_prometheus.ts";

const MIB = 2 ** 20;

const serve = (env: Readonly<Record<string, string>> = {}) => TestService.start({ STEPD_ARENA_MIB: "64", STEPD_WORKERS: "2", ...env });

/** The duration of a slow caller's request, in ms. */
const SLOW_MS = 400;

const rpc = (method: string, params: unknown, id?: number) => ({ jsonrpc: "2.0", method, params, ...(id !== undefined && { id }) });

const PHASES = ["receive", "decode", "queue", "compute", "encode", "send"];

/** Returns the expected changes of the counts of all phases: 1 for the phases in `names`, otherwise 0. */
const phaseChanges = (...names: readonly string[]) => Object.fromEntries(PHASES.map((name) => [phaseSeries(name), Number(names.includes(name))]));

const tensor = (dtype: string, values: readonly (number | string)[]) => ({ shape: [values.length], dtype, values });

test("promtool accepts the exposition, and every metric has help, type and unit", async () => {
  await using service = await serve();
  await service.call("optimizer.step", sgdParams(3, 5));
  const text = await exposition(service);
  const { status, output } = await promtool(["check", "metrics"], text);
  assert.equal(status, 0, output);
  const types = new Map([...text.matchAll(/^# TYPE (stepd_\S+) (\w+)$/gm)].map(([, name = "", type = ""]) => [name, type]));
  assert.ok(types.size >= 17, `${types.size}`);
  for (const [name, type] of types) {
    assert.match(text, new RegExp(`^# HELP ${name} \\S.{8,}$`, "m"));
    assert.equal(name.endsWith("_total"), type === "counter", name);
    // Without a tokens file there are no named callers and no files to read again.
    const needsTokens = name.startsWith("stepd_caller_") || name === "stepd_reload_success";
    assert.equal(new RegExp(`^${name}(_bucket)?[{ ]`, "m").test(text), !needsTokens, `series of ${name}`);
  }
});

test("promtool finds errors in an exposition", async () => {
  const { status, output } = await promtool(["check", "metrics"], "# TYPE stepd_things counter\nstepd_things 1\n");
  assert.notEqual(status, 0);
  assert.match(output, /no help text/);
});

test("elements by optimizer and dtype count only stepped elements", async () => {
  await using service = await serve();
  const changes = await Changes.from(service);
  const mixed = {
    params: { w: tensor("F32", [1, 2, 3]), b: tensor("BF16", [1, 2]), frozen: tensor("F32", [1, 2, 3, 4, 5]) },
    grads: { w: tensor("F32", [1, 1, 1]), b: tensor("F32", [1, 1]) },
  };
  await service.call("optimizer.step", { optimizer: { name: "adamw" }, ...mixed });
  await service.call("optimizer.step", { optimizer: { name: "lion" }, ...mixed });
  await service.call("optimizer.step", sgdParams(300_000, 1));
  const all = await changes.become({
    [elementSeries("adamw", "F32")]: 3,
    [elementSeries("adamw", "BF16")]: 2,
    [elementSeries("lion", "F32")]: 3,
    [elementSeries("lion", "BF16")]: 2,
    [elementSeries("sgd", "F32")]: 300_000,
    [requestSeries("optimizer.step", "ok")]: 3,
  });
  assert.equal(Object.keys(all).filter((series) => series.startsWith("stepd_elements_total")).length, 5);

  const bad = { optimizer: { name: "sgd" }, params: { w: tensor("F32", [1]) }, grads: { w: tensor("F32", ["NaN"]) } };
  await assert.rejects(service.call("optimizer.step", bad), /NaN or infinity/);
  await service.call("optimizer.step", { ...bad, non_finite: "skip" });
  await service.call("optimizer.norms", { grads: bad.grads });
  await changes.become({
    [requestSeries("optimizer.step", "NON_FINITE_GRADIENT")]: 1,
    [requestSeries("optimizer.step", "ok")]: 1,
    [requestSeries("optimizer.norms", "ok")]: 1,
    stepd_non_finite_gradients_total: 2,
    [elementSeries("sgd", "F32")]: 0,
  });
  await service.call("optimizer.step", { ...bad, non_finite: "propagate" });
  await changes.become({ stepd_non_finite_gradients_total: 0, [elementSeries("sgd", "F32")]: 1 });
});

test("calls count by method and outcome, over RPC and REST; a batch counts once, with its first failure", async () => {
  await using service = await serve();
  const changes = await Changes.from(service);
  const post = (path: string, value: unknown, type = JSON_TYPE) => service.post(path, typeof value === "string" ? value : JSON.stringify(value), type);
  const describe = (name: string, id = 1) => rpc("optimizer.describe", { name }, id);

  await fetch(`${service.url}/v1/optimizers/adam`);
  await fetch(`${service.url}/v1/optimizers/nobody`);
  await post("/rpc", describe("adam"));
  await post("/rpc", rpc("optimizer.describe", { name: "adam" }));
  await changes.become({ [requestSeries("optimizer.describe", "ok")]: 3, [requestSeries("optimizer.describe", "NOT_FOUND")]: 1 });

  await post("/rpc", rpc("no.such", {}, 1));
  await post("/rpc", "{");
  await post("/v1/plan", "{");
  await post("/rpc", []);
  await changes.become({
    [requestSeries("unknown", "METHOD_NOT_FOUND")]: 1,
    [requestSeries("unknown", "PARSE_ERROR")]: 1,
    [requestSeries("optimizer.plan", "PARSE_ERROR")]: 1,
    [requestSeries("unknown", "INVALID_REQUEST")]: 1,
  });

  await post("/rpc", [describe("adam"), describe("sgd", 2)]);
  await post("/rpc", [describe("adam"), describe("nobody", 2), describe("lion", 3)]);
  const all = await changes.become({ [requestSeries("batch", "ok")]: 1, [requestSeries("batch", "INVALID_PARAMS")]: 1 });
  assert.equal(all[phaseSeries("compute")], 5, "each call of a batch is computed by itself");
  assert.deepEqual(
    Object.keys(all).filter((series) => series.startsWith("stepd_request_seconds_count") && !series.includes("batch")),
    [],
  );
});

test("a successful call counts in each phase once, and a failing call in the phases that it reached", async () => {
  await using service = await serve();
  const changes = await Changes.from(service);
  await service.call("optimizer.step", sgdParams(3, 5));
  const all = await changes.become(phaseChanges(...PHASES));
  for (const phase of PHASES) assert.ok(phase === "queue" || (all[phaseSecondsSeries(phase)] ?? 0) > 0, phase);
  const sum = PHASES.reduce((total, phase) => total + (all[phaseSecondsSeries(phase)] ?? 0), 0);
  assert.ok(sum <= (all['stepd_request_seconds_sum{method="optimizer.step",outcome="ok"}'] ?? 0), "phases do not overlap");

  await service.post("/v1/step", "{", JSON_TYPE);
  await changes.become(phaseChanges("receive", "decode", "send"));
  await service.post("/v1/step", "{}", JSON_TYPE);
  await changes.become(phaseChanges("receive", "decode", "queue", "compute", "send"));
  await service.post("/v1/step", "x", "text/plain");
  await changes.become(phaseChanges("send"));
  await fetch(`${service.url}/v1/optimizers`);
  await changes.become(phaseChanges("receive", "queue", "compute", "encode", "send"));
});

test("receive lasts as long as the upload, and send as long as the download", async () => {
  await using service = await serve();
  const changes = await Changes.from(service);
  using client = await RawClient.connect(service);
  // The body exceeds the socket buffers of both ends together.
  const body = sgdBody(3 * MIB, 3);
  await client.hold(body.length);
  await delay(SLOW_MS);
  client.socket.pause();
  client.send(body);
  const first = await changes.become({ ...phaseChanges("receive", "decode", "queue", "compute", "encode"), [byteSeries("in")]: body.length });
  assert.ok((first[phaseSecondsSeries("receive")] ?? 0) >= SLOW_MS / 1000, `receive took ${first[phaseSecondsSeries("receive")]} s`);
  await delay(SLOW_MS);
  client.socket.resume();
  assert.equal((await client.reply())?.status, 200);
  const second = await changes.become({ ...phaseChanges("send"), [requestSeries("optimizer.step", "ok")]: 1 });
  assert.ok((second[phaseSecondsSeries("send")] ?? 0) >= SLOW_MS / 1000, `send took ${second[phaseSecondsSeries("send")]} s`);
  assert.ok((second['stepd_request_seconds_sum{method="optimizer.step",outcome="ok"}'] ?? 0) >= (2 * SLOW_MS) / 1000);
});

test("queue counts the wait behind another job, compute does not, and workers are busy with both", async () => {
  await using service = await Service.start(readConfig({ STEPD_PORT: "0", STEPD_ARENA_MIB: "256", STEPD_WORKERS: "1", STEPD_LOG_LEVEL: "silent" }));
  const { pool, arena } = service;
  const size = 16 * MIB;
  using lease = arena.lease(0);
  const [param, grad] = [lease.allocZeros(4 * size), lease.allocZeros(4 * size)];
  const calls = [
    {
      kernel: pool.kernel("sgd_f32"),
      pointers: [param, grad].map((address) => ({ address, stride: 4 })),
      scalars: [0, 1],
    },
  ];
  const changes = await Changes.from({ url: service.address, admin: undefined });
  const start = performance.now();
  const other = pool.run(Array(50).fill({ elements: size, calls }), lease);
  const body = sgdBody(300_000, 1);
  const reply = fetch(`${service.address}/v1/step`, { method: "POST", body: body as BodyInit, headers: { "Content-Type": MSGPACK } });
  await other;
  const took = (performance.now() - start) / 1000;
  assert.equal((await reply).status, 200);
  await (await reply).arrayBuffer();
  const all = await changes.become({ [phaseSeries("queue")]: 1, [phaseSeries("compute")]: 1, [requestSeries("optimizer.step", "ok")]: 1 });
  const [queue = 0, compute = 0, busy = 0] = [all[phaseSecondsSeries("queue")], all[phaseSecondsSeries("compute")], all["stepd_worker_busy_seconds_total"]];
  assert.ok(queue > took / 2 && queue <= took, `waited for ${queue} s of ${took} s`);
  assert.ok(compute < took / 2, `computed for ${compute} s`);
  assert.ok(busy > took / 2 && busy <= took + compute, `the worker was busy for ${busy} s`);
});

test("bytes count bodies in and out, of results and of errors", async () => {
  await using service = await serve();
  const changes = await Changes.from(service);
  for (const body of [sgdBody(1000, 2), Buffer.from("not msgpack")]) {
    const reply = await service.post("/v1/step", body, MSGPACK);
    await changes.become({ [byteSeries("in")]: body.length, [byteSeries("out")]: (await reply.arrayBuffer()).byteLength });
  }
});

test("bytes in flight count what has arrived, not what a body announces", async () => {
  await using service = await serve();
  const changes = await Changes.from(service);
  using known = await RawClient.connect(service);
  await known.hold(5 * MIB);
  await changes.become({ stepd_in_flight_bytes: 0, stepd_in_flight_requests: 1 });
  known.send(Buffer.alloc(MIB));
  await changes.become({ stepd_in_flight_bytes: MIB, stepd_in_flight_requests: 0 });

  using unknown = await RawClient.connect(service);
  unknown.head("/v1/step", { "Transfer-Encoding": "chunked" });
  await changes.become({ stepd_in_flight_bytes: 0, stepd_in_flight_requests: 1 });
  for (const length of [1, 100_000, MIB]) {
    unknown.chunk(Buffer.alloc(length));
    await changes.become({ stepd_in_flight_bytes: length });
  }

  using refused = await RawClient.connect(service);
  refused.head("/v1/step", { "Content-Length": 65 * MIB });
  assert.equal((await refused.reply())?.status, 413);
  await changes.become({ stepd_in_flight_bytes: 0, stepd_in_flight_requests: 0 });

  known.socket.destroy();
  await changes.become({ stepd_in_flight_bytes: -MIB, stepd_in_flight_requests: -1, [requestSeries("unknown", "CLIENT_GONE")]: 1 });
  unknown.socket.destroy();
  await changes.become({ stepd_in_flight_bytes: -1 - 100_000 - MIB, stepd_in_flight_requests: -1, [requestSeries("unknown", "CLIENT_GONE")]: 1 });
});

test("phases are measured while they last: a call that is received, and one whose reply nobody reads", async () => {
  await using service = await serve();
  const calls = (phase: string): Promise<number> => service.metric(`stepd_phase_calls{phase="${phase}"}`);
  const age = (phase: string): Promise<number> => service.metric(`stepd_phase_oldest_call_seconds{phase="${phase}"}`);
  assert.deepEqual([await calls("receive"), await age("receive"), await calls("send"), await age("send")], [0, 0, 0, 0]);

  using receiving = await RawClient.connect(service);
  await receiving.hold(MIB);
  assert.equal(await calls("receive"), 1);
  const first = await age("receive");
  assert.ok(first > 0);
  assert.ok((await age("receive")) > first, "the age grows while the phase lasts");

  using sending = await RawClient.connect(service);
  sending.socket.pause();
  const body = sgdBody(2 * MIB, 2);
  sending.head("/v1/step", { "Content-Length": body.length });
  sending.send(body);
  while ((await calls("send")) !== 1) await delay(10);
  assert.ok((await age("send")) > 0);
  assert.equal(await calls("receive"), 1);

  receiving.socket.destroy();
  sending.socket.destroy();
  while ((await calls("receive")) + (await calls("send")) > 0) await delay(10);
});

test("a caller that disconnects in mid-reply counts as no success, and its reply as not sent", async () => {
  await using service = await serve({ STEPD_ARENA_MIB: "256" });
  const changes = await Changes.from(service);
  const client = await RawClient.connect(service);
  client.socket.pause();
  const body = sgdBody(6 * MIB, 3);
  client.head("/v1/step", { "Content-Length": body.length });
  client.send(body);
  await changes.become({ [phaseSeries("encode")]: 1, [byteSeries("in")]: body.length });
  client.socket.destroy();
  await changes.become({
    [requestSeries("optimizer.step", "CLIENT_GONE")]: 1,
    [requestSeries("optimizer.step", "ok")]: 0,
    [byteSeries("out")]: 0,
    [phaseSeries("send")]: 0,
  });
});

test("a small reply to a caller that has reset its connection counts as not sent", async () => {
  await using service = await serve();
  const changes = await Changes.from(service);
  const list = pack({ jsonrpc: "2.0", id: 1, method: "optimizer.list" });
  // This call blocks the thread while the other callers connect and disconnect.
  const evaluate = { jsonrpc: "2.0", id: 1, method: "schedule.evaluate", params: { schedule: { name: "cosine", T_max: 10 }, from: 0, count: 10_000 } };
  using busy = await RawClient.connect(service);
  const clients = await Promise.all(Array.from({ length: 5 }, () => RawClient.connect(service)));
  const body = pack(Array(100).fill(evaluate));
  busy.head("/rpc", { "Content-Length": body.length });
  busy.send(body);
  for (const client of clients) {
    client.head("/rpc", { "Content-Length": list.length });
    await new Promise((resolve) => client.socket.write(list, resolve));
    client.socket.resetAndDestroy();
  }
  await busy.reply();
  await changes.become({
    [requestSeries("optimizer.list", "CLIENT_GONE")]: clients.length,
    [requestSeries("optimizer.list", "ok")]: 0,
    [phaseSeries("send")]: 1,
  });
});

test("arena, workers, readiness and build have the right values", async () => {
  await using service = await serve();
  const changes = await Changes.from(service);
  for (const [name, value] of [
    ["stepd_arena_capacity_bytes", 64 * MIB],
    ["stepd_arena_used_bytes", 0],
    ["stepd_workers", 2],
    ["stepd_queued_jobs", 0],
    ["stepd_ready", 1],
    ["stepd_workers_lost_total", 0],
  ] as const)
    assert.equal(await service.metric(name), value, name);
  assert.match(await exposition(service), /^stepd_build_info\{version="\d+\.\d+\.\d+",node="v24\.[\d.]+"\} 1$/m);
  using client = await RawClient.connect(service);
  await client.hold(3 * MIB);
  await changes.become({ stepd_arena_used_bytes: 3 * MIB, stepd_arena_high_water_bytes: 3 * MIB });
  client.socket.destroy();
  await changes.become({ stepd_arena_used_bytes: -3 * MIB, stepd_arena_high_water_bytes: 0 });
});
