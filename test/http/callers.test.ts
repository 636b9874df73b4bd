/** Tests how the server shares its memory, calls, connections and turns among callers, and what it shows an operator of them. */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import type { Socket } from "node:net";
import os from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { setTimeout as delay, setImmediate } from "node:timers/promises";
import { Turns } from "../../src/http/_turns.ts";
import { Caller, Flight } from "../../src/http/callers.ts";
import { MSGPACK, pack, readReply, TestService } from "../support/service.ts";
import { RawClient, type RawReply, sgdBody, sgdParams } from "./_client.ts";

const MIB = 2 ** 20;
const scratch = mkdtempSync(join(os.tmpdir(), "stepd-callers-"));
after(() => rmSync(scratch, { recursive: true, force: true }));

const NAMES = ["alice", "bob", "carol"] as const;
type Name = (typeof NAMES)[number];
const bearer = (name: Name) => ({ Authorization: `Bearer ${name}-0123456789abcdef` });
const EXPECT = { Expect: "100-continue" };

let files = 0;
/** Starts a service that knows the callers, with limits in the tokens file. */
const serve = (limits: Partial<Record<Name, string>> = {}, env: Readonly<Record<string, string>> = {}) => {
  const path = join(scratch, `tokens-${files++}`);
  writeFileSync(path, NAMES.map((name) => `${name} ${name}-0123456789abcdef ${limits[name] ?? ""}\n`).join(""));
  return TestService.start({ STEPD_ARENA_MIB: "16", STEPD_WORKERS: "2", STEPD_ADMIN_PORT: "0", STEPD_TOKENS_FILE: path, ...env });
};

const ofAdmin = async (service: TestService, path: string, init?: RequestInit) => (await fetch(`${service.admin}${path}`, init)).text();

const metric = async (service: TestService, series: string): Promise<number> => {
  const line = (await ofAdmin(service, "/metrics")).split("\n").find((candidate) => candidate.startsWith(`${series} `));
  return Number(line?.slice(series.length + 1));
};

const until = async (accepts: () => Promise<boolean>, what: string): Promise<void> => {
  const deadline = performance.now() + 15_000;
  while (!(await accepts())) {
    assert.ok(performance.now() < deadline, `${what} has not happened`);
    await delay(10);
  }
};

const step = (service: TestService, name: Name, body = pack(sgdParams(3, 5))) =>
  fetch(`${service.url}/v1/step`, { method: "POST", headers: { "Content-Type": MSGPACK, ...bearer(name) }, body: new Uint8Array(body) });

/** Holds `mebibytes` of the arena for a caller with a body that stays unfinished. */
const keep = async (service: TestService, name: Name, mebibytes: number): Promise<RawClient> => {
  const client = await RawClient.connect(service);
  await client.keep(mebibytes * MIB, "/v1/step", bearer(name));
  return client;
};

/** Announces a body and returns the status of the answer: 100 if the body is admitted. */
const announce = async (service: TestService, name: Name, mebibytes: number): Promise<number | undefined> => {
  using client = await RawClient.connect(service);
  client.head("/v1/step", { "Content-Length": mebibytes * MIB, ...EXPECT, ...bearer(name) });
  return (await client.reply())?.status;
};

const assertGaveWay = (reply: RawReply | null): void => {
  assert.equal(reply?.status, 429);
  assert.match(reply.body.toString("latin1"), /gave way to another caller/);
};

test("a caller alone may use the whole arena; when it is full, the largest share gives way to a smaller one", async () => {
  await using service = await serve();
  using first = await keep(service, "alice", 6);
  using second = await keep(service, "alice", 6);
  assert.equal(await announce(service, "alice", 6), 429, "a caller does not take its own memory");
  assert.equal(await announce(service, "bob", 13), 429, "a share that would be larger takes nothing");
  using third = await RawClient.connect(service);
  await third.hold(7 * MIB, "/v1/step", bearer("bob"));
  assertGaveWay(await second.reply());
  assert.equal(await announce(service, "bob", 5), 429, "the shares are 6 and 7 now, so nothing gives way");
  assert.equal(await metric(service, 'stepd_caller_arena_bytes{caller="alice"}'), 6 * MIB, "the older call goes on");
  assert.equal(first.socket.destroyed, false);
  const refusals = (limit: string) => metric(service, `stepd_caller_calls_total{caller="alice",outcome="OVERLOADED",limit="${limit}"}`);
  assert.deepEqual([await refusals("server"), await refusals("share")], [1, 1]);
  assert.equal(await metric(service, 'stepd_refusals_total{reason="OVERLOADED",limit="share"}'), 1);
});

test("a call ends no other call if it would have no room even then", async () => {
  await using service = await serve();
  using alice = await keep(service, "alice", 8);
  using bob = await keep(service, "bob", 6);
  assert.equal(await announce(service, "carol", 15), 429);
  assert.equal(await announce(service, "carol", 7), 100, "alice gives way");
  assertGaveWay(await alice.reply());
  assert.equal(await metric(service, 'stepd_caller_in_flight_requests{caller="bob"}'), 1);
  assert.equal(bob.socket.destroyed, false);
});

test("calls at once are shared, too", async () => {
  await using service = await serve({}, { STEPD_MAX_IN_FLIGHT: "4" });
  const clients = await Promise.all([1, 2, 3, 4].map(() => keep(service, "alice", 1)));
  assert.equal((await step(service, "alice")).status, 429);
  assert.equal((await step(service, "bob")).status, 200, "a call of alice gives way");
  const refused = await Promise.race(clients.map((client) => client.reply()));
  assertGaveWay(refused);
  for (const client of clients) client[Symbol.dispose]();
});

test("a full server closes an idle connection of the caller with the most", async () => {
  await using service = await serve({}, { STEPD_MAX_CONNECTIONS: "4", STEPD_SOCKET: join(scratch, "socket") });
  // The callers share an address, so a token decides whose a connection is.
  const idle = await Promise.all([1, 2, 3, 4].map(() => RawClient.connect(service)));
  for (const client of idle) {
    const body = pack(sgdParams(3, 5));
    client.head("/v1/step", { "Content-Length": body.length, ...bearer("alice") });
    client.send(body);
    assert.equal((await client.reply())?.status, 200);
  }
  assert.equal(await metric(service, 'stepd_caller_connections{caller="alice"}'), 4);
  using bob = await RawClient.connect(service);
  const body = pack(sgdParams(3, 5));
  bob.head("/v1/step", { "Content-Length": body.length, ...bearer("bob") });
  bob.send(body);
  assert.equal((await bob.reply())?.status, 200);
  await until(async () => (await metric(service, 'stepd_caller_connections{caller="alice"}')) === 3, "the end of one of alice's connections");
  assert.equal(await metric(service, "stepd_connections"), 4);
  for (const client of idle) client[Symbol.dispose]();
});

test("limits in the tokens file hold for all calls of a caller, and the error names whose limit it was", async () => {
  await using service = await serve({ alice: "calls=1 arena_mib=8", bob: "calls_per_second=1", carol: "bytes_per_second=1000 connections=2" });
  using client = await keep(service, "alice", 4);
  const second = await step(service, "alice");
  assert.equal(second.status, 429);
  assert.match(second.headers.get("retry-after") ?? "", /^[1-9]/);
  const { limit, expected } = (await readReply(second)) as { readonly limit?: string; readonly expected?: string };
  assert.deepEqual([limit, expected], ["caller", "at most 1 calls at once of this caller"]);
  client.socket.destroy();
  await until(async () => (await metric(service, 'stepd_caller_in_flight_requests{caller="alice"}')) === 0, "the end of alice's call");
  assert.equal(await announce(service, "alice", 9), 413, "no retry can succeed");
  for (const series of [
    'stepd_refusals_total{reason="OVERLOADED",limit="caller"}',
    'stepd_refusals_total{reason="PAYLOAD_TOO_LARGE",limit="caller"}',
    'stepd_caller_calls_total{caller="alice",outcome="OVERLOADED",limit="caller"}',
  ])
    assert.equal(await metric(service, series), 1, series);
  const both = await Promise.all([step(service, "bob"), step(service, "bob")]);
  assert.deepEqual(both.map(({ status }) => status).sort(), [200, 429]);
  assert.equal((await step(service, "carol", sgdBody(1000, 2))).status, 200, "a body may exceed a second's bytes");
  assert.equal((await step(service, "carol")).status, 429);
  const few = await Promise.all([1, 2, 3].map(() => RawClient.connect(service)));
  for (const one of few) one.head("/v1/step", { "Content-Length": 0, ...bearer("carol") });
  const replies = await Promise.all(few.map(async (one) => (await one.reply())?.body.toString("latin1") ?? ""));
  assert.ok(
    replies.some((text) => /limit of 2 connections/.test(text)),
    replies.join(),
  );
  for (const one of few) one[Symbol.dispose]();
});

test("an operator sees the calls in flight, the settings and a line for each call, and sets the level of the log", async () => {
  await using service = await serve({ carol: "calls=3" }, { STEPD_ACCESS_LOG: "on", STEPD_LOG_LEVEL: "info" });
  using client = await keep(service, "alice", 4);
  const { calls } = JSON.parse(await ofAdmin(service, "/calls")) as { calls: readonly Record<string, unknown>[] };
  assert.equal(calls.length, 1);
  const { seconds, request_id: id, ...call } = calls[0] ?? {};
  assert.deepEqual(call, { caller: "alice", peer: "127.0.0.1", method: "unknown", phase: "receive", body_bytes: 4 * MIB, arena_bytes: 4 * MIB });
  assert.ok(typeof id === "string" && Number(seconds) > 0);
  assert.equal(client.socket.destroyed, false);
  const settings = async () => JSON.parse(await ofAdmin(service, "/settings")) as Record<string, unknown>;
  const { STEPD_ARENA_MIB, STEPD_ACCESS_LOG, STEPD_LOG_LEVEL } = await settings();
  assert.deepEqual([STEPD_ARENA_MIB, STEPD_ACCESS_LOG, STEPD_LOG_LEVEL], [16, "on", "info"]);
  const lines = () =>
    service.log
      .join("")
      .split("\n")
      .filter((text) => text.includes('"msg":"call"'))
      .map((text) => JSON.parse(text) as Record<string, unknown>);
  await step(service, "bob");
  await until(async () => lines().length === 1, "the line of the call");
  const { callers } = JSON.parse(await ofAdmin(service, "/callers")) as { callers: readonly Record<string, unknown>[] };
  assert.deepEqual(callers[0], { caller: "alice", limits: {}, calls: 1, connections: 1, arena_bytes: 4 * MIB });
  assert.deepEqual(callers[2], { caller: "carol", limits: { calls: 3 }, calls: 0, connections: 0, arena_bytes: 0 });
  const [line] = lines();
  assert.deepEqual([line?.["caller"], line?.["method"], line?.["outcome"], line?.["peer"]], ["bob", "optimizer.step", "ok", "127.0.0.1"]);
  assert.deepEqual(Object.keys(line?.["phases"] ?? {}), ["receive", "queue", "compute", "send"]);
  assert.ok(Number(line?.["bytes_in"]) > 0 && Number(line?.["bytes_out"]) > 0);
  assert.equal(await metric(service, 'stepd_caller_bytes_total{caller="bob",direction="in"}'), line?.["bytes_in"]);
  assert.equal(await ofAdmin(service, "/log-level/warn", { method: "PUT" }), '{"level":"warn"}');
  assert.equal((await settings())["STEPD_LOG_LEVEL"], "warn", "the level in force, not that of the start");
  await until(async () => /"before":"info","level_set":"warn","msg":"the level of the log was set"/.test(service.log.join("")), "the line of the change");
  await step(service, "bob");
  assert.match(await ofAdmin(service, "/log-level/loud", { method: "PUT" }), /level: expected one of trace, debug, info, .*, found \\?"loud/);
  assert.equal(await ofAdmin(service, "/log-level"), '{"level":"warn"}');
  assert.equal(lines().length, 1, "the second step has no line at level warn");
  assert.equal(await metric(service, 'stepd_reload_success{setting="STEPD_TOKENS_FILE"}'), 1);
});

/** Begins calls of callers with `limit` places, and returns the names of those that have begun or left, in order. */
const queue = (limit: number) => {
  const turns = new Turns(limit);
  const callers = new Map<string, Caller>();
  const events: string[] = [];
  const socket = { once: () => {}, off: () => {} } as unknown as Socket;
  const callerOf = (name: string): Caller => {
    const caller = callers.get(name) ?? new Caller(name);
    callers.set(name, caller);
    return caller;
  };
  return {
    events,
    /** Sends a call of the caller whose name is before the dot. */
    send(call: string): Flight {
      const flight = new Flight(callerOf(call.split(".")[0] as string), socket, call);
      const turn = turns.begin(flight, () => events.push(`${call} freed`));
      if (!turn) events.push(call);
      turn?.then(
        () => events.push(call),
        () => events.push(`${call} left`),
      );
      return flight;
    },
    /** Ends a call of the caller after `ms`, and lets a round of the event loop pass. */
    async end(name: string, ms: number): Promise<void> {
      turns.end(callerOf(name), ms);
      await setImmediate();
    },
  };
};

test("the caller that has computed least is next, and a call that leaves frees its memory", async () => {
  const { events, send, end } = queue(1);
  for (const call of ["alice.0", "carol.0", "alice.1", "alice.2"]) send(call);
  send("alice.3").giveWay?.(new Error("gave way"));
  for (const call of ["bob.0", "bob.1", "bob.2"]) send(call);
  await setImmediate();
  assert.deepEqual(events.splice(0), ["alice.0", "carol.0", "alice.3 freed", "alice.3 left"]);
  // Alice's call took 10 ms, so bob has three turns of 4 ms before her next one.
  for (const [name, ms] of [
    ["alice", 10],
    ["bob", 4],
    ["bob", 4],
    ["bob", 4],
    ["alice", 1],
  ] as const)
    await end(name, ms);
  assert.deepEqual(events, ["bob.0", "bob.1", "bob.2", "alice.1", "alice.2"]);
});

test("a caller with long calls leaves places to the first calls of others, up to as many again", () => {
  const { events, send } = queue(2);
  for (const call of ["alice.0", "alice.1", "alice.2", "bob.0", "bob.1", "carol.0", "dave.0"]) send(call);
  assert.deepEqual(events, ["alice.0", "alice.1", "bob.0", "carol.0"]);
});

test("callers begin one call each in a round of the event loop, and a caller alone as many as it sends", async () => {
  const { events, send, end } = queue(100);
  for (const call of ["alice.0", "alice.1", "alice.2"]) send(call);
  assert.equal(events.length, 3);
  for (const call of ["bob.0", "bob.1", "alice.3", "alice.4", "bob.2"]) send(call);
  assert.deepEqual(events.splice(0), ["alice.0", "alice.1", "alice.2", "bob.0", "alice.3"]);
  await setImmediate();
  assert.deepEqual(events.splice(0).sort(), ["alice.4", "bob.1"]);
  await end("alice", 1);
  assert.deepEqual(events, ["bob.2"]);
});
