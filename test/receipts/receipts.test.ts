/** Tests receipts over the wire: their digests in every form of request and reply, signatures, parts of a step, and errors. */
import assert from "node:assert/strict";
import { createHash, createPublicKey, generateKeyPairSync, verify } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { readSafetensors } from "../../src/codec/safetensors.ts";
import type { Receipt } from "../../src/generated/wire.gen.ts";
import { registry } from "../../src/optimizers/registry.ts";
import { canonicalBytes } from "../../src/receipts/canonical.ts";
import { validate } from "../../src/validation/validate.ts";
import { gradsAt, LARGE, SMALL, type StepReply, startParams } from "../support/run.ts";
import { JSON_TYPE, MSGPACK, pack, type RpcError, readReply, TestService } from "../support/service.ts";
import { writeTensors } from "../support/tensors.ts";

interface Reply extends StepReply {
  readonly receipt: Receipt;
  readonly cached?: { readonly params: { readonly handle: string }; readonly state: { readonly handle: string } };
}

const folder = mkdtempSync(join(tmpdir(), "stepd-receipts-"));
const keyFile = join(folder, "receipts.pem");
const { publicKey, privateKey } = generateKeyPairSync("ed25519");
writeFileSync(keyFile, privateKey.export({ type: "pkcs8", format: "pem" }), { mode: 0o600 });

let service: TestService;
before(async () => {
  service = await TestService.start({ STEPD_CACHE_MIB: "64", STEPD_RECEIPT_KEY_FILE: keyFile, STEPD_SHARED_DIR: folder });
});
after(async () => {
  await service[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true, force: true });
});

const sha256 = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");
const optimizer = { name: "adamw", lr: 0.01 };
const step = (call: object): Promise<Reply> => service.call<Reply>("optimizer.step", { optimizer, receipt: true, ...call });

/** Lists numbers in base 2, so that all texts of them are exact. */
const plain = (values: readonly number[]) => ({ w: { shape: [values.length], values } });

for (const [size, shapes] of Object.entries({ small: SMALL, large: LARGE })) {
  test(`a ${size} step has the digests of its blobs, and its results are those of a step without a receipt`, async () => {
    const params = writeTensors(startParams(shapes));
    const grads = writeTensors(gradsAt(shapes, 0));
    const expected = await service.call<StepReply>("optimizer.step", { optimizer, params, grads });
    const first = await step({ params, grads });
    assert.deepEqual([sha256(first.params), sha256(first.state)], [sha256(expected.params), sha256(expected.state)]);
    assert.deepEqual(first.receipt.inputs, { grads: sha256(grads), params: sha256(params) });
    assert.deepEqual(first.receipt.outputs, { params: sha256(first.params), state: sha256(first.state) });
    assert.deepEqual([first.receipt.step, first.receipt.skipped, first.receipt.method], [1, false, "optimizer.step"]);
    const second = await step({ params: first.params, state: first.state, grads });
    assert.deepEqual(second.receipt.inputs, { ...first.receipt.outputs, grads: sha256(grads) });
  });
}

test("a receipt is valid under its schema, is signed over its canonical bytes, and has all hyperparameters", async () => {
  const { receipt } = await step({ params: writeTensors(startParams(SMALL)), grads: writeTensors(gradsAt(SMALL, 0)), stats: "global" });
  validate("receipt.schema.json", receipt, "");
  const { signature, ...signed } = receipt;
  assert.ok(verify(null, canonicalBytes(signed), publicKey, Buffer.from(signature as string, "base64")));
  const defaults = Object.entries(registry.get("adamw")?.hyperparameters ?? {}).map(([name, { default: initial }]) => [name, initial]);
  assert.deepEqual(receipt.options, { optimizer: { ...Object.fromEntries(defaults), ...optimizer }, stats: "global" });
  const info = (await (await fetch(`${service.url}/v1`)).json()) as { version: string; receipt_key: { name: string; public_key: string } };
  assert.equal(receipt.version, info.version);
  assert.equal(receipt.key, info.receipt_key.name);
  assert.equal(receipt.key, sha256(createPublicKey(info.receipt_key.public_key).export({ type: "spki", format: "der" })));
});

test("the canonical bytes follow RFC 8785: its example of keys and numbers", () => {
  const receipt = { numbers: [333333333.3333333, 1e30, 4.5, 2e-3, 0.000000000000000000000000001], "\u20ac": "Euro Sign", "1": "One", "\r": "\u000f" };
  const expected = '{"\\r":"\\u000f","1":"One","numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],"€":"Euro Sign"}';
  assert.equal(canonicalBytes(receipt as unknown as Receipt).toString(), expected);
});

test("JSON, MessagePack, REST, JSON-RPC, base64, files, handles and lists of numbers give the same digests", async () => {
  const params = writeTensors(startParams(SMALL));
  const grads = writeTensors(gradsAt(SMALL, 0));
  const { receipt: expected } = await step({ params, grads });
  const call = { optimizer, receipt: true };
  const rest = await readReply(await service.post("/v1/step", pack({ ...call, params, grads }), MSGPACK));
  assert.deepEqual((rest as Reply).receipt, expected, "REST");
  const base64 = (bytes: Uint8Array): string => Buffer.from(bytes).toString("base64");
  const json = await service.post("/v1/step", JSON.stringify({ ...call, params: base64(params), grads: base64(grads) }), JSON_TYPE);
  assert.deepEqual(((await json.json()) as Reply).receipt, expected, "JSON");
  writeFileSync(join(folder, "step.bin"), Buffer.concat([params, grads]));
  const file = (offset: number, length: number) => ({ file: "step.bin", offset, length });
  const place = { reply: { into: { params: file(0, params.length) } } };
  const shared = await step({ params: file(0, params.length), grads: file(params.length, grads.length), ...place });
  assert.deepEqual(shared.receipt, expected, "files");
  const kept = await step({ params, grads, reply: { cache: true, params: "none", state: "none" } });
  assert.deepEqual(kept.receipt, expected, "results that stay in the cache");
  const named = await step({ ...kept.cached, grads });
  const whole = await service.call<StepReply>("optimizer.step", { optimizer, params, grads });
  const sent = await step({ params: whole.params, state: whole.state, grads });
  assert.deepEqual(named.receipt, sent.receipt, "handles of results with a receipt");
  const unhashed = await service.call<Reply>("optimizer.step", { optimizer, params, grads, reply: { cache: true } });
  for (const _ of ["hashed", "remembered"])
    assert.deepEqual((await step({ ...unhashed.cached, grads })).receipt, sent.receipt, "handles of results without one");
});

test("lists of numbers have the digest of the canonical safetensors file", async () => {
  const call = { optimizer, params: plain([0.5, -1.25, 3]), grads: plain([1, 2, -0.5]), receipt: true };
  const reply = (await (await service.post("/v1/step", JSON.stringify(call), JSON_TYPE)).json()) as Reply & { params: ReturnType<typeof plain> };
  const header = Buffer.from('{"__metadata__":{},"w":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}'.padEnd(80));
  const fileOf = (values: readonly number[]): Buffer => {
    const length = Buffer.alloc(8);
    length.writeUInt32LE(header.length);
    return Buffer.concat([length, header, Buffer.from(new Float32Array(values).buffer)]);
  };
  assert.equal(readSafetensors(fileOf([0, 0, 0]), "", "TENSORS_CORRUPT").tensors.length, 1);
  assert.equal(reply.receipt.inputs["params"], sha256(fileOf([0.5, -1.25, 3])));
  assert.equal(reply.receipt.inputs["grads"], sha256(fileOf([1, 2, -0.5])));
  assert.equal(reply.receipt.outputs["params"], sha256(fileOf(reply.params.w.values)));
});

test("rounded parameters have a digest beside the whole ones, and a skipped step says so", async () => {
  const params = writeTensors(startParams(SMALL));
  const whole = await step({ params, grads: writeTensors(gradsAt(SMALL, 0)) });
  const rounded = await step({ params, grads: writeTensors(gradsAt(SMALL, 0)), reply: { params: "bf16", cache: true } });
  assert.deepEqual(rounded.receipt.outputs, { ...whole.receipt.outputs, rounded_params: sha256(rounded.params) });
  const nan = writeTensors({ w: { shape: SMALL.w, data: new Float32Array(33).fill(Number.NaN) } });
  const skipped = await step({ params, grads: nan, non_finite: "skip" });
  assert.deepEqual([skipped.receipt.skipped, skipped.receipt.step, skipped.receipt.outputs["params"]], [true, 0, sha256(params)]);
});

test("norms, init and reduce have receipts, and so does a step that reduces", async () => {
  const params = writeTensors(startParams(SMALL));
  const updates = [0, 1].map((index) => ({ tensors: writeTensors(gradsAt(SMALL, index)), weight: index + 1 }));
  const digests = updates.map(({ tensors }) => sha256(tensors));
  const norms = await service.call<Reply & { grad_norm: number }>("optimizer.norms", { grads: updates[0]?.tensors, loss_scale: 2, receipt: true });
  assert.deepEqual([norms.receipt.inputs, norms.receipt.grad_norm, norms.receipt.options], [{ grads: digests[0] }, norms.grad_norm, { loss_scale: 2 }]);
  const init = await service.call<Reply>("optimizer.init", { optimizer, params, receipt: true });
  assert.deepEqual([init.receipt.inputs, init.receipt.outputs, init.receipt.step], [{ params: sha256(params) }, { state: sha256(init.state) }, 0]);
  const reduction = { updates, form: "gradients" };
  const reduced = await service.call<Reply & { grads: Uint8Array }>("optimizer.reduce", { ...reduction, receipt: true });
  assert.deepEqual(reduced.receipt.inputs, { "updates/0/tensors": digests[0], "updates/1/tensors": digests[1] });
  assert.deepEqual(
    [reduced.receipt.outputs, reduced.receipt.options],
    [{ grads: sha256(reduced.grads) }, { form: "gradients", updates: [{ weight: 1 }, { weight: 2 }] }],
  );
  const first = await service.call<Reply & { accumulator: Uint8Array }>("optimizer.reduce", { ...reduction, finish: false, receipt: true });
  assert.deepEqual(first.receipt.outputs, { accumulator: sha256(first.accumulator) });
  const second = await service.call<Reply>("optimizer.reduce", { ...reduction, updates: [], accumulator: first.accumulator, receipt: true });
  assert.deepEqual(second.receipt.inputs, first.receipt.outputs);
  const both = await step({ params, reduce: reduction });
  assert.deepEqual(both.receipt.inputs, { params: sha256(params), "reduce/updates/0/tensors": digests[0], "reduce/updates/1/tensors": digests[1] });
  assert.equal(both.receipt.outputs["params"], (await step({ params, grads: reduced.grads })).receipt.outputs["params"]);
  for (const { receipt } of [norms, init, reduced, first, second, both]) validate("receipt.schema.json", receipt, "");
});

test("a receipt names its part of a step and the revisions of all optimizers", async () => {
  const call = { params: writeTensors(startParams(SMALL)), grads: writeTensors(gradsAt(SMALL, 0)) };
  const { receipt } = await step({ ...call, receipt: { index: 1, count: 4 } });
  assert.deepEqual([receipt.part, Object.keys(receipt.revisions)], [{ index: 1, count: 4 }, ["adamw"]]);
});

const requireError = async (call: object, name: string, field: string): Promise<void> => {
  const params = { optimizer, params: plain([1]), grads: plain([1]), ...call };
  const response = await service.post("/rpc", JSON.stringify({ jsonrpc: "2.0", id: 1, method: "optimizer.step", params }), JSON_TYPE);
  const { error } = (await response.json()) as { error: RpcError };
  assert.deepEqual([error.data.name, error.data.field], [name, field], error.message);
};

test("an option that is no receipt is refused, and so are options that a receipt cannot hold", async () => {
  await requireError({ receipt: 1 }, "INVALID_PARAMS", "/receipt");
  await requireError({ receipt: { index: 0 } }, "INVALID_PARAMS", "/receipt/count");
  await requireError({ receipt: { index: 2, count: 2 } }, "INVALID_PARAMS", "/receipt/index");
  await requireError({ receipt: true, groups: [{ tensors: ["\ud800"], optimizer: {} }] }, "INVALID_PARAMS", "/receipt");
  const many = Array.from({ length: 1500 }, (_, index) => `${index}`.padStart(1000, "n"));
  await requireError({ receipt: true, groups: [{ tensors: many, optimizer: {} }] }, "PAYLOAD_TOO_LARGE", "/receipt");
});

test("a failed call leaves the server as it was", async () => {
  const params = writeTensors(startParams(LARGE));
  const grads = writeTensors({ ...gradsAt(LARGE, 0), other: { shape: [1], data: new Float32Array(1) } });
  await assert.rejects(step({ params, grads }));
  assert.equal((await step({ params, grads: writeTensors(gradsAt(LARGE, 0)) })).receipt.step, 1);
});

test("a server does not start with a file that is no private Ed25519 key", async () => {
  const rsa = join(folder, "rsa.pem");
  writeFileSync(rsa, generateKeyPairSync("rsa", { modulusLength: 1024 }).privateKey.export({ type: "pkcs8", format: "pem" }));
  const publicFile = join(folder, "public.pem");
  writeFileSync(publicFile, publicKey.export({ type: "spki", format: "pem" }));
  for (const file of [rsa, publicFile, join(folder, "none.pem")])
    await assert.rejects(TestService.start({ STEPD_RECEIPT_KEY_FILE: file }), /STEPD_RECEIPT_KEY_FILE: (expected a private Ed25519 key in PEM|ENOENT)/);
});
