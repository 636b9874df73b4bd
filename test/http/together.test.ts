/** Small replies of one turn go out at its end, and nobody waits for too many others. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { setImmediate as turn } from "node:timers/promises";
import { Together } from "../../src/http/_together.ts";

/** Lets so many wait, and returns how many go before the turn ends and how many have gone after it. */
const waitAll = async (together: Together, count: number): Promise<{ readonly before: number; readonly after: number }> => {
  let gone = 0;
  const all = Array.from({ length: count }, () => together.wait().then(() => gone++));
  await Promise.resolve();
  await Promise.resolve();
  const before = gone;
  await turn();
  const after = gone;
  await Promise.all(all);
  return { before, after };
};

test("those of a turn go at its end, of many the first before it", async () => {
  const together = new Together();
  for (const [count, before] of [
    [1, 0],
    [31, 0],
    [32, 32],
    [33, 32],
    [100, 96],
  ] as const) {
    assert.deepEqual(await waitAll(together, count), { before, after: count }, `${count}`);
  }
});
