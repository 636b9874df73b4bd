/** `stepd inspect`: prints the contents of a state or another safetensors file. It reads the whole file only for --stats. */
import { COMPUTED, readElement } from "../codec/dtype.ts";
import { plainOf } from "../codec/members.ts";
import type { TensorInfo } from "../codec/safetensors.ts";
import { STATE_FORMAT } from "../engine/engine.ts";
import type { InspectResult } from "../generated/wire.gen.ts";
import { defineCommand } from "./_command.ts";
import { escapeReplacement, TensorFile, withOptionName } from "./_file.ts";
import { bytesText, countText, escapeControls, formatTable, numberText, Progress, pluralize } from "./terminal.ts";

interface Stats {
  /** The smallest finite value; null if no value is finite. */
  readonly min: number | null;
  readonly max: number | null;
  readonly norm: number;
  readonly non_finite: number;
}

interface TensorReport extends Partial<Stats> {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly elements: number;
  readonly bytes: number;
}

export const inspect = defineCommand({
  name: "inspect",
  summary: "Prints the contents of a state: optimizer, revision, steps and slots. Prints the tensors of any other safetensors file.",
  args: ["FILE"],
  options: {
    stats: { help: "print minimum, maximum, norm and number of non-finite values of each tensor; reads the whole file" },
    json: { help: "print JSON" },
  },
  notes: [],

  async run({ stats, json }, [path = ""]) {
    using file = new TensorFile(path);
    const { file: head, content } = file.readHead();
    const measured = stats ? statsOf(file, content.tensors) : new Map<string, Stats>();
    const reports = new Map(content.tensors.map((info) => [info.name, reportOf(info, measured.get(info.name))]));
    if (content.metadata.get("format") === STATE_FORMAT) {
      const state = await readState(head, path);
      if (json) console.log(JSON.stringify(stateJson(state, reports), null, 2));
      else console.log(stateText(path, state, reports, stats));
      return 0;
    }
    const metadata = Object.fromEntries(content.metadata);
    const elements = content.tensors.reduce((sum, tensor) => sum + tensor.elements, 0);
    if (json) console.log(JSON.stringify({ format: "safetensors", metadata, bytes: file.size, elements, tensors: Object.fromEntries(reports) }, null, 2));
    else {
      console.log(`${path}: ${pluralize(reports.size, "tensor")}, ${pluralize(elements, "element")}, ${bytesText(file.size)}`);
      for (const [key, value] of content.metadata) console.log(`${escapeControls(key)}: ${escapeControls(value)}`);
      const rows = [...reports].map(([name, report]) => [name, ...rowCells(report, stats)]);
      console.log(`\n${formatTable(["tensor", ...columnTitles(stats)], rows)}`);
    }
    return 0;
  },
});

const readState = async (head: Buffer, path: string): Promise<InspectResult> => {
  const { FileLease, Offline } = await import("./_offline.ts");
  await using offline = await Offline.start(1);
  try {
    const { tensors, ...told } = await offline.call<InspectResult>("state.inspect", { state: head }, new FileLease(offline.arena, head));
    return { ...told, tensors: plainOf(tensors) };
  } catch (error) {
    throw withOptionName(error, [[/^\/state/, escapeReplacement(path)]]);
  }
};

const reportOf = ({ dtype, shape, elements, bytes }: TensorInfo, stats: Stats | undefined): TensorReport => ({ dtype, shape, elements, bytes, ...stats });

const stateJson = ({ tensors, ...state }: InspectResult, reports: ReadonlyMap<string, TensorReport>): unknown => {
  const described = Object.entries(tensors).map(([name, { step, slots }]) => {
    return [name, { step, slots: Object.fromEntries(Object.keys(slots).map((slot) => [slot, reports.get(`${slot}/${name}`)])) }];
  });
  return { ...state, tensors: Object.fromEntries(described) };
};

const stateText = (path: string, state: InspectResult, reports: ReadonlyMap<string, TensorReport>, hasStats: boolean): string => {
  const tensors = Object.entries(state.tensors);
  const steps = tensors.map(([, { step }]) => step);
  const [least, most] = [steps.reduce((a, b) => Math.min(a, b), Number.POSITIVE_INFINITY), steps.reduce((a, b) => Math.max(a, b), 0)];
  const slots = [...new Set(tensors.flatMap(([, { slots }]) => Object.keys(slots)))];
  const rows = tensors.flatMap(([name, { step, slots }]) => {
    const own = Object.keys(slots).map((slot) => [name, slot, String(step), ...rowCells(reports.get(`${slot}/${name}`), hasStats)]);
    return own.length > 0 ? own : [[name, "-", String(step)]];
  });
  return [
    `${path}: state of ${state.optimizer}, revision ${state.revision}, ${bytesText(state.bytes)}`,
    `steps:      ${tensors.length === 0 ? "-" : least === most ? most : `${least} to ${most}`}`,
    `parameters: ${countText(tensors.length)}`,
    `slots:      ${slots.length === 0 ? "none" : slots.join(", ")}`,
    `elements:   ${countText(state.elements)}`,
    "",
    formatTable(["parameter", "slot", "step", ...columnTitles(hasStats)], rows, 2),
  ].join("\n");
};

const columnTitles = (hasStats: boolean): readonly string[] => [
  "dtype",
  "shape",
  "elements",
  "bytes",
  ...(hasStats ? ["min", "max", "norm", "not finite"] : []),
];

const rowCells = (report: TensorReport | undefined, hasStats: boolean): readonly string[] => {
  if (!report) return [];
  const { dtype, shape, elements, bytes, min, max, norm, non_finite: nonFinite } = report;
  const text = (value: number | null | undefined): string => (value === null || value === undefined ? "-" : numberText(value));
  const stats = hasStats ? [text(min), text(max), text(norm), nonFinite === undefined ? "-" : countText(nonFinite)] : [];
  return [dtype, `[${shape.join(", ")}]`, countText(elements), countText(bytes), ...stats];
};

const FLOAT_DTYPES: readonly string[] = COMPUTED;

/** Computes statistics of the tensors with a floating-point dtype. */
const statsOf = (file: TensorFile, tensors: readonly TensorInfo[]): ReadonlyMap<string, Stats> => {
  const floats = tensors.filter(({ dtype }) => FLOAT_DTYPES.includes(dtype));
  using bar = new Progress();
  bar.begin(
    "reading",
    floats.reduce((sum, { bytes }) => sum + bytes, 0),
  );
  return new Map(floats.map((tensor) => [tensor.name, measure(file, tensor, bar)]));
};

const measure = (file: TensorFile, tensor: TensorInfo, bar: Progress): Stats => {
  const size = tensor.bytes / (tensor.elements || 1);
  let min = Number.POSITIVE_INFINITY;
  let max = Number.NEGATIVE_INFINITY;
  let squares = 0;
  let nonFinite = 0;
  for (const chunk of file.chunks(tensor)) {
    for (let at = 0; at < chunk.length; at += size) {
      const value = readElement(chunk, at, tensor.dtype);
      if (!Number.isFinite(value)) {
        nonFinite++;
        continue;
      }
      if (value < min) min = value;
      if (value > max) max = value;
      squares += value * value;
    }
    bar.tick(chunk.length);
  }
  const hasValues = nonFinite < tensor.elements;
  return { min: hasValues ? min : null, max: hasValues ? max : null, norm: Math.sqrt(squares), non_finite: nonFinite };
};
