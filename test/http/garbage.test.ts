/**
 * Tests that bodies create no garbage outside the heap. Each 64 MiB of such garbage would make V8 collect the whole heap,
 * several times per large step.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { MSGPACK, TestService } from "../support/service.ts";

const BODIES = 8;

/** Returns the number of collections of the whole heap since the process started. */
const collections = async (service: TestService): Promise<number> => {
  const text = await (await fetch(`${service.url}/metrics`)).text();
  const count = (kind: string): number => Number(new RegExp(`^nodejs_gc_duration_seconds_count\\{kind="${kind}"\\} (\\d+)$`, "m").exec(text)?.[1] ?? 0);
  return count("major") + count("incremental");
};

for (const [what, arenaMib] of [
  ["taken", "128"],
  ["refused", "1"],
] as const) {
  test(`bodies that are ${what} cause no collections of the heap`, async () => {
    await using service = await TestService.start({ STEPD_ARENA_MIB: arenaMib });
    const before = await collections(service);
    // The service refuses these bodies, so that their only cost is their bytes.
    for (let i = 0; i < BODIES; i++) await (await service.post("/v1/step", Buffer.alloc(2 ** 26), MSGPACK)).arrayBuffer();
    const after = await collections(service);
    assert.ok(after - before <= 2, `${after - before} collections for ${BODIES} bodies of 64 MiB`);
  });
}
