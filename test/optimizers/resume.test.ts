/**
 * Tests exact resume: N steps, a state saved to disk and loaded in another process, and N more steps give the bytes of 2N
 * steps.
 */
import assert from "node:assert/strict";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { SMALL as ODD, run, startParams } from "../support/run.ts";
import { TestService } from "../support/service.ts";
import { writeTensors } from "../support/tensors.ts";
import { narrowVariants, variants } from "../support/variants.ts";

const N = 3;

/** The largest tensor has moments in 8 bits with state_dtype Q8. */
const SMALL = { ...ODD, coded: [4200] } as const;
const narrow = narrowVariants.filter(({ optimizer: { name } }) => name === "adamw");

let folder: string;
let first: TestService;
let second: TestService;
before(async () => {
  folder = await mkdtemp(join(tmpdir(), "stepd-resume-"));
  first = await TestService.start();
  second = await TestService.start();
});
after(async () => {
  await first[Symbol.asyncDispose]();
  await second[Symbol.asyncDispose]();
  await rm(folder, { recursive: true });
});

for (const { label, optimizer } of [...variants, ...narrow]) {
  test(`resume is exact: ${label}`, async () => {
    const straight = await run(first, { optimizer, shapes: SMALL, steps: 2 * N });
    const half = await run(first, { optimizer, shapes: SMALL, steps: N });
    const files = { params: join(folder, `${label}.params`), state: join(folder, `${label}.state`) };
    await writeFile(files.params, half.params);
    await writeFile(files.state, half.state);
    const resumed = await run(second, {
      optimizer,
      shapes: SMALL,
      steps: N,
      from: N,
      params: await readFile(files.params),
      state: await readFile(files.state),
    });
    assert.ok(Buffer.from(resumed.params).equals(Buffer.from(straight.params)), "params");
    assert.ok(Buffer.from(resumed.state).equals(Buffer.from(straight.state)), "state");
    assert.equal(resumed.step, 2 * N);
  });
}

for (const { label, optimizer } of variants) {
  test(`${label}: a state from init gives the same start as no state`, async () => {
    const { state } = await first.call<{ state: Uint8Array }>("optimizer.init", { optimizer, params: writeTensors(startParams(SMALL)) });
    const fromInit = await run(first, { optimizer, shapes: SMALL, steps: 2, state });
    const fromNothing = await run(first, { optimizer, shapes: SMALL, steps: 2 });
    assert.ok(Buffer.from(fromInit.params).equals(Buffer.from(fromNothing.params)), "params");
    assert.ok(Buffer.from(fromInit.state).equals(Buffer.from(fromNothing.state)), "state");
  });
}
