/** `stepd verify`: checks the form, the signatures and the chain of a ledger, and repeats its calls. */
import { randomInt } from "node:crypto";
import { existsSync, statSync } from "node:fs";
import { readConfig } from "../config.ts";
import type { Receipt } from "../generated/wire.gen.ts";
import { Chain, type Entry, type Line, readLedger, VerifyingKey } from "../receipts/receipts.ts";
import { CommandError, defineCommand, parseWholeNumber, UsageError } from "./_command.ts";
import { type Problem, Repeater } from "./_repeat.ts";
import { escapeControls, Progress, pluralize } from "./terminal.ts";

const MAX_ARENA_MIB = 4096;
const MAX_WORKERS = 256;

/** The report names at most this many problems. */
const MAX_PROBLEMS = 100;

const config = readConfig({});

/** The result of a verification. `--json` prints it. */
interface Report {
  readonly ledger: string;
  readonly verified: boolean;
  readonly lines: number;
  readonly steps: number;
  /** The number of the last step. */
  readonly last_step: number;
  readonly restarts: number;
  /** The bytes of a last line that was not written to its end. */
  readonly torn_bytes: number;
  /** The receipts by the key that signed them. */
  readonly signed: Readonly<Record<string, number>>;
  readonly unsigned: number;
  readonly repeated: number;
  /** The digests of the first inputs and of the last results, one of each part. */
  readonly from: readonly Digests[];
  readonly to: readonly Digests[];
  readonly problems: readonly Problem[];
}

interface Digests {
  readonly params: string | null;
  readonly state: string | null;
}

export const verify = defineCommand({
  name: "verify",
  summary:
    "Checks a ledger of receipts: the form of each line, signatures, and that each step starts from the results of the step before. Can repeat the calls.",
  args: ["LEDGER"],
  options: {
    key: { value: "FILE", isMultiple: true, help: "public key in PEM; each receipt must be signed by one of these keys" },
    blobs: { value: "DIR", help: "folder of blobs, named SHA256.safetensors; repeats all calls" },
    sample: { value: "N", help: "with --blobs: repeats N random lines whose inputs are all in the folder" },
    workers: { value: "N", help: "worker threads", initial: "1" },
    "arena-mib": { value: "MIB", help: "memory for a repeated call", initial: String(config.arenaMib) },
    json: { help: "print JSON" },
  },
  notes: [
    "Without --key, signatures are not checked. Without --blobs, the report says only that the receipts fit together.",
    "Parameters and state may be missing in DIR, except those of the first step: the repeated step before has them.",
    "Exit code 0 if the ledger is verified, 1 if not. The first call that differs ends the repetition.",
  ],

  async run(values, [path = ""]) {
    const { blobs: folder, sample } = values;
    if (sample !== undefined && folder === undefined) throw new UsageError("--sample: expected --blobs as well, found none");
    const samples = sample === undefined ? undefined : parseWholeNumber(sample, "sample", 1, Number.MAX_SAFE_INTEGER);
    const workers = parseWholeNumber(values.workers ?? "1", "workers", 1, MAX_WORKERS);
    const arenaMib = parseWholeNumber(values["arena-mib"] ?? String(config.arenaMib), "arena-mib", 1, MAX_ARENA_MIB);
    requireKind(path, "file");
    if (folder !== undefined) requireKind(folder, "folder");
    const verification = new Verification(values.key.map(readKey));
    using progress = new Progress();
    progress.begin("checking the ledger", statSync(path).size);
    for await (const line of readLedger(path)) {
      verification.check(line);
      progress.tick("bytes" in line ? line.bytes : 0);
    }
    if (folder !== undefined) {
      const { Offline } = await import("./_offline.ts");
      await using offline = await Offline.start(arenaMib, workers);
      await repeat(path, new Repeater(offline, folder), verification, samples, progress);
    }
    progress[Symbol.dispose]();
    const report = verification.report(path);
    console.log(values.json ? JSON.stringify(report, null, 2) : textOf(report));
    return report.verified ? 0 : 1;
  },
});

const requireKind = (path: string, kind: "file" | "folder"): void => {
  const stat = existsSync(path) ? statSync(path) : undefined;
  const isExpected = kind === "file" ? stat?.isFile() : stat?.isDirectory();
  if (!isExpected) throw new CommandError(`${path}: expected a ${kind}, found ${stat ? "something else" : "none"}`);
};

const readKey = (path: string): VerifyingKey => {
  try {
    return new VerifyingKey(path);
  } catch (error) {
    throw new CommandError(`${path}: expected a public Ed25519 key in PEM (${(error as Error).message})`);
  }
};

/** Repeats the calls of a ledger, all or a sample, up to the first that differs. */
const repeat = async (path: string, repeater: Repeater, verification: Verification, samples: number | undefined, progress: Progress): Promise<void> => {
  const chosen = samples === undefined ? undefined : await choose(path, repeater, samples);
  progress.begin("repeating the calls", chosen?.size ?? verification.lines);
  for await (const entry of readLedger(path)) {
    if (!("receipts" in entry) || (chosen && !chosen.has(entry.line))) continue;
    const problems = await repeater.repeat(entry);
    verification.addRepeated(problems);
    progress.tick();
    if (problems.length > 0) return;
  }
};

/** Chooses random lines among those whose inputs are all in the folder (reservoir sampling). */
const choose = async (path: string, repeater: Repeater, samples: number): Promise<ReadonlySet<number>> => {
  const chosen: number[] = [];
  let seen = 0;
  for await (const entry of readLedger(path)) {
    if (!("receipts" in entry) || !repeater.hasInputs(entry)) continue;
    const place = randomInt(++seen);
    if (chosen.length < samples) chosen.push(entry.line);
    else if (place < samples) chosen[place] = entry.line;
  }
  if (seen === 0) throw new CommandError("--blobs: expected all inputs of at least one line, found none");
  return new Set(chosen);
};

/** The checks of a ledger, and what they found. */
class Verification {
  readonly #keys: ReadonlyMap<string, VerifyingKey>;
  readonly #chain = new Chain();
  readonly #problems: Problem[] = [];
  readonly #signed = new Map<string, number>();
  #unsigned = 0;
  #repeated = 0;
  #tornBytes = 0;
  #from: readonly Digests[] = [];
  #to: readonly Digests[] = [];
  lines = 0;

  constructor(keys: readonly VerifyingKey[]) {
    this.#keys = new Map(keys.map((key) => [key.name, key]));
  }

  /** Checks a line by itself, and that it continues the run. */
  check(line: Line): void {
    if ("tornBytes" in line) {
      this.#tornBytes = line.tornBytes;
      return;
    }
    this.lines++;
    if ("error" in line) {
      this.#add({ line: line.line, check: "form", message: line.error });
      return;
    }
    for (const receipt of line.receipts) this.#checkSignature(line.line, receipt);
    const broken = this.#chain.add(line);
    if (broken) this.#add({ line: line.line, step: line.receipts[0].step, check: "chain", ...broken });
    this.#follow(line);
  }

  addRepeated(problems: readonly Problem[]): void {
    if (problems.length === 0) this.#repeated++;
    for (const problem of problems) this.#add(problem);
  }

  report(ledger: string): Report {
    if (this.lines === 0) this.#add({ line: 1, check: "form", message: "the ledger has no receipt" });
    return {
      ledger,
      verified: this.#problems.length === 0,
      lines: this.lines,
      steps: this.#chain.steps,
      last_step: this.#chain.step,
      restarts: this.#chain.restarts,
      torn_bytes: this.#tornBytes,
      signed: Object.fromEntries(this.#signed),
      unsigned: this.#unsigned,
      repeated: this.#repeated,
      from: this.#from,
      to: this.#to,
      problems: this.#problems,
    };
  }

  #checkSignature(line: number, receipt: Receipt): void {
    const { key: name, step, part } = receipt;
    const isWanted = this.#keys.size > 0;
    const add = (message: string): void => this.#add({ line, step, part: part?.index, check: "signature", field: "signature", message });
    if (name === undefined) {
      this.#unsigned++;
      if (isWanted) add("the receipt is not signed");
      return;
    }
    this.#signed.set(name, (this.#signed.get(name) ?? 0) + 1);
    if (!isWanted) return;
    const key = this.#keys.get(name);
    if (!key) add(`the receipt is signed by another key: ${name}`);
    else if (!key.hasSigned(receipt)) add("the signature is not that of this receipt: the receipt was changed");
  }

  #follow({ receipts }: Entry): void {
    if (receipts[0].method !== "optimizer.step") return;
    const digests = (side: "inputs" | "outputs"): readonly Digests[] =>
      receipts.map((receipt) => ({ params: receipt[side]["params"] ?? null, state: receipt[side]["state"] ?? null }));
    if (this.#from.length === 0) this.#from = digests("inputs");
    this.#to = digests("outputs");
  }

  #add(problem: Problem): void {
    if (this.#problems.length < MAX_PROBLEMS) this.#problems.push(problem);
  }
}

const textOf = (report: Report): string => {
  const { lines, steps, last_step: last, restarts, torn_bytes: torn, signed, unsigned, repeated, from, to, problems } = report;
  const keys = Object.entries(signed).map(([name, count]) => `${pluralize(count, "receipt")} by key ${name}`);
  const digests = (all: readonly Digests[]): string =>
    all.map(({ params, state }) => `params ${params ?? "none"}, state ${state ?? "none"}`).join("\n        ");
  return [
    `${escapeControls(report.ledger)}: ${pluralize(lines, "line")}, ${pluralize(steps, "step")}, the last is step ${last}${restarts > 0 ? `, ${pluralize(restarts, "restart")}` : ""}`,
    `signed: ${[...keys, ...(unsigned > 0 ? [`${pluralize(unsigned, "receipt")} by none`] : [])].join(", ") || "none"}`,
    ...(steps > 0 ? [`from:   ${digests(from)}`, `to:     ${digests(to)}`] : []),
    `repeated: ${pluralize(repeated, "line")}`,
    ...(torn > 0 ? [`the last line is torn: its ${pluralize(torn, "byte")} do not count, because its writer was killed`] : []),
    ...problems.map(problemText),
    report.verified ? "verified" : `not verified: ${pluralize(problems.length, "problem")}`,
  ].join("\n");
};

const problemText = ({ line, step, part, check, field, tensors, message }: Problem): string => {
  const place = [`line ${line}`, ...(step === undefined ? [] : [`step ${step}`]), ...(part === undefined ? [] : [`part ${part}`])].join(", ");
  const what = field === undefined ? "" : ` (${field})`;
  return escapeControls(`${place}: ${check}${what}: ${message}${tensors ? `; tensors ${tensors.join(", ")}` : ""}`);
};
