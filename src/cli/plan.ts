/** `stepd plan`: runs optimizer.plan without a server, and adds the transfer times on networks of several speeds. */
import { readConfig } from "../config.ts";
import type { PlanParams, PlanResult } from "../generated/wire.gen.ts";
import { defineCommand, parseWholeNumber, UsageError } from "./_command.ts";
import { escapeReplacement, TensorFile, withOptionName } from "./_file.ts";
import { optimizerFields, optimizerOf, optimizerOptions } from "./_optimizer.ts";
import { bytesText, countText, formatTable, pluralize, secondsText } from "./terminal.ts";

const GIGA = 1e9;

const LINKS_GBIT = [1, 10, 25];

const MAX_ARENA_MIB = 4096;

const defaultArenaMib = readConfig({}).arenaMib;

export const plan = defineCommand({
  name: "plan",
  summary: "Prints the cost of a step, from the shapes of the parameters in FILE (safetensors; only the header is read) or in --tensor.",
  args: ["FILE?"],
  options: {
    tensor: { value: "[NAME=]SHAPE[:DTYPE]", isMultiple: true, help: "a parameter, such as w=768x3072, 1000000 or b=768:BF16" },
    ...optimizerOptions,
    "grad-dtype": { value: "DTYPE", help: "dtype of all gradients", initial: "that of each parameter" },
    "master-weights": { help: "keep a float32 copy of each BF16 or F16 parameter in the state" },
    "arena-mib": { value: "MIB", help: "memory of the server", initial: String(defaultArenaMib) },
    json: { help: "print JSON" },
  },
  notes: ["The network time is that of the bytes alone, first in, then out, as in one call. Concurrent calls overlap the two directions."],

  async run(values, [path]) {
    if ((path === undefined) === (values.tensor.length === 0)) {
      throw new UsageError(`FILE: expected a file or --tensor, found ${path === undefined ? "neither" : "both"}`);
    }
    const arenaMib = parseWholeNumber(values["arena-mib"] ?? String(defaultArenaMib), "arena-mib", 1, MAX_ARENA_MIB);
    const params = {
      optimizer: optimizerOf(values),
      tensors: path === undefined ? Object.fromEntries(values.tensor.map(readTensor)) : tensorsIn(path),
      ...(values["grad-dtype"] && { grad_dtype: values["grad-dtype"] }),
      ...(values["master-weights"] && { master_weights: true }),
    };
    const { Offline } = await import("./_offline.ts");
    await using offline = await Offline.start(arenaMib);
    using lease = offline.arena.lease(0);
    let result: PlanResult;
    try {
      result = await offline.call<PlanResult>("optimizer.plan", params, lease);
    } catch (error) {
      throw withOptionName(error, [
        [/^\/tensors\//, path === undefined ? "--tensor " : `${escapeReplacement(path)}: `],
        [/^\/grad_dtype/, "--grad-dtype"],
        [/^\/master_weights/, "--master-weights"],
        ...optimizerFields,
      ]);
    }
    const links = LINKS_GBIT.map((gbit) => ({
      gbit_per_second: gbit,
      in_seconds: transferSeconds(result.bytes_in, gbit),
      out_seconds: transferSeconds(result.bytes_out, gbit),
    }));
    if (values.json) console.log(JSON.stringify({ ...result, links }, null, 2));
    else console.log(textOf(params.optimizer.name, Object.keys(params.tensors).length, result, links, offline.arena.capacity));
    return 0;
  },
});

const transferSeconds = (bytes: number, gbit: number): number => (bytes * 8) / (gbit * 1e9);

interface Link {
  readonly gbit_per_second: number;
  readonly in_seconds: number;
  readonly out_seconds: number;
}

const textOf = (optimizer: string, tensors: number, result: PlanResult, links: readonly Link[], capacity: number): string => {
  const { parameters, requests, too_large: tooLarge } = result;
  const calls = tooLarge.length > 0 ? `none: these tensors alone are too large: ${tooLarge.join(", ")}` : countText(requests);
  const rows = links.map(({ gbit_per_second: gbit, in_seconds: down, out_seconds: up }) => [`${gbit} Gbit/s`, ...[down, up, down + up].map(secondsText)]);
  return [
    `a step of ${optimizer}: ${pluralize(tensors, "tensor")}, ${pluralize(parameters, "parameter")}`,
    "",
    `in:     ${bytesText(result.bytes_in)} (parameters, gradients, state)`,
    `out:    ${bytesText(result.bytes_out)} (parameters, state)`,
    `state:  ${bytesText(result.state_bytes)}`,
    `memory: ${bytesText(result.arena_bytes)} as one call, which ${result.fits ? "fits" : "does not fit"} into ${bytesText(capacity)}`,
    ...(result.matrix_flops > 0 ? [`work:   ${(result.matrix_flops / GIGA).toPrecision(3)} GFLOP of matrix products`] : []),
    `calls:  ${calls}`,
    "",
    formatTable(["network", "in", "out", "step"], rows),
  ].join("\n");
};

type Shapes = PlanParams["tensors"];

const tensorsIn = (path: string): Shapes => {
  using file = new TensorFile(path);
  const { tensors } = file.readHead().content;
  return Object.fromEntries(tensors.map(({ name, shape, dtype }) => [name, { shape, dtype: dtype as NonNullable<Shapes[string]["dtype"]> }]));
};

/** Parses --tensor. A parameter without a name gets its position as its name. */
const readTensor = (text: string, index: number): readonly [string, Shapes[string]] => {
  const equals = text.lastIndexOf("=");
  const [sizes = "", dtype, more] = text.slice(equals + 1).split(":");
  const shape = sizes === "" ? [] : sizes.split("x").map((size) => (/^\d+$/.test(size) ? Number(size) : Number.NaN));
  if (more !== undefined || dtype === "" || equals === 0 || shape.some(Number.isNaN) || (equals < 0 && sizes === ""))
    throw new UsageError(`--tensor: expected a shape such as w=768x3072:BF16, found ${JSON.stringify(text)}`);
  return [
    equals < 0 ? `tensor${index}` : text.slice(0, equals),
    { shape, ...(dtype !== undefined && { dtype: dtype as NonNullable<Shapes[string]["dtype"]> }) },
  ];
};
