/** Tests `stepd serve`: settings as options, and the same behaviour as `npm start`. */
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import net from "node:net";
import { test } from "node:test";
import { settings } from "../../src/config.ts";
import { JSON_TYPE } from "../support/service.ts";
import { Command, Folder, stepd } from "./_command.ts";

const SMALL = { STEPD_ARENA_MIB: "16", STEPD_WORKERS: "1", STEPD_LOG_LEVEL: "warn" };

test("every setting is an option with help and default", async () => {
  const { stdout } = await stepd("serve", "--help");
  for (const { name, help, initial } of Object.values(settings)) {
    const option = `--${name
      .replace(/^STEPD_/, "")
      .toLowerCase()
      .replaceAll("_", "-")} `;
    const line = stdout.split("\n").find((candidate) => candidate.trim().startsWith(option)) ?? "";
    assert.ok(line.endsWith(`${help}${initial === "" ? "" : ` (${initial})`}`), `${option}: ${line}`);
  }
});

test("an option overrides its variable, and the service steps and drains", async () => {
  await using server = new Command(["serve", "--port", "0", "--workers", "1"], { ...SMALL, STEPD_PORT: "1", STEPD_WORKERS: "2" });
  const address = await server.listening();
  const { workers } = (await (await fetch(`${address}/v1`)).json()) as { workers: number };
  assert.equal(workers, 1);
  const tensors = { w: { shape: [1], values: [1] } };
  const body = JSON.stringify({ optimizer: { name: "sgd", lr: 0.5 }, params: tensors, grads: tensors });
  const reply = await fetch(`${address}/v1/step`, { method: "POST", headers: { "Content-Type": JSON_TYPE }, body });
  assert.deepEqual(((await reply.json()) as { params: { w: { values: number[] } } }).params.w.values, [0.5]);
  server.child.kill("SIGTERM");
  assert.equal((await server.ended).code, 0);
});

test("serve listens on a Unix socket", async () => {
  using folder = new Folder();
  const path = folder.at("stepd.sock");
  await using server = new Command(["serve", "--socket", path], SMALL);
  assert.equal(await server.listening(), `unix:${path}`);
  assert.ok(existsSync(path));
  server.child.kill("SIGINT");
  assert.equal((await server.ended).code, 0);
});

test("an invalid setting is reported under the name by which it was given", async () => {
  await using byVariable = new Command(["serve"], { ...SMALL, STEPD_PORT: "x" });
  const variable = await byVariable.ended;
  assert.equal(variable.code, 2);
  assert.match(variable.stderr, /^stepd: STEPD_PORT: expected a whole number from 0 to 65535, found "x"\n$/);
  await using byOption = new Command(["serve", "--tls-cert-file", "cert.pem"], SMALL);
  const option = await byOption.ended;
  assert.equal(option.code, 2);
  assert.match(option.stderr, /^stepd: STEPD_TLS_KEY_FILE: expected the key of --tls-cert-file, found none\n$/);
});

test("a port in use is a failure, not wrong usage", async () => {
  const taken = net.createServer().listen(0, "127.0.0.1");
  try {
    await new Promise((resolve) => taken.once("listening", resolve));
    const { port } = taken.address() as net.AddressInfo;
    await using server = new Command(["serve", "--port", String(port)], SMALL);
    const { code, stderr } = await server.ended;
    assert.equal(code, 1);
    assert.equal(stderr, `stepd: --port: expected a free port on 127.0.0.1, found ${port} in use\n`);
  } finally {
    taken.close();
  }
});
