/** Tests TLS files: the service refuses mismatches at its start and at a renewal, and reports the validity of certificates. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import http from "node:http";
import https from "node:https";
import type { AddressInfo } from "node:net";
import os from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import tls from "node:tls";
import type { Response } from "express";
import { OutgoingReply } from "../../src/http/_pace.ts";
import { readTls } from "../../src/http/tls.ts";
import { TestService } from "../support/service.ts";

const scratch = mkdtempSync(join(os.tmpdir(), "stepd-tls-"));
after(() => rmSync(scratch, { recursive: true }));

interface Pair {
  readonly cert: string;
  readonly key: string;
}

const KEYS = { ec: ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"], rsa: ["rsa:2048"] } as const;

const openssl = (...args: readonly string[]): void => {
  const { status, stderr } = spawnSync("openssl", args, { encoding: "utf8", cwd: scratch });
  assert.equal(status, 0, stderr);
};

const pathsOf = (name: string): Pair => ({ cert: join(scratch, `${name}.pem`), key: join(scratch, `${name}.key`) });

/** Makes a key and a self-signed certificate, valid for 30 days. */
const make = (name: string, type: keyof typeof KEYS): Pair => {
  const { cert, key } = pathsOf(name);
  openssl("req", "-x509", "-newkey", ...KEYS[type], "-nodes", "-days", "30", "-subj", `/CN=${name}`, "-keyout", key, "-out", cert);
  return { cert, key };
};

const AUTHORITY = "[ca]\ndefault_ca=d\n[d]\ndatabase=index\nnew_certs_dir=.\nrand_serial=yes\ndefault_md=sha256\npolicy=p\n[p]\ncommonName=supplied\n";

/** Makes a certificate for the given dates (YYYYMMDDHHMMSSZ). Only an authority can choose the start date. */
const makeDated = (name: string, from: string, to: string): Pair => {
  const { cert, key } = pathsOf(name);
  writeFileSync(join(scratch, "index"), "");
  writeFileSync(join(scratch, "authority"), AUTHORITY);
  openssl("req", "-new", "-newkey", ...KEYS.ec, "-nodes", "-subj", `/CN=${name}`, "-keyout", key, "-out", `${name}.csr`);
  openssl(
    ...["ca", "-config", "authority", "-batch", "-notext", "-selfsign", "-keyfile", key, "-in", `${name}.csr`, "-out", cert],
    ...["-startdate", from, "-enddate", to],
  );
  return { cert, key };
};

const ec = make("ec", "ec");
const rsa = make("rsa", "rsa");
const other = make("other", "ec");

/** Writes a text to a file and returns its path. */
const file = (name: string, text: string): string => {
  const path = join(scratch, name);
  writeFileSync(path, text);
  return path;
};

const textOf = (path: string): string => readFileSync(path, "utf8");

/** Replaces a file atomically. */
const replace = (path: string, text: string): void => {
  writeFileSync(`${path}.new`, text);
  renameSync(`${path}.new`, path);
};

const envOf = ({ cert, key }: Pair, clientCa = "") => ({
  STEPD_TLS_CERT_FILE: cert,
  STEPD_TLS_KEY_FILE: key,
  ...(clientCa !== "" && { STEPD_TLS_CLIENT_CA_FILE: clientCa }),
});

const broken = file("broken.pem", "-----BEGIN CERTIFICATE-----\nbm9uZQ==\n-----END CERTIFICATE-----\n");

const refused: Readonly<Record<string, readonly [Pair, string, RegExp]>> = {
  "a key of another type": [{ cert: ec.cert, key: rsa.key }, "", /^STEPD_TLS_KEY_FILE: expected the private key .*\(ec\), found another key \(rsa\)$/],
  "and the other way round": [{ cert: rsa.cert, key: ec.key }, "", /^STEPD_TLS_KEY_FILE: .*\(rsa\), found another key \(ec\)$/],
  "another key of the same type": [{ cert: ec.cert, key: other.key }, "", /^STEPD_TLS_KEY_FILE: .*\(ec\), found another key \(ec\)$/],
  "a file that is not there": [{ cert: join(scratch, "no"), key: ec.key }, "", /^STEPD_TLS_CERT_FILE: .*ENOENT/],
  "a key that is not there": [{ cert: ec.cert, key: join(scratch, "no") }, "", /^STEPD_TLS_KEY_FILE: .*ENOENT/],
  "a key in the place of the certificate": [{ cert: ec.key, key: ec.key }, "", /^STEPD_TLS_CERT_FILE: expected certificates in PEM, found none$/],
  "a certificate in the place of the key": [{ cert: ec.cert, key: ec.cert }, "", /^STEPD_TLS_KEY_FILE: expected a private key in PEM/],
  "an empty certificate": [{ cert: file("empty", ""), key: ec.key }, "", /^STEPD_TLS_CERT_FILE: .*found none$/],
  "a certificate cut in two": [{ cert: file("half", textOf(ec.cert).slice(0, 300)), key: ec.key }, "", /^STEPD_TLS_CERT_FILE: .*found none$/],
  "a chain with a broken link": [{ cert: file("chain", textOf(ec.cert) + textOf(broken)), key: ec.key }, "", /^STEPD_TLS_CERT_FILE: .*broken one at place 2/],
  "the chain's other end first": [{ cert: file("order", textOf(other.cert) + textOf(ec.cert)), key: ec.key }, "", /^STEPD_TLS_KEY_FILE: .*first certificate/],
  "authorities that are none": [ec, file("ca", "# none\n"), /^STEPD_TLS_CLIENT_CA_FILE: expected certificates in PEM, found none$/],
  "broken authorities": [ec, broken, /^STEPD_TLS_CLIENT_CA_FILE: .*broken one at place 1/],
};

for (const [name, [{ cert, key }, clientCa, message]] of Object.entries(refused)) {
  test(`${name} is refused in one line that names the setting`, () => {
    assert.throws(() => readTls({ cert, key, clientCa }), { message });
    assert.throws(
      () => readTls({ cert, key, clientCa }),
      (error: Error) => !error.message.includes("\n"),
    );
  });
}

test("a mismatched pair stops the start", async () => {
  await assert.rejects(TestService.start(envOf({ cert: ec.cert, key: rsa.key })), /stepd: STEPD_TLS_KEY_FILE: [^\n]*\n$/);
});

/** Returns the common name of the certificate that the service presents. */
const presentedName = (service: TestService): Promise<string> =>
  new Promise((resolve, reject) => {
    const socket = tls.connect({ port: Number(new URL(service.url).port), host: "127.0.0.1", rejectUnauthorized: false }, () => {
      resolve(String(socket.getPeerCertificate().subject.CN));
      socket.destroy();
    });
    socket.on("error", reject);
  });

const untilLogged = async (service: TestService, text: string): Promise<void> => {
  while (!service.log.join("").includes(text)) await delay(20);
};

const expiryOf = async (service: TestService, name: string): Promise<number> => {
  const text = await (await fetch(`${service.admin}/metrics`)).text();
  return Number(new RegExp(`^stepd_tls_expiry_timestamp_seconds\\{file="${name}"\\} (.*)$`, "m").exec(text)?.[1]);
};

test("a half-finished renewal to another key type is not used: the old pair stays until both files match", async () => {
  const pair = { cert: file("served.pem", textOf(ec.cert)), key: file("served.key", textOf(ec.key)) };
  await using service = await TestService.start({ ...envOf(pair), STEPD_ADMIN_PORT: "0", STEPD_LOG_LEVEL: "info" });
  assert.equal(await presentedName(service), "ec");
  replace(pair.cert, textOf(rsa.cert));
  await untilLogged(service, "is not taken");
  assert.match(service.log.join(""), /STEPD_TLS_KEY_FILE: expected the private key of the first certificate \(rsa\), found another key \(ec\)/);
  assert.equal(await presentedName(service), "ec");
  replace(pair.key, textOf(rsa.key));
  await untilLogged(service, "was taken over");
  assert.equal(await presentedName(service), "rsa");
});

test("expired and not yet valid certificates give a warning, and the expiry is a metric", async () => {
  const expired = makeDated("expired", "20200101000000Z", "20200201000000Z");
  const early = makeDated("early", "20990101000000Z", "20990201000000Z");
  const authorities = file("authorities.pem", textOf(early.cert) + textOf(other.cert));
  const pair = { cert: file("times.pem", textOf(expired.cert)), key: file("times.key", textOf(expired.key)) };
  await using service = await TestService.start({ ...envOf(pair, authorities), STEPD_ADMIN_PORT: "0", STEPD_LOG_LEVEL: "info" });
  const lines = service.log
    .join("")
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as Record<string, unknown>);
  const warned = lines.filter(({ level }) => level === 40).map(({ file, subject, msg }) => [file, subject, msg]);
  assert.deepEqual(warned, [
    ["certificate", "CN=expired", "a certificate has expired"],
    ["client_ca", "CN=early", "a certificate is not valid yet"],
  ]);
  assert.equal(await expiryOf(service, "certificate"), Date.UTC(2020, 1, 1) / 1000);
  const left = (await expiryOf(service, "client_ca")) - Date.now() / 1000;
  assert.ok(left > 29 * 86400 && left < 31 * 86400, "of several the first");
  replace(pair.cert, textOf(early.cert));
  replace(pair.key, textOf(early.key));
  await untilLogged(service, '"file":"certificate","subject":"CN=early"');
  assert.equal(await expiryOf(service, "certificate"), Date.UTC(2099, 1, 1) / 1000);
});

test("without TLS the expiry metric is 0", async () => {
  await using service = await TestService.start({ STEPD_ADMIN_PORT: "0" });
  assert.deepEqual([await expiryOf(service, "certificate"), await expiryOf(service, "client_ca")], [0, 0]);
});

for (const scheme of ["http", "https"] as const) {
  test(`the bytes of a reply that has left are known while its caller reads, over ${scheme}`, async () => {
    const length = 12 * 2 ** 20;
    const measured: number[] = [];
    const serve = (req: http.IncomingMessage, res: http.ServerResponse): void => {
      const outgoing = new OutgoingReply(Object.assign(res, { req }) as unknown as Response, length, undefined, () => {});
      res.writeHead(200, { "Content-Length": length });
      res.end(Buffer.alloc(length));
      const timer = setInterval(() => {
        if (!res.writableFinished) measured.push(outgoing.measure() ?? Number.NaN);
      }, 1);
      res.once("close", () => clearInterval(timer));
    };
    const server = scheme === "https" ? https.createServer({ cert: readFileSync(ec.cert), key: readFileSync(ec.key) }, serve) : http.createServer(serve);
    await once(server.listen(0, "127.0.0.1"), "listening");
    const { port } = server.address() as AddressInfo;
    const request = (scheme === "https" ? https : http).get({ port, host: "127.0.0.1", rejectUnauthorized: false });
    const [response] = (await once(request, "response")) as [http.IncomingMessage];
    for await (const _ of response) await delay(1);
    server.close();
    assert.ok(new Set(measured).size >= 3, `${[...new Set(measured)]}`);
    assert.deepEqual(
      measured,
      measured.toSorted((a, b) => a - b),
      "it never shrinks",
    );
    assert.ok(measured.every((bytes) => bytes >= 0 && bytes <= length * 1.01));
  });
}
