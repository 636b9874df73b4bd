/** Measures the memory of cached layouts in a separate process, where nothing else allocates. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { Arena } from "../../src/arena/arena.ts";
import { Engine } from "../../src/engine/engine.ts";
import { Pool, poolBytes } from "../../src/pool/pool.ts";
import { writeTensors } from "../support/tensors.ts";

test("layouts of many headers and options take no more memory than they are counted for", async () => {
  setFlagsFromString("--expose-gc");
  const collect = runInNewContext("gc") as () => void;
  const used = (): number => {
    collect();
    const { heapUsed, external } = process.memoryUsage();
    return (heapUsed + external) / 2 ** 20;
  };
  const arena = new Arena(64, poolBytes(1));
  const onWorkerLost = (cause: unknown): void => assert.fail(String(cause));
  await using pool = await Pool.start(arena, new URL("../../build/kernels.wasm", import.meta.url), 1, { wideVectors: true, onWorkerLost });
  const engine = new Engine(pool, arena.capacity);
  const before = used();
  const fill = async (tensors: number, files: number, name: "adamw" | "lamb"): Promise<void> => {
    for (let index = 0; index < files; index++) {
      const shapes = Object.fromEntries(Array.from({ length: tensors }, (_, at) => [`layer.${index}.${at}.weight`, { shape: [1], data: Float32Array.of(1) }]));
      const file = writeTensors(shapes);
      for (let option = 1; option <= 8; option++) {
        using lease = arena.lease(0);
        const place = (): Buffer => {
          const at = lease.alloc(file.length);
          lease.bytes.fill(file, at, at + file.length);
          return lease.view(at, file.length);
        };
        await engine.step({ optimizer: { name, lr: option / 1024 }, params: place(), grads: place() }, lease, { seconds: 0 });
      }
    }
  };
  await fill(500, 24, "adamw");
  const large = used() - before;
  await fill(2, 1000, "lamb");
  const small = used() - before;
  assert.ok(large > 32, `${large} MiB`);
  for (const mebibytes of [large, small]) assert.ok(mebibytes < 75, `${mebibytes} MiB`);
});
