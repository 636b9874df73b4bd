import type { Task } from "./turns.ts";

/** A blob as a list of pieces, such as a header and views of the arena. The server sends the pieces without joining them. */
export class Parts {
  readonly pieces: readonly Uint8Array[];
  readonly length: number;

  constructor(pieces: readonly Uint8Array[]) {
    this.pieces = pieces.filter((piece) => piece.length > 0);
    this.length = this.pieces.reduce((sum, piece) => sum + piece.length, 0);
  }

  /** Copies all pieces to the start of `bytes` and returns a view of them. */
  joinInto(bytes: Buffer): Buffer {
    let at = 0;
    // On shared memory `set` and `copy` take 10 times as long as `fill` (measured).
    for (const piece of this.pieces) {
      bytes.fill(piece, at, at + piece.length);
      at += piece.length;
    }
    return bytes.subarray(0, at);
  }
}

/** Copying yields after this many bytes. */
const COPIED_BYTES_PER_YIELD = 2 ** 23;

/** Copies bytes to a place in `target`, in turns. */
export function* copyInTurns(source: Uint8Array, target: Buffer, at: number): Task<void> {
  for (let from = 0; from < source.length; from += COPIED_BYTES_PER_YIELD) {
    if (from > 0) yield;
    const part = source.subarray(from, from + COPIED_BYTES_PER_YIELD);
    target.fill(part, at + from, at + from + part.length);
  }
}
