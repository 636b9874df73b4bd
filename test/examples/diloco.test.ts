/**
 * Tests the DiLoCo example as a user runs it: a worker is killed, then the coordinator, and the run that goes on from its file has the
 * bytes of a run whose coordinator lived. The example itself compares each outer step with torch's.
 */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { TestService } from "../support/service.ts";
import { runExample } from "./_run.ts";

const ROUNDS = 4;
const OPTIONS = ["--rounds", `${ROUNDS}`, "--local-steps", "4", "--fragments", "2", "--kill-worker", "3@2"];
const STEPS = 'stepd_request_seconds_count{method="optimizer.step",outcome="ok"}';

let service: TestService;
before(async () => {
  service = await TestService.start();
});
after(async () => {
  await service[Symbol.asyncDispose]();
});

const run = async (...options: readonly string[]): Promise<string> => {
  const { code, out, log } = await runExample("diloco", [...OPTIONS, ...options], service.url);
  assert.equal(code, 0, out + log);
  assert.match(out, /^worker 3 lost in round 2, 3 go on$/m);
  assert.match(out, /^momentum buffers equal torch's bit for bit$/m);
  return out;
};

const found = (out: string, pattern: RegExp): string => pattern.exec(out)?.[1] ?? assert.fail(out);
const digestIn = (out: string): string => found(out, /^sha256 of parameters and states ([0-9a-f]{64})$/m);

test("a killed coordinator resumes to equal bytes, the run goes on without a lost worker, and DiLoCo sends less than DDP", async () => {
  const whole = await run();
  assert.equal(await service.metric(STEPS), ROUNDS);
  assert.doesNotMatch(whole, /coordinator killed/);
  const [before, diloco, ddp] = [/^loss before (\S+)$/m, /^DiLoCo loss (\S+)/m, /^DDP loss (\S+)/m].map((pattern) => Number(found(whole, pattern))) as [
    number,
    number,
    number,
  ];
  assert.ok(diloco < before - 1 && ddp < before - 1, whole);
  const [sent, reduced] = [/^DiLoCo .* bytes (\d+)$/m, /^DDP .* bytes (\d+)$/m].map((pattern) => Number(found(whole, pattern))) as [number, number];
  assert.ok(sent < reduced / 2, whole);

  const resumed = await run("--kill-coordinator", "3", "--no-ddp");
  assert.match(resumed, /^coordinator killed$/m);
  assert.match(resumed, /^coordinator resumed after round 3$/m);
  assert.equal(digestIn(resumed), digestIn(whole));
  assert.equal(await service.metric(STEPS), 2 * ROUNDS);
});
