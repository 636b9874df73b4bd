/** A blob in pieces: header bytes and views of the arena, written one after the other and never joined. */
export class Parts {
  readonly pieces: readonly Uint8Array[];
  readonly length: number;

  constructor(pieces: readonly Uint8Array[]) {
    this.pieces = pieces.filter((piece) => piece.length > 0);
    this.length = this.pieces.reduce((sum, piece) => sum + piece.length, 0);
  }

  /** Copies all pieces into memory that has room for them, and returns the part that they fill. */
  joinInto(bytes: Buffer): Buffer {
    let at = 0;
    // fill, not set or copy: with shared memory these are 10 times slower (measured).
    for (const piece of this.pieces) {
      bytes.fill(piece, at, at + piece.length);
      at += piece.length;
    }
    return bytes.subarray(0, at);
  }
}
