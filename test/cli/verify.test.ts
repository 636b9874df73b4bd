/** Tests `stepd verify`: ledgers of real steps, and the same ledgers after each kind of change. */
import assert from "node:assert/strict";
import { createHash, generateKeyPairSync } from "node:crypto";
import { appendFileSync, cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, mock, test } from "node:test";
import { parseArguments } from "../../src/cli/_command.ts";
import type { Problem } from "../../src/cli/_repeat.ts";
import { verify } from "../../src/cli/verify.ts";
import { readSafetensors } from "../../src/codec/safetensors.ts";
import type { Receipt } from "../../src/generated/wire.gen.ts";
import { gradsAt, SMALL, type StepReply, startParams } from "../support/run.ts";
import { TestService } from "../support/service.ts";
import { writeTensors } from "../support/tensors.ts";
import { Command, main, stepd } from "./_command.ts";

interface Reply extends StepReply {
  readonly receipt: Receipt;
  readonly grads: Uint8Array;
}

interface Report {
  readonly verified: boolean;
  readonly lines: number;
  readonly restarts: number;
  readonly torn_bytes: number;
  readonly repeated: number;
  readonly signed: Readonly<Record<string, number>>;
  readonly unsigned: number;
  readonly problems: readonly Problem[];
}

const STEPS = 5;
const scratch = mkdtempSync(join(tmpdir(), "stepd-verify-"));
const { publicKey, privateKey } = generateKeyPairSync("ed25519");
writeFileSync(join(scratch, "key.pem"), privateKey.export({ type: "pkcs8", format: "pem" }));
const key = join(scratch, "public.pem");
writeFileSync(key, publicKey.export({ type: "spki", format: "pem" }));

const optimizer = { name: "adamw", lr: 0.01 };
let service: TestService;

const sha256 = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");

/** A ledger with all its blobs, in a folder of its own. */
class LedgerFolder {
  readonly path = mkdtempSync(join(scratch, "run-"));
  readonly ledger = join(this.path, "ledger.jsonl");
  readonly blobs = join(this.path, "blobs");

  constructor(copied?: LedgerFolder) {
    if (copied) cpSync(copied.path, this.path, { recursive: true });
    else mkdirSync(this.blobs);
  }

  store(...blobs: readonly Uint8Array[]): void {
    for (const blob of blobs) writeFileSync(join(this.blobs, `${sha256(blob)}.safetensors`), blob);
  }

  append(value: unknown): void {
    appendFileSync(this.ledger, `${JSON.stringify(value)}\n`);
  }

  lines(): Receipt[] {
    return readFileSync(this.ledger, "utf8")
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line) as Receipt);
  }

  /** Replaces the lines of the ledger. */
  write(lines: readonly unknown[]): void {
    writeFileSync(this.ledger, lines.map((line) => `${JSON.stringify(line)}\n`).join(""));
  }

  /** Changes the last byte of a tensor in a blob. */
  spoil(digest: string | undefined, tensor: string): void {
    const path = join(this.blobs, `${digest}.safetensors`);
    const file = readFileSync(path);
    const info = readSafetensors(file, "", "TENSORS_CORRUPT").tensors.find(({ name }) => name === tensor);
    assert.ok(info);
    const at = info.offset + info.bytes - 1;
    file.writeUInt8(file.readUInt8(at) ^ 1, at);
    writeFileSync(path, file);
  }

  /** Verifies the ledger in this process. */
  async verify(...args: readonly string[]): Promise<Report> {
    const { values, args: names } = parseArguments(verify, [this.ledger, "--json", "--arena-mib", "16", ...args]);
    const log = mock.method(console, "log", () => {});
    try {
      const code = await verify.run(values as never, names);
      const report = JSON.parse(String(log.mock.calls[0]?.arguments[0])) as Report;
      assert.equal(code, report.verified ? 0 : 1);
      return report;
    } finally {
      log.mock.restore();
    }
  }
}

let honest: LedgerFolder;
before(async () => {
  service = await TestService.start({ STEPD_WORKERS: "1", STEPD_RECEIPT_KEY_FILE: join(scratch, "key.pem") });
  honest = new LedgerFolder();
  let [params, state]: [Uint8Array, Uint8Array | null] = [writeTensors(startParams(SMALL)), null];
  for (let step = 0; step < STEPS; step++) {
    const grads = writeTensors(gradsAt(SMALL, step));
    const reply: Reply = await service.call<Reply>("optimizer.step", { optimizer, params, grads, state, receipt: true });
    honest.store(params, grads, reply.params, reply.state);
    honest.append(reply.receipt);
    [params, state] = [reply.params, reply.state];
  }
});
after(async () => {
  await service[Symbol.asyncDispose]();
  rmSync(scratch, { recursive: true, force: true });
});

test("another process with other workers and without AVX verifies a run", async () => {
  await using command = new Command(["verify", honest.ledger, "--key", key, "--blobs", honest.blobs, "--workers", "2", "--arena-mib", "16"], {}, [
    process.execPath,
    "--no-liftoff",
    "--no-enable-avx",
    "--no-enable-avx2",
    main,
  ]);
  const { code, stdout, stderr } = await command.ended;
  assert.equal(code, 0, stdout + stderr);
  assert.match(stdout, /5 lines, 5 steps, the last is step 5$/m);
  assert.match(stdout, /^signed: 5 receipts by key [0-9a-f]{64}$/m);
  assert.match(stdout, /^repeated: 5 lines\nverified$/m);
});

test("a command with an arena of 4 GiB hashes large blobs on another thread, and waits for them", async () => {
  const folder = new LedgerFolder();
  const shapes = { w: [40_000] };
  const [params, grads] = [writeTensors(startParams(shapes)), writeTensors(gradsAt(shapes, 0))];
  folder.store(params, grads);
  folder.append((await service.call<Reply>("optimizer.step", { optimizer, params, grads, receipt: true })).receipt);
  const { code, stdout, stderr } = await stepd("verify", folder.ledger, "--blobs", folder.blobs, "--arena-mib", "4096");
  assert.equal(code, 0, stdout + stderr);
  assert.match(stdout, /^repeated: 1 line\nverified$/m);
});

test("gradients and the first parameters are enough, and a sample repeats some lines", async () => {
  const folder = new LedgerFolder(honest);
  const needed = folder.lines().flatMap(({ inputs }, index) => (index === 0 ? Object.values(inputs) : (inputs["grads"] as string)));
  for (const file of readdirSync(folder.blobs)) if (!needed.some((digest) => file.startsWith(digest))) rmSync(join(folder.blobs, file));
  assert.equal((await folder.verify("--blobs", folder.blobs)).repeated, STEPS);
  assert.equal((await folder.verify("--blobs", folder.blobs, "--sample", "3")).repeated, 1, "the lines with all inputs");
  const sample = await honest.verify("--blobs", honest.blobs, "--sample", "3");
  assert.deepEqual([sample.repeated, sample.verified], [3, true]);
});

/** Each kind of change, and the first problem that names it. */
const changes: Readonly<Record<string, { change(folder: LedgerFolder): void; args?: "key" | "blobs"; problem: Partial<Problem> }>> = {
  "a byte of a gradient": {
    change: (folder) => folder.spoil(folder.lines()[2]?.inputs["grads"], "w"),
    args: "blobs",
    problem: { line: 3, step: 3, check: "blob", field: "grads" },
  },
  "a byte of a state": {
    change: (folder) => folder.spoil(folder.lines()[2]?.inputs["state"], "exp_avg_sq/b"),
    args: "blobs",
    problem: { line: 3, step: 3, check: "blob", field: "state", tensors: ["exp_avg_sq/b"] },
  },
  "a byte of the first parameters": {
    change: (folder) => folder.spoil(folder.lines()[0]?.inputs["params"], "b"),
    args: "blobs",
    problem: { line: 1, step: 1, check: "blob", field: "params" },
  },
  "an option of a signed receipt": {
    change: (folder) =>
      folder.write(folder.lines().map((receipt, index) => (index === 1 ? { ...receipt, options: { ...receipt.options, loss_scale: 2 } } : receipt))),
    args: "key",
    problem: { line: 2, step: 2, check: "signature" },
  },
  "an option of an unsigned receipt": {
    change: (folder) =>
      folder.write(folder.lines().map((receipt, index) => (index === 1 ? { ...receipt, options: { ...receipt.options, loss_scale: 2 } } : receipt))),
    args: "blobs",
    problem: { line: 2, step: 2, check: "repeat", field: "outputs/params", tensors: ["b", "big", "scale", "w"] },
  },
  "the parameters that a step returned": {
    change: (folder) =>
      folder.write(
        folder.lines().map((receipt, index) => (index === 1 ? { ...receipt, outputs: { ...receipt.outputs, params: sha256(Buffer.alloc(1)) } } : receipt)),
      ),
    problem: { line: 3, step: 3, check: "chain", field: "inputs/params" },
  },
  "a step that is left out": {
    change: (folder) => folder.write(folder.lines().toSpliced(2, 1)),
    problem: { line: 3, step: 4, check: "chain", field: "inputs/params" },
  },
  "a step's number": {
    change: (folder) => folder.write(folder.lines().map((receipt, index) => (index === 4 ? { ...receipt, step: 7 } : receipt))),
    problem: { line: 5, step: 7, check: "chain", field: "step" },
  },
  "a revision": {
    change: (folder) => folder.write(folder.lines().map((receipt) => ({ ...receipt, revisions: { adamw: 99 } }))),
    args: "blobs",
    problem: { line: 1, check: "repeat", field: "revisions/adamw" },
  },
  "a signature that is removed": {
    change: (folder) => folder.write(folder.lines().map(({ signature: _, key: _k, ...receipt }) => receipt)),
    args: "key",
    problem: { line: 1, check: "signature" },
  },
  "a field that no receipt has": { change: (folder) => folder.append({ ...folder.lines()[4], note: 1 }), problem: { line: 6, check: "form" } },
  "a blob that is missing": {
    change: (folder) => rmSync(join(folder.blobs, `${folder.lines()[3]?.inputs["grads"]}.safetensors`)),
    args: "blobs",
    problem: { line: 4, step: 4, check: "blob", field: "grads" },
  },
};

for (const [what, { change, args, problem }] of Object.entries(changes)) {
  test(`a change is found and named: ${what}`, async () => {
    const folder = new LedgerFolder(honest);
    change(folder);
    const { verified, problems } = await folder.verify(...(args === "key" ? ["--key", key] : args === "blobs" ? ["--blobs", folder.blobs] : []));
    assert.equal(verified, false);
    const found = problems[0] as Problem;
    const named = Object.fromEntries(Object.keys(problem).map((name) => [name, found[name as keyof Problem]]));
    assert.deepEqual({ ...named, ...(named["tensors"] && { tensors: [...(named["tensors"] as string[])].sort() }) }, problem, found.message);
  });
}

test("a changed gradient is traced to its tensor by the results", async () => {
  const folder = new LedgerFolder(honest);
  folder.spoil(folder.lines()[2]?.inputs["grads"], "w");
  const { problems } = await folder.verify("--blobs", folder.blobs);
  const params = problems.find(({ field }) => field === "outputs/params");
  assert.deepEqual([params?.line, params?.tensors], [3, ["w"]]);
});

test("a torn last line does not count, and a run may go on from an earlier step", async () => {
  const folder = new LedgerFolder(honest);
  for (const receipt of folder.lines().slice(2)) folder.append(receipt);
  appendFileSync(folder.ledger, '{"format":"stepd.rec');
  const { verified, restarts, torn_bytes: torn, lines } = await folder.verify("--key", key, "--blobs", folder.blobs);
  assert.deepEqual({ verified, restarts, torn, lines }, { verified: true, restarts: 1, torn: 20, lines: STEPS + 3 });
});

test("the parts of a step join: their chains, their options and the norm over all gradients", async () => {
  const shards = [{ w: SMALL.w, b: SMALL.b }, { big: SMALL.big }];
  const build = async (norm: number | undefined): Promise<LedgerFolder> => {
    const folder = new LedgerFolder();
    let parts = shards.map((shapes) => ({ params: writeTensors(startParams(shapes)) as Uint8Array, state: null as Uint8Array | null }));
    for (let step = 0; step < 2; step++) {
      const grads = shards.map((shapes) => writeTensors(gradsAt(shapes, step)));
      const sums: Record<string, number> = {};
      for (const each of grads) {
        const { tensors } = await service.call<{ tensors: Record<string, { grad_squares: number }> }>("optimizer.norms", { grads: each });
        for (const [name, { grad_squares: squares }] of Object.entries(tensors)) sums[name] = squares;
      }
      const total = Math.sqrt(
        Object.keys(sums)
          .sort()
          .reduce((sum, name) => sum + (sums[name] as number), 0),
      );
      const receipts: Receipt[] = [];
      const next: typeof parts = [];
      for (const [index, part] of parts.entries()) {
        const call = { optimizer, ...part, grads: grads[index], clip: { max_norm: 0.5, total_norm: norm ?? total }, receipt: { index, count: parts.length } };
        const reply: Reply = await service.call<Reply>("optimizer.step", call);
        folder.store(part.params, grads[index] as Uint8Array, reply.params, reply.state);
        receipts.push(reply.receipt);
        next.push({ params: reply.params, state: reply.state });
      }
      folder.append(receipts);
      parts = next;
    }
    return folder;
  };
  const sharded = await build(undefined);
  const { verified, repeated, problems: none } = await sharded.verify("--key", key, "--blobs", sharded.blobs);
  assert.deepEqual([verified, repeated], [true, 2], JSON.stringify(none));
  const wrong = await build(3);
  const [problem] = (await wrong.verify("--blobs", wrong.blobs)).problems;
  assert.deepEqual([problem?.line, problem?.check, problem?.field], [1, "repeat", "options/clip/total_norm"]);
  const [first, second] = sharded.lines() as unknown as [Receipt[], Receipt[]];
  sharded.write([first, second.slice(0, 1)]);
  assert.match((await sharded.verify()).problems[0]?.message ?? "", /expected part 0 of 1, found 0 of 2/);
  sharded.write([first, second.toReversed()]);
  assert.match((await sharded.verify()).problems[0]?.message ?? "", /expected part 0 of 2, found 1 of 2/);
});

test("an initial state, a reduction and the step from its result are a chain", async () => {
  const folder = new LedgerFolder();
  const params = writeTensors(startParams(SMALL));
  const init = await service.call<Reply>("optimizer.init", { optimizer, params, receipt: true });
  const updates = [0, 1].map((index) => ({ tensors: writeTensors(gradsAt(SMALL, index)), weight: index + 1 }));
  const reduced = await service.call<Reply>("optimizer.reduce", { updates, form: "gradients", receipt: true });
  const norms = await service.call<Reply>("optimizer.norms", { grads: reduced.grads, receipt: true });
  const step = await service.call<Reply>("optimizer.step", { optimizer, params, grads: reduced.grads, state: init.state, receipt: true });
  const second = await service.call<Reply>("optimizer.step", {
    optimizer,
    params: step.params,
    reduce: { updates, form: "gradients" },
    state: step.state,
    receipt: true,
  });
  folder.store(params, ...updates.map(({ tensors }) => tensors), reduced.grads, init.state);
  const all = [init, reduced, norms, step, second].map(({ receipt }) => receipt);
  folder.write(all);
  const { verified, repeated, problems } = await folder.verify("--key", key, "--blobs", folder.blobs);
  assert.deepEqual([verified, repeated], [true, 5], JSON.stringify(problems));
  folder.write([init.receipt, reduced.receipt, second.receipt]);
  assert.equal((await folder.verify()).problems[0]?.check, "chain");
});

test("wrong usage and unreadable files are one line each", async () => {
  const text = join(scratch, "text");
  writeFileSync(text, "no key\n");
  const failure = async (code: number, pattern: RegExp, ...args: readonly string[]): Promise<void> => {
    const ended = await stepd("verify", ...args);
    assert.deepEqual([ended.code, pattern.test(ended.stderr), ended.stderr.trim().split("\n").length], [code, true, 1], ended.stderr);
  };
  await failure(1, /none\.jsonl: expected a file, found none/, join(scratch, "none.jsonl"));
  await failure(1, /text: expected a public Ed25519 key in PEM/, honest.ledger, "--key", text);
  await failure(2, /--sample: expected --blobs/, honest.ledger, "--sample", "3");
  const empty = new LedgerFolder();
  empty.write([]);
  assert.match((await empty.verify()).problems[0]?.message ?? "", /no receipt/);
});
