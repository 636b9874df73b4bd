/**
 * Tests a real Prometheus that scrapes real servers and a real HAProxy with the deployed rules, and sends alerts to a real Alertmanager.
 * All rules, and all queries of the dashboard and documentation, return data.
 */
import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { readConfig } from "../../src/config.ts";
import { Service } from "../../src/service.ts";
import { Haproxy } from "../deploy/_haproxy.ts";
import { sgdBody, sgdParams } from "../http/_client.ts";
import { JSON_TYPE, MSGPACK, pack, TestService } from "../support/service.ts";
import { root } from "../support/tree.ts";
import { panelsOf, withoutVariables } from "./_dashboard.ts";
import { Alertmanager, deployed, Prometheus, type Series } from "./_prometheus.ts";

const INTERVAL_MS = 500;
const WAIT_MS = 60_000;
const TOKEN = "0123456789abcdef-trainer";

const HEADERS = { "Content-Type": MSGPACK, Authorization: `Bearer ${TOKEN}` };

const read = (file: string): string => readFileSync(join(root, file), "utf8");

/** Makes calls of every kind that a panel counts. */
const makeCalls = async (url: string): Promise<void> => {
  const post = async (path: string, body: Uint8Array | string, type = MSGPACK): Promise<number> => {
    const reply = await fetch(`${url}${path}`, { method: "POST", body: body as BodyInit, headers: { ...HEADERS, "Content-Type": type } });
    await reply.arrayBuffer();
    // The call is retried as the clients retry it, because a worker that a test kills may have held a shard of the step.
    return reply.status === 503 ? post(path, body, type) : reply.status;
  };
  for (const name of ["adamw", "sgd", "lion"]) assert.equal(await post("/v1/step", pack({ ...sgdParams(300_000, 1), optimizer: { name } })), 200);
  const tensor = (value: number | string) => ({ w: { shape: [1], values: [value] } });
  assert.equal(await post("/v1/step", JSON.stringify({ optimizer: { name: "sgd" }, params: tensor(1), grads: tensor("NaN") }), JSON_TYPE), 422);
  assert.equal(await post("/v1/step", Buffer.alloc(40 * 2 ** 20)), 413);
  assert.equal(await post("/v1/step", "x", "text/plain"), 415);
};

const hasNumber = ({ value }: Series): boolean => value !== undefined && Number.isFinite(Number(value[1]));

/** The load takes steps in the background, so that every rate has data. */
let isOver = false;
let load: Promise<void>;
let folder: string;
let service: TestService;
let other: Service;
let haproxy: Haproxy;
let alertmanager: Alertmanager;
let prometheus: Prometheus;

before(async () => {
  folder = mkdtempSync(join(os.tmpdir(), "stepd-scrape-"));
  const tokens = join(folder, "tokens");
  writeFileSync(tokens, `trainer ${TOKEN}\n`);
  service = await TestService.start({ STEPD_ARENA_MIB: "32", STEPD_WORKERS: "2", STEPD_ADMIN_PORT: "0", STEPD_TOKENS_FILE: tokens });
  other = await Service.start(readConfig({ STEPD_PORT: "0", STEPD_ARENA_MIB: "32", STEPD_WORKERS: "2", STEPD_LOG_LEVEL: "silent" }));
  const stepd = [service.admin ?? "", other.address].map((url) => new URL(url).host);
  haproxy = await Haproxy.start([service.url, other.address, other.address]);
  alertmanager = await Alertmanager.start();
  prometheus = await Prometheus.start({ stepd, haproxy: [new URL(haproxy.admin).host], alertmanager: [alertmanager.host] }, INTERVAL_MS);
  load = (async () => {
    while (!isOver) {
      await Promise.all([makeCalls(service.url), makeCalls(other.address)]);
      await delay(INTERVAL_MS / 2);
    }
  })();
});

after(async () => {
  isOver = true;
  await load?.catch(() => {}); // A test below reports the failure of the load.
  await prometheus?.[Symbol.asyncDispose]();
  await alertmanager?.[Symbol.asyncDispose]();
  await haproxy?.[Symbol.asyncDispose]();
  await service?.[Symbol.asyncDispose]();
  await other?.[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true, force: true });
});

/** Repeats a query until it returns a number, because a rate needs two scrapes. */
const waitForData = async (query: string): Promise<readonly Series[]> => {
  const deadline = performance.now() + WAIT_MS;
  for (;;) {
    const series = await prometheus.query(query);
    if (series.some(hasNumber)) return series;
    assert.ok(performance.now() < deadline, `${query} has no data: ${JSON.stringify(series)}`);
    await delay(INTERVAL_MS / 2);
  }
};

test("Prometheus scrapes both servers", async () => {
  assert.equal((await waitForData('sum(up{job="stepd"}) == 2')).length, 1);
  assert.equal((await waitForData("sum(stepd_ready) == 2")).length, 1);
});

test("Prometheus's counts match the calls made", async () => {
  const { params, grads } = sgdParams(1000, 2);
  const before = Number((await waitForData('sum(stepd_elements_total{optimizer="radam"}) or vector(0)'))[0]?.value?.[1]);
  for (let i = 0; i < 5; i++) {
    const reply = await fetch(`${service.url}/v1/step`, {
      method: "POST",
      body: pack({ optimizer: { name: "radam" }, params, grads }) as BodyInit,
      headers: HEADERS,
    });
    assert.equal(reply.status, 200);
    await reply.arrayBuffer();
  }
  await waitForData(`sum(stepd_elements_total{optimizer="radam", dtype="F32"}) == ${before + 5000}`);
});

for (const { title, queries } of panelsOf(read("deploy/grafana/stepd.json"))) {
  test(`the panel "${title}" has data`, async () => {
    for (const query of queries) await waitForData(withoutVariables(query, "1m"));
  });
}

for (const [, query = ""] of read("docs/metrics.md").matchAll(/^```promql\n(.*?)\n```$/gms)) {
  test(`the documentation's query ${query} has data`, async () => {
    await waitForData(query);
  });
}

test("the dashboard's variables have data", async () => {
  assert.deepEqual(await prometheus.get("label/job/values", { "match[]": "stepd_build_info" }), ["stepd"]);
  assert.equal((await prometheus.get<readonly string[]>("label/instance/values", { "match[]": 'stepd_build_info{job="stepd"}' })).length, 2);
});

test("every recording rule has data, and every rule evaluates without an error", async () => {
  const rules = ["stepd.rules.yml", "haproxy.rules.yml"].map((file) => readFileSync(join(deployed, file), "utf8")).join("");
  const recordings = [...rules.matchAll(/- record: (\S+)/g)].map(([, name = ""]) => name);
  assert.ok(recordings.length >= 11, `${recordings.length}`);
  for (const name of recordings) await waitForData(name);
  const { groups } = await prometheus.get<{ groups: readonly { rules: readonly { name: string; health: string; lastError?: string }[] }[] }>("rules");
  const found = groups.flatMap((group) => group.rules);
  assert.equal(found.length, (rules.match(/- (record|alert): /g) ?? []).length);
  assert.deepEqual(
    found.filter(({ health }) => health !== "ok"),
    [],
  );
});

test("every figure that the runbook names exists, and every query in it evaluates", async () => {
  const operations = read("docs/operations.md");
  const spans = [...operations.slice(operations.indexOf("\n## Runbook")).matchAll(/`([^`]+)`/g)].map(([, span = ""]) => span);
  const isMetric = /^(?:job(?:_\w+)?:)?(?:stepd|haproxy|nodejs|process)_\w+(?::\w+)?$|^up$/;
  const queries = [...new Set(spans.filter((span) => /[({]/.test(span) && /\b(?:stepd|haproxy|nodejs|process)_\w+|\bup\{/.test(span)))];
  const names = new Set([
    ...spans.filter((span) => isMetric.test(span)),
    ...queries.flatMap((query) => query.match(/\b(?:stepd|haproxy|nodejs|process)_\w+/g) ?? []),
  ]);
  assert.ok(names.size > 20 && queries.length > 8, `${names.size} ${queries.length}`);
  const known = new Set(await prometheus.get<readonly string[]>("label/__name__/values"));
  assert.deepEqual(
    [...names].filter((name) => !known.has(name)),
    [],
  );
  for (const query of queries) await prometheus.query(query);
});

test("HAProxy is scraped, and has every series that its alerts select", async () => {
  await waitForData('up{job="haproxy"} == 1');
  const rules = readFileSync(join(deployed, "haproxy.rules.yml"), "utf8");
  const selectors = [...new Set(rules.match(/haproxy_\w+\{[^}]*\}/g))];
  assert.ok(selectors.length >= 5);
  for (const selector of selectors) await waitForData(selector);
});

test("a dead worker fires its alert, which the dashboard marks, and no other", async () => {
  const firing =
    (JSON.parse(read("deploy/grafana/stepd.json")) as { annotations: { list: readonly { expr?: string }[] } }).annotations.list.find(({ expr }) => expr)
      ?.expr ?? "";
  assert.deepEqual(await prometheus.query(firing), []);
  void other.pool.threads[0]?.terminate();
  const [alert, ...rest] = await waitForData(firing);
  assert.deepEqual([alert?.metric["alertname"], alert?.metric["instance"], rest], ["StepdWorkerLost", new URL(other.address).host, []]);
  const deadline = performance.now() + WAIT_MS;
  while ((await alertmanager.alerts()).size === 0) {
    assert.ok(performance.now() < deadline, "Alertmanager has the alert");
    await delay(INTERVAL_MS / 2);
  }
  const [[name, link] = []] = await alertmanager.alerts();
  assert.equal(name, "StepdWorkerLost");
  const { pathname, hash } = new URL(link ?? "");
  const page = await (await fetch(`${haproxy.admin}${pathname}`)).text();
  assert.ok(page.includes(`<h3 id="${hash.slice(1)}">StepdWorkerLost</h3>`), "the alert's link leads to its section");
});

test("the servers stayed healthy throughout", async () => {
  const reply = await fetch(`${service.url}/v1/step`, { method: "POST", body: sgdBody(3, 1) as BodyInit, headers: HEADERS });
  assert.equal(reply.status, 200);
  isOver = true;
  await load;
});
