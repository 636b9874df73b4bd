/**
 * Tests that results have the bits pinned in pinned.json, with and without AVX. node test/pins/update.ts writes the digests of
 * a raised revision.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { TestService } from "../support/service.ts";
import { cases, revisionOf } from "./_cases.ts";
import { readPins } from "./_pinned.ts";
import { requirePins } from "./_suite.ts";

const pins = readPins();

test("pinned.json has every case and no other", () => {
  const expected = cases.map(({ owner, label }) => `${owner}: ${label}`);
  const found = Object.entries(pins).flatMap(([owner, { digests }]) => Object.keys(digests).map((label) => `${owner}: ${label}`));
  assert.equal(new Set(expected).size, expected.length);
  assert.deepEqual(found.sort(), expected.sort());
});

test("the digests belong to the current revisions", () => {
  for (const [owner, { revision }] of Object.entries(pins))
    assert.equal(revision, revisionOf(owner), `run node test/pins/update.ts for the new revision of ${owner}`);
});

// With --no-liftoff, the optimizing compiler compiles each kernel at once. It is the only compiler that uses AVX.
requirePins("2 workers", () => TestService.start({ STEPD_WORKERS: "2" }, ["--no-liftoff"]));
requirePins(
  "a CPU without AVX",
  () => TestService.start({ STEPD_WORKERS: "2" }, ["--no-liftoff", "--no-enable-avx", "--no-enable-avx2"]),
  ({ isLarge }) => !isLarge,
);
