/** Repeats the calls of a ledger on this machine, from blobs in a folder, and compares the results with the receipts. */
import { createHash } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { plainOf } from "../codec/members.ts";
import { Parts } from "../codec/parts.ts";
import { compareUtf8, readSafetensors } from "../codec/safetensors.ts";
import { StepdError } from "../errors/errors.ts";
import type { NormsResult, Receipt } from "../generated/wire.gen.ts";
import type { Entry } from "../receipts/receipts.ts";
import type { Offline } from "./_offline.ts";

/** What a verification found wrong. */
export interface Problem {
  readonly line: number;
  readonly step?: number | undefined;
  readonly part?: number | undefined;
  readonly check: "form" | "signature" | "chain" | "blob" | "repeat";
  readonly field?: string;
  /** The tensors that differ, if the blobs in the folder tell. */
  readonly tensors?: readonly string[];
  readonly message: string;
}

/** Returns the path of a blob in a folder of blobs. */
export const blobPath = (folder: string, digest: string): string => join(folder, `${digest}.safetensors`);

const sha256 = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");

type Found = Omit<Problem, "line" | "step" | "part">;

/** The results of a repeated call. Only these fields are read. */
interface Result {
  readonly params?: unknown;
  readonly state?: unknown;
  readonly grads?: unknown;
  readonly accumulator?: unknown;
  readonly receipt: Receipt;
}

export class Repeater {
  readonly #offline: Offline;
  readonly #folder: string;
  /** The results of the last entry and of the last initial state, by digest. */
  #results = new Map<string, Buffer>();

  constructor(offline: Offline, folder: string) {
    this.#offline = offline;
    this.#folder = folder;
  }

  /** True if the folder has all inputs of an entry. */
  hasInputs({ receipts }: Entry): boolean {
    return receipts.every(({ inputs }) => Object.values(inputs).every((digest) => existsSync(blobPath(this.#folder, digest))));
  }

  /** Repeats an entry. Returns what differs. */
  async repeat({ line, receipts }: Entry): Promise<readonly Problem[]> {
    const problems: Problem[] = [];
    const results = new Map<string, Buffer>();
    const calls: Readonly<Record<string, unknown>>[] = [];
    for (const receipt of receipts) {
      const found: Found[] = [];
      const params = this.#callOf(receipt, found);
      if (params) {
        calls.push(params);
        found.push(...(await this.#compare(receipt, params, results, found.length > 0)));
      }
      problems.push(...found.map((problem) => ({ line, step: receipt.step, part: receipt.part?.index, ...problem })));
    }
    // A norms call between two steps must not displace the results of the first.
    if (results.size > 0) this.#results = results;
    const norm = problems.length === 0 && receipts.length > 1 ? await this.#compareNorm(receipts, calls) : undefined;
    return norm ? [{ line, step: receipts[0].step, ...norm }] : problems;
  }

  /** Returns the call of a receipt with its blobs. Returns undefined if one is missing, and adds problems to `found`. */
  #callOf({ options, inputs, part }: Receipt, found: Found[]): Readonly<Record<string, unknown>> | undefined {
    const call = structuredClone({ ...options, receipt: part ?? true }) as Record<string, unknown>;
    let isComplete = true;
    for (const [field, digest] of Object.entries(inputs)) {
      const blob = this.#load(digest, field, found);
      if (blob) setAt(call, field.split("/"), blob);
      else isComplete = false;
    }
    return isComplete ? call : undefined;
  }

  #load(digest: string, field: string, found: Found[]): Buffer | undefined {
    const path = blobPath(this.#folder, digest);
    const computed = this.#results.get(digest);
    if (!existsSync(path)) {
      if (!computed) found.push({ check: "blob", field, message: `${path}: expected the blob of ${field}, found none` });
      return computed;
    }
    const bytes = readFileSync(path);
    const actual = sha256(bytes);
    if (actual === digest) return bytes;
    const tensors = computed && differingTensors(computed, bytes);
    found.push({ check: "blob", field, ...(tensors && { tensors }), message: `${path}: its SHA-256 is ${actual}: the blob of ${field} was changed` });
    return computed ?? bytes;
  }

  async #compare(receipt: Receipt, call: object, results: Map<string, Buffer>, isSuspect: boolean): Promise<readonly Found[]> {
    const { method, outputs } = receipt;
    let repeated: Receipt;
    try {
      using lease = this.#offline.arena.lease(0);
      const result = await this.#offline.call<Result>(method, call, lease);
      repeated = result.receipt;
      for (const field of ["params", "state", "grads", "accumulator"] as const) {
        const blob = result[field];
        if (blob instanceof Parts) results.set(repeated.outputs[field] as string, blob.joinInto(Buffer.allocUnsafe(blob.length)));
      }
      if (outputs["rounded_params"] !== undefined) {
        using other = this.#offline.arena.lease(0);
        repeated = (await this.#offline.call<Result>(method, { ...call, reply: { params: "bf16" } }, other)).receipt;
      }
    } catch (error) {
      if (!(error instanceof StepdError)) throw error;
      return [{ check: "repeat", message: `the call fails here: ${error.message}` }];
    }
    const revision = Object.keys(receipt.revisions).find((name) => receipt.revisions[name] !== repeated.revisions[name]);
    if (revision !== undefined) {
      const [expected, found] = [receipt.revisions[revision], repeated.revisions[revision] ?? "none"];
      return [{ check: "repeat", field: `revisions/${revision}`, message: `the receipt has revision ${expected} of ${revision}, this stepd has ${found}` }];
    }
    const found: Found[] = [];
    for (const field of ["step", "skipped", "grad_norm"] as const) {
      if (receipt[field] !== repeated[field])
        found.push({ check: "repeat", field, message: `the receipt says ${field} ${receipt[field]}, the repeated call ${repeated[field]}` });
    }
    for (const field of new Set([...Object.keys(outputs), ...Object.keys(repeated.outputs)])) {
      const [expected, actual] = [outputs[field], repeated.outputs[field]];
      if (expected === actual) continue;
      const tensors = this.#tensorsBetween(expected, actual === undefined ? undefined : results.get(actual));
      // A changed input changes the results, which then tell the tensors.
      const cause = isSuspect ? "because an input was changed" : "though all inputs are the same";
      found.push({ check: "repeat", field: `outputs/${field}`, ...(tensors && { tensors }), message: `${field} differs from the receipt, ${cause}` });
    }
    return found;
  }

  /** Compares the blob that a receipt recorded, if the folder has it, with the repeated result. */
  #tensorsBetween(recorded: string | undefined, repeated: Buffer | undefined): readonly string[] | undefined {
    if (recorded === undefined || !repeated || !existsSync(blobPath(this.#folder, recorded))) return undefined;
    return differingTensors(readFileSync(blobPath(this.#folder, recorded)), repeated);
  }

  /** Checks the norm over all gradients that the parts of a step were given. */
  async #compareNorm([first]: Entry["receipts"], calls: readonly Readonly<Record<string, unknown>>[]): Promise<Found | undefined> {
    const { clip, loss_scale, slices } = first.options as { clip?: { total_norm?: number | string }; loss_scale?: number; slices?: unknown };
    // A sum over slices has another order than the sum over whole tensors.
    if (first.method !== "optimizer.step" || clip?.total_norm === undefined || slices !== undefined) return undefined;
    const sums: (readonly [name: string, squares: number])[] = [];
    for (const { params, grads } of calls) {
      using lease = this.#offline.arena.lease(0);
      const scale = loss_scale === undefined ? {} : { loss_scale };
      const { tensors } = await this.#offline.call<NormsResult>("optimizer.norms", { params, grads, ...scale }, lease);
      for (const [name, { grad_squares: squares }] of Object.entries(plainOf(tensors))) sums.push([name, Number(squares)]);
    }
    sums.sort(([a], [b]) => compareUtf8(a, b));
    const norm = Math.sqrt(sums.reduce((sum, [, squares]) => sum + squares, 0));
    if (Object.is(norm, Number(clip.total_norm))) return undefined;
    return {
      check: "repeat",
      field: "options/clip/total_norm",
      message: `the parts were given the norm ${clip.total_norm}; that of their gradients is ${norm}`,
    };
  }
}

/** Sets a member of a call by its path. */
const setAt = (call: Record<string, unknown>, path: readonly string[], value: unknown): void => {
  let at = call;
  for (const key of path.slice(0, -1)) {
    at[key] ??= {};
    at = at[key] as Record<string, unknown>;
  }
  at[path.at(-1) as string] = value;
};

/** Names the tensors whose bytes differ between two files. Returns undefined if the files have other tensors, or none that differ. */
const differingTensors = (expected: Buffer, found: Buffer): readonly string[] | undefined => {
  try {
    const [before, after] = [expected, found].map((file) => readSafetensors(file, "", "TENSORS_CORRUPT").tensors);
    const others = new Map(after?.map((tensor) => [tensor.name, tensor]));
    const bytesOf = (file: Buffer, { offset, bytes }: { readonly offset: number; readonly bytes: number }): Buffer => file.subarray(offset, offset + bytes);
    const names = (before ?? []).filter((tensor) => {
      const other = others.get(tensor.name);
      return !other || !bytesOf(expected, tensor).equals(bytesOf(found, other));
    });
    return names.length > 0 ? names.map(({ name }) => name) : undefined;
  } catch {
    return undefined;
  }
};
