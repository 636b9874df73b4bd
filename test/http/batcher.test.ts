/**
 * Tests the reply batcher: it sends the small replies of one event loop turn together at the turn's end, or earlier if there
 * are many.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { setImmediate as turn } from "node:timers/promises";
import { ReplyBatcher } from "../../src/http/_batcher.ts";

/** Starts `count` waits. Returns how many of them ended before the end of the turn, and how many after it. */
const waitAll = async (batcher: ReplyBatcher, count: number): Promise<{ readonly before: number; readonly after: number }> => {
  let gone = 0;
  const all = Array.from({ length: count }, () => batcher.wait().then(() => gone++));
  await Promise.resolve();
  await Promise.resolve();
  const before = gone;
  await turn();
  const after = gone;
  await Promise.all(all);
  return { before, after };
};

test("replies of a turn are sent at its end, and every 32 of them at once", async () => {
  const batcher = new ReplyBatcher();
  for (const [count, before] of [
    [1, 0],
    [31, 0],
    [32, 32],
    [33, 32],
    [100, 96],
  ] as const) {
    assert.deepEqual(await waitAll(batcher, count), { before, after: count }, `${count}`);
  }
});
