/** Tests the order in which jobs get the workers. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { setImmediate as turn } from "node:timers/promises";
import { JobQueue } from "../../src/pool/_queue.ts";

const SHORT = 1000;
const LONG = 2 ** 24;

/** Queues named jobs, and returns the order in which they ran. */
const runOrder = async (jobs: readonly (readonly [name: string, elements: number])[]): Promise<readonly string[]> => {
  const queue = new JobQueue();
  await queue.enter(SHORT);
  const order: string[] = [];
  const all = jobs.map(async ([name, elements]) => {
    await queue.enter(elements);
    order.push(name);
    await turn();
    queue.leave();
  });
  assert.equal(queue.length, jobs.length + 1);
  queue.leave();
  await Promise.all(all);
  assert.equal(queue.length, 0);
  return order;
};

test("jobs of similar size run in order of arrival", async () => {
  const names = ["a", "b", "c", "d"];
  for (const elements of [SHORT, LONG]) assert.deepEqual(await runOrder(names.map((name) => [name, elements])), names);
});

test("a short job overtakes all waiting long jobs", async () => {
  assert.deepEqual(
    await runOrder([
      ["long 1", LONG],
      ["long 2", LONG],
      ["short", SHORT],
    ]),
    ["short", "long 1", "long 2"],
  );
});

test("a long job runs after at most eight short ones", async () => {
  const shorts = Array.from({ length: 20 }, (_, index) => [`short ${index}`, SHORT] as const);
  const order = await runOrder([["long 1", LONG], ["long 2", LONG], ...shorts]);
  assert.deepEqual([order.indexOf("long 1"), order.indexOf("long 2")], [8, 17]);
});

test("only one job runs at a time", async () => {
  const queue = new JobQueue();
  let running = 0;
  await Promise.all(
    Array.from({ length: 50 }, async (_, index) => {
      await queue.enter(index % 3 === 0 ? LONG : SHORT);
      assert.equal(++running, 1);
      await turn();
      running--;
      queue.leave();
    }),
  );
  assert.equal(queue.length, 0);
});
