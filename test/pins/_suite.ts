/** Runs the pinned cases on one kind of machine. */
import assert from "node:assert/strict";
import { after, before, suite, test } from "node:test";
import type { TestService } from "../support/service.ts";
import { type Case, cases } from "./_cases.ts";
import { readPins } from "./_pinned.ts";

const pins = readPins();

/** Adds a test for every case that `isWanted` selects: the started service must return its pinned digest. */
export const requirePins = (machine: string, start: () => Promise<TestService>, isWanted: (pinned: Case) => boolean = () => true): void => {
  suite(machine, () => {
    let service: TestService;
    before(async () => {
      service = await start();
    });
    after(() => service?.[Symbol.asyncDispose]());

    for (const { owner, label, digest } of cases.filter(isWanted)) {
      test(`${owner}: ${label}`, async () => {
        const pinned = pins[owner]?.digests[label];
        assert.ok(pinned, "not pinned yet: node test/pins/update.ts");
        assert.equal(await digest(service), pinned, `other bits: raise the revision of ${owner} if that is intended`);
      });
    }
  });
};
