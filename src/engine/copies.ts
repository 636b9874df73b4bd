/**
 * Retained inputs of a step: a cached result stays as it is, so the step runs on a copy. Workers copy each shard right before its
 * first kernel, which then finds it in the processor's cache. This file copies the rest: headers, scalars, slots of another shape
 * than the parameter's, and tensors that the step does not change.
 */
import { bytesOf } from "../codec/dtype.ts";
import { copyInTurns } from "../codec/parts.ts";
import { CHEAP_ITEMS_PER_YIELD, sorted, type Task } from "../codec/turns.ts";
import type { Layout, StepTarget } from "./layout.ts";
import { copiedSlots, PARAM_AT, SLOTS_AT } from "./recipe.ts";
import type { StepFiles } from "./step.ts";

interface Range {
  readonly start: number;
  readonly end: number;
}

/** Copies the bytes of retained files that no worker copies into the files that the step overwrites. */
export function* copyRest({ targets }: Layout, { params, state, retained }: StepFiles): Task<void> {
  if (retained.params) yield* copyBetween(yield* rangesOf(targets, paramRange), retained.params, params.bytes);
  if (retained.state) yield* copyBetween(yield* rangesOf(targets, slotRanges), retained.state, state as Buffer);
}

const range = (start: number, elements: number, dtype: string): Range => ({ start, end: start + elements * (bytesOf(dtype) as number) });

const paramRange = ({ elements, offsets, recipe }: StepTarget): readonly Range[] => [range(offsets[PARAM_AT] as number, elements, recipe.param)];

const slotRanges = ({ elements, offsets, recipe }: StepTarget): readonly Range[] =>
  copiedSlots(recipe).map(([index, dtype]) => range(offsets[SLOTS_AT + index] as number, elements, dtype));

function* rangesOf(targets: readonly StepTarget[], of: (target: StepTarget) => readonly Range[]): Task<readonly Range[]> {
  const ranges: Range[] = [];
  for (const [index, target] of targets.entries()) {
    if (index % CHEAP_ITEMS_PER_YIELD === CHEAP_ITEMS_PER_YIELD - 1) yield;
    ranges.push(...of(target));
  }
  return yield* sorted(ranges, (a, b) => a.start - b.start);
}

/** Copies what lies between sorted ranges. */
function* copyBetween(ranges: readonly Range[], source: Buffer, copy: Buffer): Task<void> {
  let at = 0;
  for (const [index, { start, end }] of ranges.entries()) {
    if (index % CHEAP_ITEMS_PER_YIELD === CHEAP_ITEMS_PER_YIELD - 1) yield;
    yield* copyInTurns(source.subarray(at, start), copy, at);
    at = end;
  }
  yield* copyInTurns(source.subarray(at), copy, at);
}
