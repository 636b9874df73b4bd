/** Tests ledgers: real steps, whose ledgers `stepd verify` checks and repeats, and torn lines. */
import assert from "node:assert/strict";
import { appendFileSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { stepd } from "../../../test/cli/_command.ts";
import { TestService } from "../../../test/support/service.ts";
import { randomTensors } from "../../../test/support/tensors.ts";
import { Client, Ledger, type Receipt, ShardedClient, type State, type Tensors } from "../src/index.ts";

const SHAPES = { weight: [30, 40], bias: [30] } as const;
const grads = (step: number): Tensors => randomTensors(SHAPES, 100 + step);
const optimizer = { name: "adamw", lr: 0.01 } as const;
const folder = mkdtempSync(join(tmpdir(), "stepd-ledger-"));

let service: TestService;
before(async () => {
  service = await TestService.start({ STEPD_WORKERS: "1" });
});
after(async () => {
  await service[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true, force: true });
});

const linesOf = (path: string): (Receipt | Receipt[])[] =>
  readFileSync(path, "utf8")
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as Receipt);

test("stepd verify repeats a ledger with its gradients, and a torn line is removed", async () => {
  const [path, blobs] = [join(folder, "run.jsonl"), join(folder, "blobs")];
  const client = new Client(service.url);
  let now: { params: Tensors; state?: State } = { params: randomTensors(SHAPES, 1) };
  for (const steps of [[0, 1], [2]]) {
    const ledger = new Ledger(path, { blobs });
    assert.equal(ledger.tornBytes, steps[0] === 0 ? 0 : 9);
    for (const step of steps) {
      const input = { optimizer, ...now, grads: grads(step), receipt: true };
      const result = await client.step(input);
      ledger.append(result, input);
      now = { params: result.params, state: result.state };
    }
    ledger.close();
    appendFileSync(path, '{"format"');
  }
  const { code, stdout, stderr } = await stepd("verify", path, "--blobs", blobs, "--arena-mib", "16");
  assert.equal(code, 0, stdout + stderr);
  assert.match(stdout, /^repeated: 3 lines\nthe last line is torn: its 9 bytes/m);
  assert.equal(readdirSync(blobs).length, 6, "three gradients, and parameters and state where a ledger was opened");
});

test("the parts of a sharded step are one line, and continue each other", async () => {
  const path = join(folder, "sharded.jsonl");
  const client = new ShardedClient([service.url], { requestBytes: 1000 });
  const ledger = new Ledger(path);
  const params = randomTensors(SHAPES, 1);
  let now: { params: Tensors; state: State } = { params, state: await new Client(service.url).init({ optimizer, params }) };
  for (let step = 0; step < 2; step++) {
    const result = await client.step({ optimizer, ...now, grads: grads(step), clip: { max_norm: 0.5 }, receipt: true });
    ledger.append(result);
    now = { params: result.params, state: result.state };
  }
  ledger.close();
  assert.deepEqual(
    linesOf(path).map((line) => (line as Receipt[]).map(({ part }) => part)),
    Array(2).fill([0, 1].map((index) => ({ index, count: 2 }))),
  );
  const { code, stdout } = await stepd("verify", path);
  assert.equal(code, 0, stdout);
});

test("a ledger refuses results without a receipt, changed tensors and wrong options", async () => {
  const client = new Client(service.url);
  const params = randomTensors(SHAPES, 1);
  const ledger = new Ledger(join(folder, "refused.jsonl"), { blobs: join(folder, "refused") });
  const input = { optimizer, params, grads: grads(0), receipt: true };
  const result = await client.step(input);
  assert.throws(() => ledger.append(result), /input: expected the tensors of the step/);
  (input.grads["bias"]?.data as Float32Array)[0] = 1;
  assert.throws(() => ledger.append(result, input), /grads: .*changed since the step/);
  const bare = await client.step({ ...input, receipt: false });
  assert.throws(() => ledger.append(bare, input), /receipt: true/);
  assert.throws(() => new Ledger(join(folder, "x"), { every: 0 }), /every: expected a whole number/);
  ledger.close();
  assert.equal(readFileSync(join(folder, "refused.jsonl"), "utf8"), "");
});
