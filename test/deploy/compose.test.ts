/** Tests deploy/compose.yaml with Compose's own loader: the file is valid and hardened, and its parts fit together. */
import assert from "node:assert/strict";
import { execFile, spawnSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { before, test } from "node:test";
import { promisify } from "node:util";
import { readConfig } from "../../src/config.ts";
import { debianProgram } from "../support/debian.ts";
import { composeSpec } from "../support/go.ts";
import { root } from "../support/tree.ts";
import { configuration, runbook } from "./_haproxy.ts";

interface Service {
  readonly image: string;
  readonly environment?: Readonly<Record<string, string>>;
  readonly read_only?: boolean;
  readonly cap_drop?: readonly string[];
  readonly cap_add?: readonly string[];
  readonly privileged?: boolean;
  readonly security_opt?: readonly string[];
  readonly healthcheck?: unknown;
  readonly stop_grace_period?: string;
  readonly networks: Readonly<Record<string, unknown>>;
  readonly ports?: readonly { readonly host_ip?: string; readonly published: string }[];
  readonly volumes?: readonly { readonly type: string; readonly source: string; readonly target: string; readonly read_only?: boolean }[];
  readonly deploy: { readonly resources: { readonly limits: { readonly cpus?: string; readonly memory?: string; readonly pids?: number } } };
}

const file = join(root, "deploy/compose.yaml");
const REPLICAS = ["stepd-1", "stepd-2", "stepd-3"];

let services: Readonly<Record<string, Service>>;

const load = async (path: string): Promise<{ readonly services: Readonly<Record<string, Service>> }> => {
  const { stdout } = await promisify(execFile)(await composeSpec(), ["--format", "json", path], {
    cwd: join(root, "deploy"),
    env: { PATH: process.env["PATH"] },
  });
  return JSON.parse(stdout);
};

before(async () => {
  ({ services } = await load(file));
});

const service = (name: string): Service => services[name] as Service;
const settings = (name: string): Readonly<Record<string, string>> => service(name).environment ?? {};

test("compose.yaml defines three replicas, HAProxy, Prometheus, Alertmanager and Grafana", () => {
  assert.deepEqual(Object.keys(services).sort(), ["alertmanager", "grafana", "haproxy", "prometheus", ...REPLICAS]);
});

test("every container is read-only, cannot gain privileges, and has limits", () => {
  for (const [name, { read_only, cap_drop, cap_add, privileged, security_opt, deploy }] of Object.entries(services)) {
    assert.deepEqual(
      { read_only, cap_drop, cap_add, privileged, security_opt },
      { read_only: true, cap_drop: ["ALL"], cap_add: undefined, privileged: undefined, security_opt: ["no-new-privileges:true"] },
      name,
    );
    const { cpus, memory, pids } = deploy.resources.limits;
    assert.ok(cpus && memory && pids, name);
  }
});

test("every container has a health check; replicas use their image's", () => {
  for (const [name, { healthcheck }] of Object.entries(services)) assert.equal(healthcheck === undefined, REPLICAS.includes(name), name);
  assert.match(readFileSync(join(root, "Dockerfile"), "utf8"), /^HEALTHCHECK /m);
});

test("images have versions, and ports are on loopback", () => {
  for (const [name, { image, ports = [] }] of Object.entries(services)) {
    if (!REPLICAS.includes(name)) assert.match(image, /:v?\d+\.\d+/);
    for (const { host_ip } of ports) assert.equal(host_ip, "127.0.0.1", name);
  }
});

test("every mounted path exists, and only Prometheus's volume is writable", () => {
  const mounts = Object.values(services).flatMap(({ volumes = [] }) => volumes);
  for (const { type, source, read_only } of mounts) {
    if (type === "bind") assert.ok(existsSync(source), source);
    assert.equal(read_only ?? false, type === "bind", source);
  }
  assert.deepEqual(
    mounts.flatMap(({ type, source }) => (type === "volume" ? source : [])),
    ["prometheus"],
  );
});

test("the replicas' settings are valid, and fit their memory limit and stop grace period", () => {
  for (const name of REPLICAS) {
    const config = readConfig(settings(name));
    const memory = /^(\d+)M$/.exec(service(name).deploy.resources.limits.memory ?? "")?.[1];
    assert.ok(config.arenaMib + 128 + 10 * config.maxJsonMib <= Number(memory), name);
    const seconds = /^(?:(\d+)m)?(\d+)s$/.exec(service(name).stop_grace_period ?? "");
    const grace = (Number(seconds?.[1] ?? 0) * 60 + Number(seconds?.[2])) * 1000;
    assert.ok(config.drainGraceMs + config.drainTimeoutMs < grace, `${name}: ${service(name).stop_grace_period}`);
  }
});

test("HAProxy accepts its configuration, reaches the replicas, and notices a drain within the grace", async () => {
  const { STEPD_1, STEPD_2, STEPD_3 } = settings("haproxy");
  assert.deepEqual(
    [STEPD_1, STEPD_2, STEPD_3],
    REPLICAS.map((name) => `${name}:8080`),
  );
  for (const name of REPLICAS) assert.ok("calls" in service(name).networks);
  const checked = spawnSync(await debianProgram("haproxy"), ["-c", "-f", configuration], {
    env: { ...settings("haproxy"), STEPD_RUNBOOK: runbook },
    encoding: "utf8",
  });
  assert.equal(checked.status, 0, checked.stderr);
  // The names belong to containers, so they do not resolve here.
  assert.deepEqual(checked.stderr.match(/^\[WARNING\].*(?<!could not resolve address '.*', disabling server\.)$/gm), null);
  const checks = /default-server check inter (\d+)s fastinter (\d+)ms .*fall 2 /.exec(readFileSync(configuration, "utf8"));
  const noticedMs = Number(checks?.[1]) * 1000 + Number(checks?.[2]);
  for (const name of REPLICAS) assert.ok(readConfig(settings(name)).drainGraceMs > noticedMs * 1.5);
});

test("HAProxy and Prometheus are given the files that their configurations name", () => {
  const mounts = (name: string): ReadonlyMap<string, string> => new Map(service(name).volumes?.map(({ target, source }) => [target, source]));
  assert.equal(mounts("haproxy").get(settings("haproxy")["STEPD_RUNBOOK"] ?? ""), runbook);
  assert.equal(mounts("alertmanager").get("/etc/alertmanager"), join(root, "deploy/alertmanager"));
});

test("Prometheus scrapes HAProxy, and reaches Alertmanager", () => {
  const text = readFileSync(join(root, "deploy/prometheus/prometheus.yml"), "utf8");
  assert.ok(text.includes(`targets: ["haproxy:${settings("haproxy")["STEPD_BIND_ADMIN"]?.replace("*:", "")}"]`));
  assert.ok(text.includes('targets: ["alertmanager:9093"]'));
  for (const name of ["haproxy", "alertmanager", "prometheus"]) assert.ok("metrics" in service(name).networks, name);
});

test("Prometheus scrapes the replicas' admin ports", () => {
  const text = readFileSync(join(root, "deploy/prometheus/prometheus.yml"), "utf8");
  for (const name of REPLICAS) {
    const { adminPort, adminHost } = readConfig(settings(name));
    assert.equal(adminHost, "0.0.0.0");
    assert.ok(text.includes(`"${name}:${adminPort}"`), name);
    assert.ok("metrics" in service(name).networks);
  }
});
