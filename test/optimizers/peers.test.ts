/** Tests docs/peers: every name of another library has a call or a reason, and a server accepts each call. */
import assert from "node:assert/strict";
import { after, before, suite, test } from "node:test";
import { readPeers } from "../../scripts/tables.ts";
import { TestService } from "../support/service.ts";

let service: TestService;
before(async () => {
  service = await TestService.start();
});
after(() => service[Symbol.asyncDispose]());

/** The tensor is a matrix, as Muon requires. */
const tensors = (value: number): object => ({ w: { shape: [2, 2], values: [value, -value, 1, 2] } });

const { names, calls } = readPeers();

for (const [title, peers] of Object.entries(names)) {
  const library = title.split(" ")[0] as string;
  suite(title, () => {
    test("has a call or a reason for each of its names, and no other", () => {
      assert.deepEqual(Object.keys(calls[library] ?? {}).sort(), peers.toSorted());
    });

    for (const [name, { optimizer, schedule, method, why }] of Object.entries(calls[library] ?? {})) {
      test(`${name} is called, or the table says why not`, async () => {
        assert.equal([optimizer, schedule, method, why].filter((value) => value !== undefined).length, 1);
        if (optimizer) await service.call("optimizer.step", { optimizer, params: tensors(1), grads: tensors(0.5) });
        if (schedule) await service.call("schedule.evaluate", { schedule, lr: 0.1, count: 10 });
        if (method) {
          const updates = [0.25, 0.5, 0.75].map((value) => ({ tensors: tensors(value) }));
          await service.call("optimizer.reduce", { params: tensors(1), updates, method });
        }
        if (why !== undefined) assert.ok(why.length > 5);
      });
    }
  });
}
