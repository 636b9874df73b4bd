/**
 * Builds and runs the container image: npm run test:container. Starts a Docker engine if none answers, builds the image once
 * for all tests, and removes everything at the end. docs/container.md lists the requirements.
 */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { once } from "node:events";
import { chmodSync, mkdirSync, readFileSync } from "node:fs";
import net from "node:net";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { promisify } from "node:util";
import { type StartedTestContainer, Wait } from "testcontainers";
import { JSON_TYPE } from "../support/service.ts";
import { root } from "../support/tree.ts";
import { HeldCall, hasRightParams, jsonBody, type Reply, stepBody } from "./_calls.ts";
import { installTrainers, type Outcome, outcomeHere, Run, type Trainer, Training } from "./_clients.ts";
import { Engine } from "./_engine.ts";
import { buildService, REVISION } from "./_images.ts";
import { ServiceContainer } from "./_service.ts";

const execute = promisify(execFile);

const MIB = 2 ** 20;
const NODE = "/usr/local/bin/node";
/** The time limit is far longer than any test takes on a busy machine. */
const TEST_LIMITS = { timeout: 180_000 };
/** The number of calls in progress when the container is stopped. */
const CALLS = 50;
/** The number of steps of a run whose container is killed after about ten steps. */
const LONG_RUN = 150;

let engine: Engine;
let image: string;
let network: string;
let trainers: readonly [Trainer, Trainer];

before(
  async () => {
    engine = await Engine.start();
    const start = performance.now();
    [image, trainers] = await Promise.all([buildService(engine), installTrainers(engine.folder)]);
    network = await engine.docker("network", "create", "--label", engine.label, `stepd-${process.pid}`);
    const { Size } = await inspect<{ readonly Size: number }>(image);
    const seconds = ((performance.now() - start) / 1000).toFixed(0);
    console.log(`image of ${(Size / 1e6).toFixed(1)} MB; ready after ${seconds} s`);
  },
  { timeout: 600_000 },
);
after(() => engine?.[Symbol.asyncDispose](), { timeout: 120_000 });

const inspect = async <T>(name: string): Promise<T> => (JSON.parse(await engine.docker("inspect", name)) as [T])[0];

interface State {
  readonly Running: boolean;
  readonly OOMKilled: boolean;
  readonly ExitCode: number;
  readonly StartedAt: string;
  readonly Health: { readonly Status: string };
}

const stateOf = async (container: StartedTestContainer): Promise<State> => (await inspect<{ readonly State: State }>(container.getId())).State;

const urlOf = (container: StartedTestContainer): string => `http://${container.getHost()}:${container.getMappedPort(8080)}`;

const start = (change: (container: ServiceContainer) => unknown = () => {}): Promise<StartedTestContainer> => {
  const container = new ServiceContainer(engine, image, network);
  change(container);
  return container.start();
};

const getText = async (url: string): Promise<string> => {
  const response = await fetch(url);
  assert.equal(response.status, 200, url);
  return response.text();
};

/** Returns a function that runs the image's health check in the container. */
const probe = async (container: StartedTestContainer): Promise<() => Promise<boolean>> => {
  const { Config } = await inspect<{ readonly Config: { readonly Healthcheck: { readonly Test: readonly string[] } } }>(image);
  const [kind, ...command] = Config.Healthcheck.Test;
  assert.equal(kind, "CMD");
  return async () => (await container.exec([...command])).exitCode === 0;
};

const freePort = async (): Promise<number> => {
  const server = net.createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as net.AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
};

const requireSame = (found: Outcome, expected: Outcome): void => {
  assert.deepEqual([...found.keys()].sort(), [...expected.keys()].sort());
  for (const [file, bytes] of expected) assert.ok(found.get(file)?.equals(bytes), `${file} differs`);
};

let archived: Promise<string> | undefined;

/** Returns the path of an archive with the image's files. */
const archiveOfImage = (): Promise<string> => {
  archived ??= (async () => {
    const id = await engine.docker("create", "--label", engine.label, image);
    const archive = join(engine.folder, "image.tar");
    await engine.docker("export", "--output", archive, id);
    await engine.docker("rm", id);
    return archive;
  })();
  return archived;
};

/** Returns the paths of all files in the image. */
const filesOfImage = async (): Promise<readonly string[]> => {
  const archive = await archiveOfImage();
  const { stdout } = await execute("tar", ["--list", "--file", archive], { maxBuffer: 2 ** 24 });
  return stdout.split("\n");
};

test("the image contains the service, Node and its libraries, but no tools to build, test or explore", TEST_LIMITS, async () => {
  const files = await filesOfImage();
  for (const file of [
    "app/src/main.ts",
    "app/build/kernels.wasm",
    "app/build/page/index.html",
    "app/package.json",
    "app/LICENSE",
    "app/node_modules/express/package.json",
  ])
    assert.ok(files.includes(file), file);
  const packages = new Set(files.flatMap((file) => /^app\/node_modules\/((?:@[^/]+\/)?[^/]+)\/package\.json$/.exec(file)?.[1] ?? []));
  const { dependencies, devDependencies } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as Record<string, Record<string, string>>;
  const building = ["node", "assemblyscript", "binaryen", ...Object.keys(devDependencies ?? {})];
  assert.deepEqual(
    building.filter((name) => packages.has(name)),
    [],
  );
  const running = Object.keys(dependencies ?? {}).filter((name) => !building.includes(name));
  assert.deepEqual(
    running.filter((name) => !packages.has(name)),
    [],
  );
  const programs = files.filter((file) => /^(usr\/)?(local\/)?s?bin\/[^/]+$/.test(file));
  assert.deepEqual(programs, ["usr/local/bin/node"]);
  const left = files.filter((file) =>
    /(^|\/)(\.npmrc|npmrc|\.git|\.env)$|^app\/(test|scripts|clients|schemas|page)|^app\/src\/kernels|\.pem$|^root\/./.test(file),
  );
  assert.deepEqual(left, []);
});

test("the packages in the image have no tests, source maps, types and examples", TEST_LIMITS, async () => {
  const files = (await filesOfImage()).filter((file) => file.startsWith("app/node_modules/"));
  assert.ok(files.length > 500, `${files.length}`);
  const left = files.filter((file) => /\.(?:map|[cm]?ts)$|\/(?:tests?|__tests__|specs?|benchmarks?|examples)\/|\/test\.js$|\.(?:test|spec)\.js$/.test(file));
  assert.deepEqual(left, []);
});

test("scanners find the C library and its version in the image", TEST_LIMITS, async () => {
  const archive = await archiveOfImage();
  const { stdout: release } = await execute("tar", ["--extract", "--to-stdout", "--file", archive, "etc/os-release"]);
  assert.match(release, /^ID=debian$/m);
  for (const name of ["libc6", "libgcc-s1", "libstdc++6"]) {
    const { stdout } = await execute("tar", ["--extract", "--to-stdout", "--file", archive, `var/lib/dpkg/status.d/${name}`]);
    assert.match(stdout, new RegExp(`^Package: ${name.replaceAll("+", "\\+")}$`, "m"));
    assert.match(stdout, /^Version: \d\S+$/m);
  }
});

test("docs/container.md has the size of the image and of node in it", TEST_LIMITS, async () => {
  const [, imageMb, nodeMb] = /It has (\d+) MB; node alone has (\d+)\./.exec(readFileSync(join(root, "docs/container.md"), "utf8")) ?? [];
  const { Size } = await inspect<{ readonly Size: number }>(image);
  const { stdout } = await execute("tar", ["--list", "--verbose", "--file", await archiveOfImage(), NODE.slice(1)]);
  const bytes = Number(stdout.split(/\s+/)[2]);
  // Versions of Node and Debian differ a little.
  for (const [found, expected] of [
    [Size, imageMb],
    [bytes, nodeMb],
  ] as const)
    assert.ok(Math.abs(found / 1e6 - Number(expected)) <= 4, `${found} bytes, ${expected} MB in the documentation`);
});

test("the image has its labels, runs as an unprivileged user, and stops on SIGTERM", TEST_LIMITS, async () => {
  const { Config } = await inspect<{ readonly Config: Readonly<Record<string, unknown>> & { readonly Labels: Readonly<Record<string, string>> } }>(image);
  assert.deepEqual([Config["User"], Config["StopSignal"], Config["ExposedPorts"]], ["10001:10001", "SIGTERM", { "8080/tcp": {} }]);
  const { version, license, description } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as Record<string, string>;
  const labels = Object.entries(Config.Labels).filter(([name]) => name.startsWith("org.opencontainers.image."));
  assert.deepEqual(Object.fromEntries(labels.map(([name, value]) => [name.slice("org.opencontainers.image.".length), value])), {
    title: "stepd",
    description,
    licenses: license,
    version,
    revision: REVISION,
    "base.name": `stepd-base:${engine.label.split("=")[1]}`,
  });
  assert.equal(await engine.docker("run", "--rm", "--network", "none", "--label", engine.label, image, "--version"), version);
});

test("a container is healthy, counts its calls, and runs without root, shell and writable file system", TEST_LIMITS, async () => {
  await using container = await start();
  const url = urlOf(container);
  assert.equal(await getText(`${url}/health/live`), '{"live":true}');
  const reply = await new HeldCall(url, stepBody(1000)).finish();
  assert.ok(reply.status === 200 && hasRightParams(reply.body, 1000));
  const metrics = await getText(`${url}/metrics`);
  assert.match(metrics, /^stepd_elements_total\{[^}]*optimizer="sgd"[^}]*\} 1000$/m);

  const inside = 'const attempt = (act) => { try { return String(act()); } catch (error) { return error.code; } }; const fs = require("node:fs");';
  const asks = "[process.getuid(), process.getgid(), attempt(() => fs.writeFileSync('/app/a', '')), attempt(() => fs.writeFileSync('/tmp/a', ''))]";
  const { output } = await container.exec([NODE, "--print", `${inside} JSON.stringify(${asks})`]);
  assert.deepEqual(JSON.parse(output), [10001, 10001, "EROFS", "ENOENT"]);
  const shell = await container.exec(["/bin/sh", "-c", "true"]);
  assert.ok(shell.exitCode !== 0 && /no such file/.test(shell.output), shell.output);

  const isHealthy = await probe(container);
  assert.ok(await isHealthy());
  await engine.docker("kill", "--signal", "STOP", container.getId());
  assert.ok(!(await isHealthy()));
  await engine.docker("kill", "--signal", "CONT", container.getId());
  while ((await stateOf(container)).Health.Status !== "healthy") await delay(200);
});

test("the health check follows the settings: port, admin port, socket, TLS", TEST_LIMITS, async () => {
  const secrets = join(engine.folder, "tls");
  mkdirSync(secrets);
  const subject = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=stepd.test", "-days", "1"];
  await execute("openssl", ["req", ...subject, "-keyout", join(secrets, "key.pem"), "-out", join(secrets, "cert.pem")]);
  chmodSync(join(secrets, "key.pem"), 0o644); // The container's user has no account on this machine, so all users must be able to read the key.
  const cases: readonly Readonly<Record<string, string>>[] = [
    { STEPD_PORT: "9000" },
    { STEPD_ADMIN_PORT: "9001" },
    { STEPD_SOCKET: "/run/stepd/sock" },
    { STEPD_TLS_CERT_FILE: "/etc/tls/cert.pem", STEPD_TLS_KEY_FILE: "/etc/tls/key.pem" },
  ];
  await using stack = new AsyncDisposableStack();
  for (const settings of cases) {
    const container = await start((service) =>
      service
        .withEnvironment(settings)
        .withTmpFs({ "/run/stepd": "uid=10001" })
        .withBindMounts([{ source: secrets, target: "/etc/tls", mode: "ro" }])
        .withWaitStrategy(Wait.forLogMessage("listens on")),
    );
    stack.use(container);
    assert.ok(await (await probe(container))(), JSON.stringify(settings));
  }
});

test("the Python and Go clients, in turn, get the same bytes from a container as from a server outside", TEST_LIMITS, async () => {
  await using container = await start();
  const run = new Run(engine.folder, "clients");
  const [python, go] = trainers;
  assert.equal(await new Training(python, urlOf(container), [0, 7], run).finish(), 7);
  assert.equal(await new Training(go, urlOf(container), [7, 15], run).finish(), 15);
  assert.equal(await new Training(python, urlOf(container), [15, 20], run).finish(), 20);
  requireSame(run.outcome, await outcomeHere(20));
});

test("a killed and restarted container costs the Python and Go clients no step", TEST_LIMITS, async () => {
  const port = await freePort();
  await using container = await start((service) => service.withHostPort(port));
  const works = trainers.map((trainer) => {
    const run = new Run(engine.folder, `killed-${trainer.language}`);
    return { run, training: new Training(trainer, urlOf(container), [0, LONG_RUN], run) };
  });
  await Promise.all(works.map(({ training }) => training.reach(10)));
  await engine.docker("kill", container.getId());
  assert.deepEqual(
    works.map(({ training }) => training.isOver),
    [false, false],
  );
  const { Running, ExitCode } = await stateOf(container);
  assert.deepEqual([Running, ExitCode], [false, 137]);
  await engine.docker("start", container.getId());
  const [expected] = await Promise.all([outcomeHere(LONG_RUN), ...works.map(({ training }) => training.finish())]);
  for (const { run } of works) requireSame(run.outcome, expected);
});

test(`docker stop lets ${CALLS} steps in flight finish`, TEST_LIMITS, async () => {
  await using container = await start();
  const url = urlOf(container);
  const elements = 20_000;
  const body = stepBody(elements);
  const calls = Array.from({ length: CALLS }, () => new HeldCall(url, body));
  assert.deepEqual(new Set(await Promise.all(calls.map(({ isAdmitted }) => isAdmitted))), new Set([true]));
  const stop = engine.docker("stop", "--time", "60", container.getId());
  while ((await fetch(`${url}/health/ready`)).status !== 503) await delay(10);
  assert.equal((await new HeldCall(url, body).finish()).status, 503);
  const replies = await Promise.all(calls.map((call) => call.send()));
  assert.equal(replies.filter(({ status, body }) => status === 200 && hasRightParams(body, elements)).length, CALLS);
  await stop;
  const { ExitCode, OOMKilled } = await stateOf(container);
  assert.deepEqual([ExitCode, OOMKilled], [0, false]);
});

test("a container of 512 MiB refuses calls that it cannot hold, and keeps running", TEST_LIMITS, async () => {
  await using container = await start((service) => service.withResourcesQuota({ memory: 0.5 }));
  const url = urlOf(container);
  const { limits } = JSON.parse(await getText(`${url}/v1`)) as { readonly limits: { readonly arena_bytes: number } };
  assert.equal(limits.arena_bytes, 256 * MIB);
  const before = await stateOf(container);
  const send = (calls: number, body: Buffer, type?: string) => Promise.all(Array.from({ length: calls }, () => new HeldCall(url, body, { type }).finish()));
  const requireRight = (replies: readonly Reply[], elements: number): void =>
    assert.ok(replies.every(({ status, body }) => status === 200 && hasRightParams(body, elements)));

  assert.equal((await new HeldCall(url, Buffer.alloc(0), { length: 300 * MIB }).finish()).status, 413);
  assert.equal((await new HeldCall(url, Buffer.alloc(0), { length: 60 * MIB, type: JSON_TYPE }).finish()).status, 413);

  // The calls send twelve bodies of 80 MiB. The arena has room for three.
  const elements = 10 * MIB;
  const replies = await send(12, stepBody(elements));
  const statuses = replies.map(({ status }) => status);
  assert.deepEqual([...new Set(statuses)].sort(), [200, 429], String(statuses));
  requireRight(
    replies.filter(({ status }) => status === 200),
    elements,
  );

  // Parsed JSON takes memory outside the arena, several times the length of its text. The memory admits only some of these
  // bodies.
  const values = 200_000;
  const texts = await send(24, jsonBody(values), JSON_TYPE);
  assert.ok(texts.some(({ status }) => status === 200));
  assert.ok(texts.every(({ status }) => status === 200 || status === 429));
  requireRight(
    texts.filter(({ status }) => status === 200),
    values,
  );
  requireRight(await send(1, stepBody(1000)), 1000);
  const { Running, OOMKilled, StartedAt } = await stateOf(container);
  assert.deepEqual([Running, OOMKilled, StartedAt], [true, false, before.StartedAt]);
});
