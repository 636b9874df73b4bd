/** Signs and checks receipts with Ed25519 keys (RFC 8032). */
import { createHash, createPrivateKey, createPublicKey, type KeyObject, sign, verify } from "node:crypto";
import { readFileSync } from "node:fs";
import type { Receipt } from "../generated/wire.gen.ts";
import { canonicalBytes } from "./canonical.ts";

/** A key's name: the SHA-256 of the public key in DER (SubjectPublicKeyInfo). */
const nameOf = (key: KeyObject): string =>
  createHash("sha256")
    .update(key.export({ type: "spki", format: "der" }))
    .digest("hex");

const requireEd25519 = (key: KeyObject): KeyObject => {
  if (key.asymmetricKeyType !== "ed25519") throw new Error(`expected an Ed25519 key, found a key of type ${key.asymmetricKeyType}`);
  return key;
};

/** The private key of a server. */
export class SigningKey {
  readonly name: string;
  /** The public key in PEM. */
  readonly publicKey: string;
  readonly #key: KeyObject;

  /** Reads a private key in PEM (PKCS #8). Throws an Error with one line. */
  constructor(path: string) {
    const pem = readFileSync(path);
    try {
      this.#key = requireEd25519(createPrivateKey(pem));
    } catch (error) {
      throw new Error(`expected a private Ed25519 key in PEM without a passphrase (${(error as Error).message})`);
    }
    const publicKey = createPublicKey(this.#key);
    this.name = nameOf(publicKey);
    this.publicKey = publicKey.export({ type: "spki", format: "pem" }).toString();
  }

  sign(receipt: Receipt): Receipt {
    const named = { ...receipt, key: this.name };
    return { ...named, signature: sign(null, canonicalBytes(named), this.#key).toString("base64") };
  }
}

/** A public key that checks signatures. */
export class VerifyingKey {
  readonly name: string;
  readonly #key: KeyObject;

  /** Reads a public key in PEM. Throws an Error with one line. */
  constructor(path: string) {
    this.#key = requireEd25519(createPublicKey(readFileSync(path)));
    this.name = nameOf(this.#key);
  }

  /** True if this key signed the receipt. */
  hasSigned(receipt: Receipt): boolean {
    return verify(null, canonicalBytes(receipt), this.#key, Buffer.from(receipt.signature ?? "", "base64"));
  }
}
