/** A worker thread: sleeps until a job is there, takes shards until none is left, says so, sleeps again. */
import { parentPort, workerData } from "node:worker_threads";
import { BEGUN, FINISHED_SHARD, FREE, finish, GENERATION, JOB, MARKS, SHARDS, TICKET, TRAPPED, type WorkerData } from "./_control.ts";
import { runShard, scratchIn } from "./_job.ts";
import { instantiate } from "./kernels.ts";

const { module, memory, control, busy, index, scratchAddress, generation } = workerData as WorkerData;
const kernels = instantiate(module, memory);
const scratch = scratchIn(memory, scratchAddress);
parentPort?.postMessage("ready");

for (let seen = generation; ; ) {
  Atomics.wait(control, GENERATION, seen);
  seen = Atomics.load(control, GENERATION);
  const start = performance.now();
  try {
    const words = new Float64Array(memory.buffer, Atomics.load(control, JOB) * Float64Array.BYTES_PER_ELEMENT);
    const shards = Atomics.load(control, SHARDS);
    const marks = new Int32Array(memory.buffer, Atomics.load(control, MARKS) * Int32Array.BYTES_PER_ELEMENT, shards);
    for (let shard = Atomics.add(control, TICKET, 1); shard < shards; shard = Atomics.add(control, TICKET, 1)) {
      // A job that lost a worker comes again, for the shards that are not finished.
      if (Atomics.load(marks, shard) !== FREE) continue;
      Atomics.store(marks, shard, BEGUN);
      runShard(words, shard, kernels, scratch);
      Atomics.store(marks, shard, FINISHED_SHARD);
    }
  } catch {
    Atomics.store(control, TRAPPED, 1);
  }
  busy[index] = (busy[index] as number) + (performance.now() - start) / 1000;
  finish(control, index, seen);
}
