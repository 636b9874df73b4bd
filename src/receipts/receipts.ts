/** Writes receipts: what a call did, by the digests of its blobs. docs/audit.md describes them. */
import { StepdError } from "../errors/errors.ts";
import type { Receipt, ReceiptPart } from "../generated/wire.gen.ts";
import { canonicalBytes } from "./canonical.ts";
import type { Hasher } from "./hasher.ts";
import type { SigningKey } from "./key.ts";

export { Hasher } from "./hasher.ts";
export { SigningKey, VerifyingKey } from "./key.ts";
export { type Break, Chain, type Entry, type Line, readLedger } from "./ledger.ts";

export const RECEIPT_FORMAT = "stepd.receipt/1";

/** The options of a receipt have at most this many characters, because they are serialized without a pause. */
const MAX_OPTIONS_LENGTH = 2 ** 20;

/** The fields of a call that its receipt repeats. */
export interface ReceiptSubject {
  readonly method: string;
  /** The call without its blobs. */
  readonly options: Readonly<Record<string, unknown>>;
  /** The revision of each optimizer of the call. */
  readonly revisions: Readonly<Record<string, number>>;
  readonly part: ReceiptPart | undefined;
}

/** What a method adds to its receipt. */
export type ReceiptResult = Pick<Receipt, "step" | "skipped" | "grad_norm">;

/** The receipts of one server. */
export class Receipts {
  readonly #version: string;
  readonly #hasher: Hasher;
  readonly #key: SigningKey | undefined;

  constructor(version: string, hasher: Hasher, key: SigningKey | undefined) {
    this.#version = version;
    this.#hasher = hasher;
    this.#key = key;
  }

  /** Begins the receipt of a call. Throws INVALID_PARAMS or PAYLOAD_TOO_LARGE if its options cannot stand in a receipt. */
  begin(subject: ReceiptSubject): ReceiptDraft {
    const { part, options } = subject;
    if (part && part.index >= part.count)
      throw StepdError.mismatch("INVALID_PARAMS", "/receipt/index", `an index below the count, which is ${part.count}`, String(part.index));
    const draft = new ReceiptDraft(subject, this.#version, this.#hasher, this.#key);
    let length: number;
    try {
      length = canonicalBytes(draft.receipt({})).length;
    } catch (error) {
      throw StepdError.mismatch("INVALID_PARAMS", "/receipt", "options that canonical JSON can express (RFC 8785)", (error as Error).message);
    }
    if (length > MAX_OPTIONS_LENGTH)
      throw StepdError.mismatch(
        "PAYLOAD_TOO_LARGE",
        "/receipt",
        `options of at most ${MAX_OPTIONS_LENGTH} bytes as JSON`,
        `${length} bytes in ${Object.keys(options)}`,
      );
    return draft;
  }
}

/** A blob that remembers its digest. */
interface Remembering {
  sha256?: string | undefined;
}

/** A receipt whose digests are being computed. */
export class ReceiptDraft {
  readonly #subject: ReceiptSubject;
  readonly #version: string;
  readonly #hasher: Hasher;
  readonly #key: SigningKey | undefined;
  readonly #inputs = new Map<string, Promise<string>>();
  readonly #outputs = new Map<string, Promise<string>>();

  constructor(subject: ReceiptSubject, version: string, hasher: Hasher, key: SigningKey | undefined) {
    this.#subject = subject;
    this.#version = version;
    this.#hasher = hasher;
    this.#key = key;
  }

  /** Starts to hash an input. `field` is its JSON pointer. `blob` is read for a known digest, and remembers a new one. */
  addInput(field: string, pieces: readonly Uint8Array[], blob?: Remembering): void {
    this.#inputs.set(field.slice(1), this.#hash(pieces, blob));
  }

  /** Resolves when all inputs are hashed. The call may then overwrite them. */
  async inputsHashed(): Promise<void> {
    await Promise.all(this.#inputs.values());
  }

  addOutput(field: string, pieces: readonly Uint8Array[]): void {
    this.#outputs.set(field, this.#hash(pieces));
  }

  /** Returns the digests of the outputs by field. */
  async outputs(): Promise<Readonly<Record<string, string>>> {
    return resolved(this.#outputs);
  }

  /** Returns the receipt, signed if the server has a key. */
  async finish(result: ReceiptResult): Promise<Receipt> {
    const receipt = this.receipt(result, await resolved(this.#inputs), await this.outputs());
    return this.#key ? this.#key.sign(receipt) : receipt;
  }

  /** Returns the receipt with the given digests. */
  receipt(result: ReceiptResult, inputs: Readonly<Record<string, string>> = {}, outputs: Readonly<Record<string, string>> = {}): Receipt {
    const { method, options, revisions, part } = this.#subject;
    return {
      format: RECEIPT_FORMAT,
      version: this.#version,
      method: method as Receipt["method"],
      options,
      revisions,
      ...(part && { part }),
      inputs,
      outputs,
      ...result,
    };
  }

  #hash(pieces: readonly Uint8Array[], blob?: Remembering): Promise<string> {
    const digest = blob?.sha256 === undefined ? this.#hasher.sha256(pieces) : Promise.resolve(blob.sha256);
    // A call that fails does not wait for its digests, so a later failure of the hasher must not end the process.
    digest.then(
      (sha256) => {
        if (blob) blob.sha256 = sha256;
      },
      () => {},
    );
    return digest;
  }
}

const resolved = async (digests: ReadonlyMap<string, Promise<string>>): Promise<Readonly<Record<string, string>>> =>
  Object.fromEntries(await Promise.all([...digests].map(async ([field, digest]) => [field, await digest] as const)));
