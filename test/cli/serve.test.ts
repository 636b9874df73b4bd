/** Tests `stepd serve`: settings as options, and the same behaviour as `npm start`. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { generateKeyPairSync } from "node:crypto";
import { chmodSync, existsSync } from "node:fs";
import net from "node:net";
import { join } from "node:path";
import { test } from "node:test";
import { settings } from "../../src/config.ts";
import { JSON_TYPE } from "../support/service.ts";
import { root } from "../support/tree.ts";
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

/** Runs `stepd serve --check` with small settings. */
const check = async (args: readonly string[], env: Readonly<Record<string, string>> = {}) => {
  await using command = new Command(["serve", "--check", ...args], { ...SMALL, STEPD_PORT: "0", ...env });
  return await command.ended;
};

/** Writes a self-signed certificate and its key. Returns their paths. */
const makeCertificate = (folder: Folder, name: string): { readonly cert: string; readonly key: string } => {
  const [cert, key] = [folder.at(`${name}.pem`), folder.at(`${name}.key`)];
  const key256 = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
  const { status, stderr } = spawnSync("openssl", ["req", "-x509", ...key256, "-subj", `/CN=${name}`, "-keyout", key, "-out", cert], { encoding: "utf8" });
  assert.equal(status, 0, stderr);
  return { cert, key };
};

test("--check reads every file, prints what the service would do, and exits with 0", async () => {
  using folder = new Folder();
  const { cert, key } = makeCertificate(folder, "train.example");
  const receiptKey = folder.write("receipt.key", generateKeyPairSync("ed25519").privateKey.export({ type: "pkcs8", format: "pem" }));
  const tokens = folder.write("tokens", "trainer-a 0123456789abcdef\ntrainer-a fedcba9876543210\ntrainer-b aaaaaaaabbbbbbbb calls=2\n");
  const env = {
    ...{ STEPD_TLS_CERT_FILE: cert, STEPD_TLS_KEY_FILE: key, STEPD_TLS_CLIENT_CA_FILE: cert },
    ...{ STEPD_RECEIPT_KEY_FILE: receiptKey, STEPD_SHARED_DIR: folder.path, STEPD_TOKEN: "0123456789abcdef" },
  };
  const { code, stdout, stderr } = await check(["--tokens-file", tokens, "--admin-port", "0", "--cache-mib", "4"], env);
  assert.deepEqual({ code, stderr }, { code: 0, stderr: "" }, stdout);
  for (const line of [
    /^setting +STEPD_ARENA_MIB=16, by its variable$/m,
    /^setting +STEPD_TOKENS_FILE=.*tokens, by --tokens-file$/m,
    /^calls +https:\/\/127\.0\.0\.1:0$/m,
    /^admin +http:\/\/127\.0\.0\.1:0$/m,
    /^memory +arena of 16 MiB, 1 worker, \d+ kernels, /m,
    /^cache +4 MiB of the arena$/m,
    /^tokens +3 tokens of 2 callers; trainer-b calls=2$/m,
    /^TLS +"CN=train\.example", valid until \d{4}-.*; callers need a certificate of an authority$/m,
    /^receipts +signed with the key [0-9a-f]{64}$/m,
    /^stepd \S+ would start$/m,
  ])
    assert.match(stdout, line);
  assert.ok(stdout.includes(`shared folder  ${folder.path}\n`), stdout);
  assert.doesNotMatch(stdout, /0123456789abcdef(?![0-9a-f])/, "no token is printed");
  const checkWithMode = (mode: number) => {
    chmodSync(tokens, mode);
    return check(["--tokens-file", tokens]);
  };
  assert.match((await checkWithMode(0o644)).stdout, /^warning: STEPD_TOKENS_FILE: every user of this machine may read \S+tokens \(mode 0644\)/m);
  assert.doesNotMatch((await checkWithMode(0o640)).stdout, /warning/);
});

test("--check reports every problem by the name of its setting, and exits with 1", async () => {
  using folder = new Folder();
  const tokens = folder.write("tokens", "trainer short\n");
  const args = ["--tokens-file", tokens, "--host", "192.0.2.1", "--shared-dir", folder.at("missing")];
  const { code, stdout, stderr } = await check(args, { STEPD_RECEIPT_KEY_FILE: tokens, STEPD_TLS_CERT_FILE: tokens, STEPD_TLS_KEY_FILE: tokens });
  assert.equal(code, 1, stdout);
  const names = stderr
    .trim()
    .split("\n")
    .map((line) => /^stepd: (\S+): /.exec(line)?.[1]);
  assert.deepEqual(names, ["--host", "--tokens-file", "STEPD_TLS_CERT_FILE", "STEPD_RECEIPT_KEY_FILE", "--shared-dir"]);
  assert.match(stdout, /^memory .*\n/m, "what can be read is reported");
  assert.match(stdout, /would not start: 5 problems$/m);
});

test("--check does not disturb a running service, and refuses a socket path that is a file", async () => {
  using folder = new Folder();
  const path = folder.at("stepd.sock");
  const free = await check(["--socket", path]);
  assert.match(free.stdout, /^calls +unix:\S+stepd\.sock$/m);
  assert.ok(!existsSync(path), "the check leaves no socket");
  await using server = new Command(["serve", "--socket", path], SMALL);
  await server.listening();
  const { code, stdout } = await check(["--socket", path]);
  assert.equal(code, 0);
  assert.match(stdout, /^calls +unix:\S+stepd\.sock, in use now$/m);
  assert.ok(existsSync(path));
  const refused = await check(["--socket", folder.write("file", "precious")]);
  assert.equal(refused.code, 1);
  assert.match(refused.stderr, /^stepd: --socket: expected a path to create a socket at/);
});

test("--check warns of an expired certificate and of the clients' token", async () => {
  using folder = new Folder();
  const openssl = (...args: readonly string[]): void => {
    const { status, stderr } = spawnSync("openssl", args, { encoding: "utf8", cwd: folder.path });
    assert.equal(status, 0, stderr);
  };
  const key = folder.at("old.key");
  folder.write("index", "");
  folder.write("ca", "[ca]\ndefault_ca=d\n[d]\ndatabase=index\nnew_certs_dir=.\nrand_serial=yes\ndefault_md=sha256\npolicy=p\n[p]\ncommonName=supplied\n");
  openssl("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=old", "-keyout", key, "-out", "old.csr");
  const dates = ["-startdate", "20200101000000Z", "-enddate", "20210101000000Z"];
  openssl("ca", "-config", "ca", "-batch", "-notext", "-selfsign", "-keyfile", key, "-in", "old.csr", "-out", "old.pem", ...dates);
  const { code, stdout } = await check(["--tls-cert-file", folder.at("old.pem"), "--tls-key-file", key], { STEPD_TOKEN: "0123456789abcdef" });
  assert.equal(code, 0, stdout);
  assert.match(stdout, /^warning: STEPD_TOKEN is a setting of clients/m);
  assert.match(stdout, /^warning: the certificate "CN=old" has expired, on 2021-01-01T00:00:00\.000Z$/m);
});

test("all invalid settings are reported at once", async () => {
  using folder = new Folder();
  const file = folder.write("stepd.env", "STEPD_CACHE_MIB=many\n");
  const { code, stderr } = await check(["--port", "70000"], {
    STEPD_SETTINGS_FILE: file,
    STEPD_LOG_LEVEL: "loud",
    STEPD_PROT: "1",
    STEPD_TLS_KEY_FILE: "key.pem",
  });
  const names = stderr.split("\n").map((line) => /^stepd: (.*): expected .*, found /.exec(line)?.[1]);
  assert.deepEqual(
    [code, names.sort()],
    [2, ["--port", `${file}: STEPD_CACHE_MIB`, "STEPD_LOG_LEVEL", "STEPD_PROT", "STEPD_TLS_CERT_FILE", undefined].sort()],
    stderr,
  );
});

test("--check of an invalid setting is wrong usage, as without it", async () => {
  const { code, stdout, stderr } = await check(["--port", "70000"]);
  assert.deepEqual([code, stdout], [2, ""]);
  assert.match(stderr, /^stepd: --port: expected a whole number from 0 to 65535, found "70000"\n$/);
});

test("npm start and the image take the same options, and the file of settings comes after the variables", async () => {
  using folder = new Folder();
  const file = folder.write("stepd.env", '# A comment.\nSTEPD_WORKERS=3\nSTEPD_PORT=1 # overridden\n\nexport STEPD_ARENA_MIB="8"\n');
  const program = [process.execPath, join(root, "src/main.ts")];
  const env = { STEPD_SETTINGS_FILE: file, STEPD_PORT: "2", STEPD_LOG_LEVEL: "warn" };
  await using server = new Command(["--port", "0"], env, program);
  const address = await server.listening();
  const { workers, limits } = (await (await fetch(`${address}/v1`)).json()) as { workers: number; limits: { arena_bytes: number } };
  assert.equal(workers, 3);
  assert.ok(limits.arena_bytes <= 8 * 2 ** 20);
  await using checked = new Command(["--check", "--port", "0"], env, program);
  const { code, stdout } = await checked.ended;
  assert.equal(code, 0);
  assert.match(stdout, /^setting +STEPD_PORT=0, by --port$/m);
  assert.ok(stdout.includes(`STEPD_WORKERS=3, by ${file}`), stdout);
});
