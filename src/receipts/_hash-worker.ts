/** The module of a hasher thread. */
import { createHash } from "node:crypto";

/** Computes the SHA-256 of a blob in hexadecimal. The pieces of a large blob are views of the arena. */
export default (pieces: readonly Uint8Array[]): string => {
  const hash = createHash("sha256");
  for (const piece of pieces) hash.update(piece);
  return hash.digest("hex");
};
