/** Writes the file of the new state: the header, the scalars, and views of the slots in the arena. */
import type { Lease } from "../arena/arena.ts";
import type { Parts } from "../codec/parts.ts";
import { mapped, type Task } from "../codec/turns.ts";
import type { OutputEntry, StateOutput } from "./layout.ts";
import type { Bases } from "./runner.ts";
import { SCALAR_BYTES, type StateEntry, scalarBytes, writeEntries } from "./state.ts";

/** Writes the file. `scalarOf` returns a scalar's new value, or undefined to copy the value from `state`. */
export function* writeOutput(
  { header, entries }: Pick<StateOutput, "header" | "entries">,
  state: Buffer | undefined,
  bases: Bases,
  scalarOf: (target: number, scalar: string) => number | undefined,
  lease: Lease,
): Task<Parts> {
  const contentOf = ({ scalar, target, block, offset, dtype }: OutputEntry): StateEntry["content"] => {
    if (scalar === undefined) return (bases[block as number] as number) + offset;
    const value = target === undefined ? undefined : scalarOf(target, scalar);
    return value === undefined ? (state as Buffer).subarray(offset, offset + SCALAR_BYTES) : scalarBytes(value, dtype as "I64" | "F64");
  };
  const contents = yield* mapped(entries, (entry): StateEntry => ({ dtype: entry.dtype, shape: entry.shape, name: entry.name, content: contentOf(entry) }));
  return yield* writeEntries(header, contents, lease);
}
