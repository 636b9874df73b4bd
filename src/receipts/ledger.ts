/** Reads ledgers: files with a line per call, in JSON. A line is a receipt, or the list of receipts of a sharded step. */
import { createReadStream } from "node:fs";
import type { Receipt } from "../generated/wire.gen.ts";
import { validate } from "../validation/validate.ts";

/** One line of a ledger. */
export interface Entry {
  /** The line's number, from 1. */
  readonly line: number;
  /** The length of the line, for progress. */
  readonly bytes: number;
  /** The receipts of the parts of a step, by index. Other calls have one receipt. */
  readonly receipts: readonly [Receipt, ...Receipt[]];
}

/** A line that is no valid entry, or the bytes of a last line that was not written to its end. */
export type Line = Entry | { readonly line: number; readonly error: string } | { readonly line: number; readonly tornBytes: number };

const NEWLINE = 0x0a;

/** Reads the lines of a ledger. A line without a newline at its end is torn: its writer was killed. */
export async function* readLedger(path: string): AsyncGenerator<Line> {
  let rest: Buffer = Buffer.alloc(0);
  let line = 0;
  for await (const chunk of createReadStream(path, { highWaterMark: 2 ** 20 }) as AsyncIterable<Buffer>) {
    rest = rest.length === 0 ? chunk : Buffer.concat([rest, chunk]);
    let start = 0;
    for (let end = rest.indexOf(NEWLINE); end >= 0; end = rest.indexOf(NEWLINE, start)) {
      yield readLine(rest.subarray(start, end), ++line);
      start = end + 1;
    }
    rest = rest.subarray(start);
  }
  if (rest.length > 0) yield { line: line + 1, tornBytes: rest.length };
}

const readLine = (text: Buffer, line: number): Line => {
  try {
    const value: unknown = JSON.parse(text.toString());
    const receipts = (Array.isArray(value) ? value : [value]) as Receipt[];
    for (const receipt of receipts) validate("receipt.schema.json", receipt, "");
    requireParts(receipts, Array.isArray(value));
    return { line, bytes: text.length + 1, receipts: receipts as [Receipt, ...Receipt[]] };
  } catch (error) {
    return { line, error: (error as Error).message };
  }
};

/** Throws unless a list has each part of one step once, in order, with the same options. */
const requireParts = (receipts: readonly Receipt[], isList: boolean): void => {
  const [first] = receipts;
  if (!first) throw new Error("expected receipts, found an empty list");
  if (!isList) {
    if (first.part && first.part.count > 1) throw new Error(`expected the ${first.part.count} parts of a step as a list, found one`);
    return;
  }
  const options = sharedOptions(first);
  for (const [index, receipt] of receipts.entries()) {
    const { part, method } = receipt;
    const found = part ? `${part.index} of ${part.count}` : "a receipt without a part";
    if (part?.index !== index || part.count !== receipts.length) throw new Error(`expected part ${index} of ${receipts.length}, found ${found}`);
    if (method !== first.method) throw new Error(`expected ${first.method} in each part, found ${method} in part ${index}`);
    if (sharedOptions(receipt) !== options) throw new Error(`expected the options of part 0 in each part, found others in part ${index}`);
  }
};

/** Serializes the options that the parts of a step have in common. */
const sharedOptions = ({ options: { groups: _, slices: _s, ...options } }: Receipt): string => JSON.stringify(sortedKeys(options));

const sortedKeys = (value: unknown): unknown =>
  typeof value === "object" && value !== null && !Array.isArray(value)
    ? Object.fromEntries(
        Object.entries(value)
          .sort(([a], [b]) => (a < b ? -1 : 1))
          .map(([key, member]) => [key, sortedKeys(member)]),
      )
    : value;

/** Where a run stands after an entry: the digests of each part. */
interface Head {
  readonly step: number;
  readonly params: readonly (string | undefined)[];
  /** The parameters as the reply had them, if it had them rounded. */
  readonly rounded: readonly (string | undefined)[];
  readonly state: readonly (string | undefined)[];
}

/** A field of a receipt that does not continue the run. */
export interface Break {
  readonly field: string;
  readonly message: string;
}

/** Checks that each step starts from the results of the step before, or of an earlier one after a restart. */
export class Chain {
  #head: Head | undefined;
  /** The step count of each earlier head, by its digests. */
  readonly #heads = new Map<string, number>();
  #pseudoGradient: string | undefined;
  #accumulator: string | undefined;
  /** How many times the run went on from an earlier step. */
  restarts = 0;
  steps = 0;

  /** The number of the last step. */
  get step(): number {
    return this.#head?.step ?? 0;
  }

  /** Adds an entry. Returns the first field that does not continue the run. */
  add({ receipts }: Entry): Break | undefined {
    const [first] = receipts;
    if (first.method === "optimizer.step") return this.#addStep(receipts);
    if (first.method === "optimizer.init") return this.#addInit(receipts);
    return first.method === "optimizer.reduce" && receipts.length === 1 ? this.#addReduction(first) : undefined;
  }

  #addStep(receipts: Entry["receipts"]): Break | undefined {
    this.steps++;
    const params = receipts.map(({ inputs }) => inputs["params"]);
    const state = receipts.map(({ inputs }) => inputs["state"]);
    const step = receipts.reduce((most, { step = 0 }) => Math.max(most, step), 0);
    const after: Head = {
      step,
      params: receipts.map(({ outputs }) => outputs["params"]),
      rounded: receipts.map(({ outputs }) => outputs["rounded_params"]),
      state: receipts.map(({ outputs }) => outputs["state"]),
    };
    const isFirst = this.#head === undefined;
    if (isFirst) this.#remember({ step: Math.max(0, step - 1), params, rounded: [], state });
    const before = this.#head as Head;
    const found = this.#continues(before, params, state) ?? this.#countBreak(this.#head as Head, receipts, step);
    const reduced = this.#pseudoGradient;
    this.#pseudoGradient = undefined;
    this.#remember(after);
    if (found || reduced === undefined || receipts[0].inputs["grads"] === reduced) return found;
    return { field: "inputs/grads", message: "the gradients are not the result of the reduction before" };
  }

  #addInit(receipts: Entry["receipts"]): Break | undefined {
    const params = receipts.map(({ inputs }) => inputs["params"]);
    const state = receipts.map(({ outputs }) => outputs["state"]);
    const isKnown = this.#head === undefined || this.#heads.has(keyOf(params, state));
    this.#remember({ step: 0, params, rounded: [], state });
    return isKnown ? undefined : { field: "method", message: "an initial state in the middle of a run" };
  }

  #addReduction({ inputs, outputs }: Receipt): Break | undefined {
    const { params, accumulator } = inputs;
    const expected = this.#accumulator;
    this.#accumulator = outputs["accumulator"];
    this.#pseudoGradient = outputs["grads"];
    const known = this.#head?.params;
    if (params !== undefined && known && known[0] !== params) return { field: "inputs/params", message: "the parameters are not those of the last step" };
    if (accumulator !== expected) return { field: "inputs/accumulator", message: "the accumulator is not the result of the reduction before" };
    return undefined;
  }

  /** Returns the first digest that differs from the head, unless the run went on from an earlier head, which is then the head. */
  #continues(head: Head, params: Head["params"], state: Head["state"]): Break | undefined {
    const mismatch = breakBetween(head, params, state);
    if (!mismatch) return undefined;
    const step = this.#heads.get(keyOf(params, state));
    if (step === undefined) return mismatch;
    this.restarts++;
    this.#head = { step, params, rounded: [], state };
    return undefined;
  }

  #countBreak({ step: before }: Head, receipts: Entry["receipts"], step: number): Break | undefined {
    const isSkipped = receipts.every(({ skipped }) => skipped);
    if (step === before || (step === before + 1 && !isSkipped)) return undefined;
    return { field: "step", message: `step ${step} after step ${before}` };
  }

  #remember(head: Head): void {
    this.#head = head;
    this.#heads.set(keyOf(head.params, head.state), head.step);
    if (head.rounded.some((digest) => digest !== undefined)) this.#heads.set(keyOf(head.rounded, head.state), head.step);
  }
}

const keyOf = (params: Head["params"], state: Head["state"]): string => [...params, "", ...state].join(" ");

const breakBetween = (head: Head, params: Head["params"], state: Head["state"]): Break | undefined => {
  if (params.length !== head.params.length) return { field: "part", message: `${params.length} parts after ${head.params.length}` };
  for (const [index, digest] of params.entries()) {
    const part = params.length > 1 ? ` of part ${index}` : "";
    const after = `those of step ${head.step}`;
    if (digest !== head.params[index] && digest !== head.rounded[index]) return { field: "inputs/params", message: `the parameters${part} are not ${after}` };
    if (state[index] !== head.state[index]) return { field: "inputs/state", message: `the state${part} is not that of step ${head.step}` };
  }
  return undefined;
};
