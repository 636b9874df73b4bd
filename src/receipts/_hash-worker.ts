/** The module of a hasher thread. */
import { createHash } from "node:crypto";

/** A range of the arena. */
export interface Range {
  readonly start: number;
  readonly length: number;
}

export interface HashTask {
  readonly memory: WebAssembly.Memory;
  /** The pieces of a blob. */
  readonly pieces: readonly (Uint8Array | Range)[];
}

/** Computes the SHA-256 of a blob in hexadecimal. */
export default ({ memory, pieces }: HashTask): string => {
  const hash = createHash("sha256");
  for (const piece of pieces) hash.update(piece instanceof Uint8Array ? piece : new Uint8Array(memory.buffer, piece.start, piece.length));
  return hash.digest("hex");
};
