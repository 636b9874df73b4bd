/**
 * A ledger: a file with a line for each step, its receipt in JSON. `stepd verify` checks it and repeats its steps. Node only: its
 * modules load with the first ledger, so that browser bundles contain no Node module.
 */

import type { StepInput, StepResult } from "./calls.ts";
import { describeValue } from "./checks.ts";
import type { ShardedResult } from "./sharded.ts";
import { State } from "./state.ts";
import { fileParts } from "./tensors.ts";
import type { Receipt } from "./wire.gen.ts";

const NEWLINE = 0x0a;

/** Bytes per read while the end of the last line is searched. */
const CHUNK_BYTES = 2 ** 20;

/** The part of node:fs that this module uses. The package does not depend on Node's types. */
interface Files {
  openSync(path: string, flags: string): number;
  fstatSync(fd: number): { readonly size: number };
  readSync(fd: number, buffer: Uint8Array, offset: number, length: number, position: number): number;
  writeSync(fd: number, buffer: Uint8Array, offset: number): number;
  ftruncateSync(fd: number, length: number): void;
  fsyncSync(fd: number): void;
  closeSync(fd: number): void;
  existsSync(path: string): boolean;
  mkdirSync(path: string, options: { readonly recursive: boolean }): void;
  renameSync(from: string, to: string): void;
  rmSync(path: string, options: { readonly force: boolean }): void;
}

interface Crypto {
  createHash(name: string): { update(bytes: Uint8Array): unknown; digest(encoding: "hex"): string };
}

interface NodeProcess {
  readonly pid: number;
  getBuiltinModule?(name: string): unknown;
}

export interface LedgerOptions {
  /** A folder that receives the gradients, and the parameters and the state of the first step, as `SHA256.safetensors`. */
  readonly blobs?: string | undefined;
  /** Also keeps the parameters and the state of every n-th step, from which single steps can be repeated. */
  readonly every?: number | undefined;
}

/** The tensors of a step, as the call had them. */
export type LedgerInput = Pick<StepInput, "params" | "grads" | "state">;

type Parts = readonly Uint8Array[];

export class Ledger {
  /** The bytes of a torn last line that this ledger has removed. A process that was killed leaves at most one. */
  readonly tornBytes: number;
  readonly #files: Files;
  readonly #crypto: Crypto;
  readonly #pid: number;
  readonly #fd: number;
  readonly #options: LedgerOptions;
  #appended = 0;

  /** Opens a ledger, which only one process may do at a time. Throws TypeError outside of Node. */
  constructor(path: string, options: LedgerOptions = {}) {
    const { process } = globalThis as { process?: NodeProcess };
    const files = process?.getBuiltinModule?.("node:fs") as Files | undefined;
    if (!process || !files) throw new TypeError("a Ledger needs Node 20.16 or newer");
    const { every } = options;
    if (every !== undefined && !(Number.isInteger(every) && every > 0))
      throw new TypeError(`every: expected a whole number of at least 1, found ${describeValue(every)}`);
    this.#files = files;
    this.#crypto = process.getBuiltinModule?.("node:crypto") as Crypto;
    this.#pid = process.pid;
    this.#options = options;
    if (options.blobs !== undefined) files.mkdirSync(options.blobs, { recursive: true });
    this.#fd = files.openSync(path, "a+");
    this.tornBytes = this.#cut();
  }

  /**
   * Writes the receipt of a step to disk. With `blobs`, `input` has the step's tensors. Call it before they change. Throws TypeError
   * without a receipt, and RangeError if a tensor does not have the digest of the receipt.
   */
  append(result: StepResult | ShardedResult, input?: LedgerInput): void {
    const receipts = "receipts" in result && result.receipts ? result.receipts : result.receipt ? [result.receipt] : [];
    const [first] = receipts;
    if (!first) throw new TypeError("expected the result of a step with receipt: true, found no receipt");
    // The blobs of a line must exist before the line.
    if (this.#options.blobs !== undefined) this.#store(this.#options.blobs, first, receipts.length, input);
    this.#appendLine(new TextEncoder().encode(`${JSON.stringify(receipts.length > 1 ? receipts : first)}\n`));
    this.#appended++;
  }

  close(): void {
    this.#files.closeSync(this.#fd);
  }

  #store(folder: string, { inputs }: Receipt, count: number, input: LedgerInput | undefined): void {
    if (count > 1) throw new TypeError("blobs: expected the result of a Client, found a ShardedClient's, whose parts have blobs of their own");
    if (!input) throw new TypeError("input: expected the tensors of the step, which blobs keeps, found none");
    const { every } = this.#options;
    this.#writeBlob(folder, inputs["grads"], "grads", fileParts(input.grads));
    if (this.#appended > 0 && (every === undefined || this.#appended % every > 0)) return;
    if (input.params) this.#writeBlob(folder, inputs["params"], "params", fileParts(input.params));
    const { state } = input;
    if (state) this.#writeBlob(folder, inputs["state"], "state", [state instanceof State ? state.bytes : state]);
  }

  #writeBlob(folder: string, digest: string | undefined, field: string, parts: Parts): void {
    const path = `${folder}/${digest}.safetensors`;
    if (this.#files.existsSync(path)) return;
    const hash = this.#crypto.createHash("sha256");
    for (const part of parts) hash.update(part);
    const found = hash.digest("hex");
    if (found !== digest) throw new RangeError(`${field}: expected the blob of the receipt (SHA-256 ${digest}), found ${found}: it has changed since the step`);
    const partial = `${folder}/.${digest}.${this.#pid}.partial`;
    try {
      const fd = this.#files.openSync(partial, "w");
      try {
        for (const part of parts) this.#write(fd, part);
        this.#files.fsyncSync(fd);
      } finally {
        this.#files.closeSync(fd);
      }
      this.#files.renameSync(partial, path);
    } finally {
      this.#files.rmSync(partial, { force: true });
    }
  }

  #appendLine(line: Uint8Array): void {
    const { size } = this.#files.fstatSync(this.#fd);
    try {
      this.#write(this.#fd, line);
      this.#files.fsyncSync(this.#fd);
    } catch (error) {
      // A later line must not continue a torn one.
      this.#files.ftruncateSync(this.#fd, size);
      throw error;
    }
  }

  #write(fd: number, bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length; ) at += this.#files.writeSync(fd, bytes, at);
  }

  /** Removes the bytes after the last newline, and returns how many there were. */
  #cut(): number {
    const { size } = this.#files.fstatSync(this.#fd);
    let start = size;
    while (start > 0) {
      const chunk = new Uint8Array(Math.min(CHUNK_BYTES, start));
      start -= chunk.length;
      this.#files.readSync(this.#fd, chunk, 0, chunk.length, start);
      const newline = chunk.lastIndexOf(NEWLINE);
      if (newline < 0) continue;
      start += newline + 1;
      break;
    }
    if (start < size) {
      this.#files.ftruncateSync(this.#fd, start);
      this.#files.fsyncSync(this.#fd);
    }
    return size - start;
  }
}
