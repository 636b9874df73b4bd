/** `stepd convert`: runs state.convert from file to file, without a server. */
import { readFileSync } from "node:fs";
import type { Parts } from "../codec/parts.ts";
import { CommandError, defineCommand, parseChoice, parseWholeNumber, UsageError } from "./_command.ts";
import { escapeReplacement, requireAbsent, TensorFile, withOptionName, writeAtomically } from "./_file.ts";
import { bytesText } from "./terminal.ts";

const MIB = 2 ** 20;
const FORMATS = ["stepd", "torch", "qhoptim", "optax"] as const;

// WebAssembly limits its memory to 4 GiB.
const MAX_ARENA_MIB = 4096;

/** The arena has four times the file's size, for the file, its float32 copy, and added slots. Untouched memory is not allocated. */
const ARENA_BYTES_PER_FILE_BYTE = 4;
const MIN_ARENA_MIB = 64;

export const convert = defineCommand({
  name: "convert",
  summary: "Converts the state in IN to another format, another optimizer of its family, or more slots, and writes it to OUT.",
  args: ["IN", "OUT"],
  options: {
    from: { value: "FORMAT", help: "format of IN: stepd, torch, qhoptim or optax", initial: "stepd" },
    to: { value: "FORMAT", help: "format of OUT", initial: "stepd" },
    optimizer: { value: "NAME", help: "optimizer of OUT", initial: "that of IN" },
    "from-optimizer": { value: "NAME", help: "optimizer of IN; files of other formats do not contain it", initial: "--optimizer" },
    names: { value: "FILE", help: "parameter names by index, one per line, of the torch or qhoptim file (of IN if both are)" },
    "to-names": { value: "FILE", help: "the same for OUT, if IN has another format, too" },
    betas: { value: "A,B", help: "betas of the whole run, for qhoptim" },
    "to-betas": { value: "A,B", help: "the same for OUT, if IN has another format, too" },
    step: { value: "N", help: "step count of parameters whose step count is not in IN" },
    "state-dtype": { value: "FORMAT", help: "format of the moments in OUT: F32, BF16 or Q8", initial: "that of IN" },
    fill: { value: "SLOT", isMultiple: true, help: "slot to add if it is missing" },
    force: { help: "overwrite OUT" },
    json: { help: "print JSON" },
  },
  notes: ["docs/state-conversion.md explains the formats. stderr lists what OUT cannot contain of IN."],

  async run(values, [input = "", output = ""]) {
    const from = parseChoice(values.from ?? "stepd", "from", FORMATS);
    const to = parseChoice(values.to ?? "stepd", "to", FORMATS);
    const { names, betas } = values;
    const toOwn = { names: values["to-names"], betas: values["to-betas"] };
    const fromOptimizer = values["from-optimizer"];
    const step = values.step === undefined ? undefined : parseWholeNumber(values.step, "step", 1, Number.MAX_SAFE_INTEGER);
    const given = conventionOf({ names, betas }, "");
    const params = {
      from: { format: from, ...(fromOptimizer && { optimizer: fromOptimizer }), ...(step && { step }), ...(from !== "stepd" && given) },
      to: { format: to, ...(from === "stepd" && given), ...conventionOf(toOwn, "to-") },
      ...(values.optimizer && { optimizer: values.optimizer }),
      ...(values["state-dtype"] && { state_dtype: values["state-dtype"] }),
      ...(values.fill.length > 0 && { fill: values.fill }),
    };
    requireAbsent(output, values.force);
    const { lost, bytes } = await convertFile(input, output, params, values.force);
    if (values.json) console.log(JSON.stringify({ out: output, bytes, lost }, null, 2));
    else {
      console.log(`${output}: ${bytesText(bytes)}`);
      for (const sentence of lost) console.error(`lost: ${sentence}`);
    }
    return 0;
  },
});

/** Maps fields to options, for error messages. --names and --betas apply to IN if its format is foreign, else to OUT. */
const optionsOfFields = (input: string, isFromForeign: boolean): readonly (readonly [RegExp, string])[] => [
  [/^\/state_dtype/, "--state-dtype"],
  [/^\/state/, escapeReplacement(input)],
  [/^\/from\/optimizer/, "--from-optimizer"],
  [/^\/(from|to)\/format/, "--$1"],
  [/^\/from\/(names|betas|step)(\/\d+)?/, "--$1"],
  [/^\/to\/(names|betas)(\/\d+)?/, isFromForeign ? "--to-$1" : "--$1"],
  [/^\/optimizer/, "--optimizer"],
  [/^\/fill(\/\d+)?/, "--fill"],
];

const convertFile = async (
  input: string,
  output: string,
  params: Readonly<Record<string, unknown>> & { readonly from: { readonly format: string } },
  isForced: boolean,
): Promise<{ readonly lost: readonly string[]; readonly bytes: number }> => {
  using file = new TensorFile(input);
  const mebibytes = Math.ceil(file.size / MIB);
  if (mebibytes > MAX_ARENA_MIB) throw new CommandError(`${input}: expected at most ${MAX_ARENA_MIB} MiB, found ${mebibytes} MiB`);
  const { Offline } = await import("./_offline.ts");
  await using offline = await Offline.start(Math.min(MAX_ARENA_MIB, MIN_ARENA_MIB + ARENA_BYTES_PER_FILE_BYTE * mebibytes));
  using lease = offline.arena.lease(0);
  const state = lease.view(lease.alloc(file.size), file.size);
  file.readInto(state);
  try {
    const { state: converted, lost } = await offline.call<{ state: Parts; lost: string[] }>("state.convert", { ...params, state }, lease);
    writeAtomically(output, converted.pieces, isForced);
    return { lost, bytes: converted.length };
  } catch (error) {
    throw withOptionName(error, optionsOfFields(input, params.from.format !== "stepd"));
  }
};

/** Reads the names and betas of a convention from options. */
const conventionOf = ({ names, betas }: { readonly names: string | undefined; readonly betas: string | undefined }, prefix: string) => ({
  ...(names !== undefined && { names: readNames(names, `${prefix}names`) }),
  ...(betas !== undefined && { betas: readBetas(betas, `${prefix}betas`) }),
});

const readNames = (path: string, option: string): readonly string[] => {
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (error) {
    throw new CommandError(`--${option}: expected a file of names, found ${(error as Error).message}`);
  }
  return text.replace(/\r?\n$/, "").split(/\r?\n/);
};

const readBetas = (text: string, option: string): readonly number[] => {
  const betas = text.split(",").map((part) => (part.trim() === "" ? Number.NaN : Number(part)));
  if (betas.length !== 2 || betas.some(Number.isNaN))
    throw new UsageError(`--${option}: expected two numbers such as 0.9,0.999, found ${JSON.stringify(text)}`);
  return betas;
};
