/** Serializes receipts to the canonical JSON of RFC 8785. */
import canonicalize from "canonicalize";
import type { Receipt } from "../generated/wire.gen.ts";

/** Returns the bytes that a signature covers: the receipt without its signature, as canonical JSON. Throws an Error for NaN, infinity or a lone surrogate. */
export const canonicalBytes = ({ signature: _, ...receipt }: Receipt): Buffer => Buffer.from(canonicalize(receipt) as string);
