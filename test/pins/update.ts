/**
 * Writes the digests of new cases, and of owners whose revision was raised: node test/pins/update.ts
 *
 * A digest that changed without a new revision is listed and not written, and the exit status is 1. Raise the revision first.
 */
import { TestService } from "../support/service.ts";
import { cases, revisionOf } from "./_cases.ts";
import { type Pins, readPins, writePins } from "./_pinned.ts";

await using service = await TestService.start();
const before = readPins();
const after: Record<string, Pins & { readonly digests: Record<string, string> }> = {};
/** The labels of cases with changed bits, by owner. */
const changed = new Map<string, string[]>();
for (const { owner, label, digest } of cases) {
  const revision = revisionOf(owner);
  const pins = after[owner] ?? { revision, digests: {} };
  after[owner] = pins;
  const found = await digest(service);
  const pinned = before[owner]?.revision === revision ? before[owner]?.digests[label] : undefined;
  pins.digests[label] = pinned ?? found;
  if (pinned === undefined || pinned === found) continue;
  changed.set(owner, [...(changed.get(owner) ?? []), label]);
}
writePins(after);
for (const [owner, labels] of changed) {
  console.error(`${owner}: other bits in ${labels.length} cases at the same revision, the first "${labels[0]}"; raise its revision if that is intended`);
  process.exitCode = 1;
}
