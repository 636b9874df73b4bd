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
