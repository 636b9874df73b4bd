/**
 * Explores every interleaving of the accesses of main thread and workers to shared memory, at small size, in the pool's own code: every
 * shard runs once, nobody sleeps for ever, and no worker uses the memory of a job that has ended, wherever a worker dies. Each planted
 * fault must be found. EXPLORE=all takes larger sizes, for minutes.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import type { Fault } from "./_coroutines.ts";
import { compile, explore, type Scenario } from "./_machine.ts";

const job = (shards: number, isRepeatable = false) => ({ shards, isRepeatable });
const SMALL: readonly [Scenario, readonly string[]][] = [
  [{ workers: 1, jobs: [job(2, true), job(1)], deaths: 0 }, ["done, done"]],
  [{ workers: 1, jobs: [job(2)], deaths: 2 }, ["WORKER_LOST", "done"]],
  [{ workers: 1, jobs: [job(2, true), job(1)], deaths: 1 }, ["done, WORKER_LOST", "done, done"]],
  [{ workers: 2, jobs: [job(2)], deaths: 0 }, ["done"]],
  [{ workers: 2, jobs: [job(1)], deaths: 1 }, ["WORKER_LOST", "done"]],
];
const LARGE: readonly [Scenario, readonly string[]][] = [
  [{ workers: 2, jobs: [job(1), job(1)], deaths: 0 }, ["done, done"]],
  [{ workers: 2, jobs: [job(2)], deaths: 1 }, ["WORKER_LOST", "done"]],
  [{ workers: 2, jobs: [job(2, true)], deaths: 1 }, ["done"]],
  [{ workers: 2, jobs: [job(1), job(1)], deaths: 1 }, ["WORKER_LOST, done", "done, WORKER_LOST", "done, done"]],
];

for (const [scenario, outcomes] of process.env["EXPLORE"] === "all" ? [...SMALL, ...LARGE] : SMALL) {
  test(`every interleaving of ${JSON.stringify(scenario)}`, (t) => {
    const found = explore(scenario, compile());
    assert.equal(found.violation, undefined);
    assert.deepEqual([...found.outcomes].sort(), outcomes);
    t.diagnostic(`${found.states} states`);
  });
}

const FAULTS: readonly (readonly [name: string, fault: Fault, sentence: RegExp])[] = [
  [
    "two workers read the same ticket",
    [
      "worker.ts",
      "shard = Atomics.add(control, TICKET, 1)) {",
      "Atomics.store(control, TICKET, Atomics.load(control, TICKET) + 1), shard = Atomics.load(control, TICKET)) {",
    ],
    /without shard|ran 2 times|for no reason/,
  ],
  [
    "the first worker ends the job",
    ["_control.ts", "!== generation) return;", "!== generation) break;"],
    /after its end|without shard|WORKER_LOST for no reason/,
  ],
  ["the last worker does not wake the main thread", ["_control.ts", "  Atomics.notify(control, FINISHED);", ""], /everyone sleeps/],
  ["the main thread does not wake the workers", ["pool.ts", "    Atomics.notify(control, GENERATION);", ""], /everyone sleeps/],
  [
    "the main thread waits for a change after the last one",
    [
      "pool.ts",
      "await Atomics.waitAsync(control, FINISHED, seen).value;",
      "await Atomics.waitAsync(control, FINISHED, Atomics.load(control, FINISHED)).value;",
    ],
    /everyone sleeps/,
  ],
  [
    "a worker waits for a change after the last one",
    ["worker.ts", "Atomics.wait(control, GENERATION, seen);", "Atomics.wait(control, GENERATION, Atomics.load(control, GENERATION));"],
    /everyone sleeps/,
  ],
  [
    "a worker sees the number of a job before its words",
    ["pool.ts", "    Atomics.store(control, JOB, job);\n", "    Atomics.store(control, GENERATION, generation);\n    Atomics.store(control, JOB, job);\n"],
    /after its end|outside/,
  ],
  ["nobody ends the job for a dead worker", ["pool.ts", "if (this.#isRunning) markFinished(this.#control, index, generation);", ""], /everyone sleeps/],
  ["a new worker takes the job that is running for its own", ["pool.ts", "      generation,\n    };", "      generation: generation - 1,\n    };"], /./],
  ["a repeated job runs its finished shards again", ["worker.ts", "if (Atomics.load(states, shard) !== SHARD_FREE) continue;", ""], /ran 2 times/],
  ["a shard that a death interrupted runs again", ["worker.ts", "      Atomics.store(states, shard, SHARD_BEGUN);\n", ""], /ran 2 times/],
  [
    "a shard is finished before it has run",
    ["worker.ts", "      Atomics.store(states, shard, SHARD_BEGUN);\n", "      Atomics.store(states, shard, SHARD_FINISHED);\n"],
    /without shard/,
  ],
  ["a lost shard ends the job well", ["pool.ts", "if (states.every((state) => state === SHARD_FINISHED)) return;", "return;"], /without shard/],
];

for (const [name, fault, sentence] of FAULTS) {
  test(`a planted fault is found: ${name}`, () => {
    const violations = [...SMALL, ...LARGE].map(
      ([scenario]) =>
        () =>
          explore(scenario, compile(fault)).violation,
    );
    let found: ReturnType<(typeof violations)[number]>;
    for (const look of violations) {
      found = look();
      if (found) break;
    }
    assert.match(found?.sentence ?? "no violation", sentence);
  });
}
