/** A worker thread. It sleeps until the next job, claims shards until none is left, reports the end, and sleeps again. */
import { parentPort, workerData } from "node:worker_threads";
import { GENERATION, JOB, markFinished, SHARD_BEGUN, SHARD_FINISHED, SHARD_FREE, SHARD_STATES, SHARDS, TICKET, TRAPPED, type WorkerData } from "./_control.ts";
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
    const states = new Int32Array(memory.buffer, Atomics.load(control, SHARD_STATES) * Int32Array.BYTES_PER_ELEMENT, shards);
    for (let shard = Atomics.add(control, TICKET, 1); shard < shards; shard = Atomics.add(control, TICKET, 1)) {
      // A job runs again after a worker is lost. Its finished shards are skipped.
      if (Atomics.load(states, shard) !== SHARD_FREE) continue;
      Atomics.store(states, shard, SHARD_BEGUN);
      runShard(words, shard, kernels, scratch);
      Atomics.store(states, shard, SHARD_FINISHED);
    }
  } catch {
    Atomics.store(control, TRAPPED, 1);
  }
  busy[index] = (busy[index] as number) + (performance.now() - start) / 1000;
  markFinished(control, index, seen);
}
