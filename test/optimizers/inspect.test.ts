/** Tests that state.inspect shows every slot of every optimizer. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { run, SMALL } from "../support/run.ts";
import { TestService } from "../support/service.ts";
import { readFile } from "../support/tensors.ts";
import { variants } from "../support/variants.ts";

let service: TestService;
before(async () => {
  service = await TestService.start();
});
after(() => service[Symbol.asyncDispose]());

interface Inspection {
  readonly format: string;
  readonly optimizer: string;
  readonly revision: number;
  readonly bytes: number;
  readonly tensors: Readonly<Record<string, { readonly step: number; readonly slots: Readonly<Record<string, unknown>> }>>;
}

for (const { label, optimizer } of variants) {
  test(`state.inspect shows all slots: ${label}`, async () => {
    const { state } = await run(service, { optimizer, shapes: SMALL, steps: 2 });
    const { tensors, ...rest } = await service.call<Inspection>("state.inspect", { state });
    const { entries, metadata } = readFile(state);
    assert.deepEqual(
      [rest.format, rest.optimizer, rest.revision, rest.bytes],
      [metadata["format"], optimizer.name, Number(metadata["revision"]), state.length],
    );
    for (const [key, { dtype, shape }] of entries) {
      const name = key.slice(key.indexOf("/") + 1);
      const slot = key.slice(0, key.indexOf("/"));
      if (slot === "step") assert.equal(tensors[name]?.step, 2);
      else assert.deepEqual(tensors[name]?.slots[slot], { dtype, shape });
    }
    assert.equal(
      Object.values(tensors).reduce((sum, { slots }) => sum + 1 + Object.keys(slots).length, 0),
      entries.size,
    );
  });
}
