/** Examines one checkpoint: computes statistics for each slot, and reports faults. */
import { countText, listText, numberText, pluralize } from "../common/format.ts";
import { type Checkpoint, type Definitions, type Finding, type Level, parametersOf, type Tensor, tensorsByParameter, Unreadable } from "./checkpoint.ts";
import { addValues, mergeStatistics, newStatistics, type Statistics, valuesOf } from "./values.ts";

export interface Examination {
  readonly findings: readonly Finding[];
  /** Statistics by slot. The empty name stands for weights. */
  readonly slots: ReadonlyMap<string, Statistics>;
  readonly tensors: ReadonlyMap<Tensor, Statistics>;
}

/** These slots have no negative elements, because they are sums or maxima of squares or magnitudes. */
const NON_NEGATIVE = new Set(["exp_avg_sq", "max_exp_avg_sq", "square_avg", "exp_inf", "sum", "acc_delta", "row_var", "col_var", "variance"]);

/** Matches the slots that have their parameter's shape. */
const SHAPED = /^(exp_avg|exp_avg_sq|max_exp_avg_sq|momentum_buffer|square_avg|grad_avg|acc_delta|sum|exp_inf|master_param)$/;

const finding = (level: Level, code: string, sentence: string): Finding => ({ code, level, sentence });

/** Returns the least and the largest number. A call with all of them as arguments would fail for a file of many parameters. */
export const rangeOf = (values: readonly number[]): readonly [least: number, most: number] =>
  values.reduce<readonly [number, number]>(
    ([least, most], value) => [Math.min(least, value), Math.max(most, value)],
    [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY],
  );

/** Names the tensors for which a condition holds. */
const namesWhere = (statistics: ReadonlyMap<Tensor, Statistics>, isIt: (tensor: Tensor, values: Statistics) => boolean): readonly string[] =>
  [...statistics].filter(([tensor, values]) => isIt(tensor, values)).map(([{ slot, parameter }]) => (slot === "" ? parameter : `${slot} of ${parameter}`));

/** Returns the findings that need no tensor values. */
export const examineStructure = (checkpoint: Checkpoint, definitions: Definitions): readonly Finding[] => {
  const { format, metadata, optimizer, isOptimizerNamed, tensors, steps, groups } = checkpoint;
  const found: Finding[] = [];
  const add = (level: Level, code: string, sentence: string): void => {
    found.push(finding(level, code, sentence));
  };
  if (format === "weights") {
    add(
      "error",
      "no-optimizer-state",
      "The file has weights and no optimizer state. A run that resumes from it alone starts its moments and its step count at zero.",
    );
    return found;
  }
  const version = metadata["format"];
  if (version !== undefined && version !== "stepd.state/1")
    add("error", "unknown-version", `The file says that its format is “${version}”; this server reads “stepd.state/1”.`);
  const definition = optimizer === undefined ? undefined : definitions.get(optimizer);
  if (isOptimizerNamed && definitions.size > 0 && !definition)
    add("error", "unknown-optimizer", `The file is a state of “${optimizer}”, which this server does not have.`);
  const parameters = parametersOf(checkpoint);
  const slots = tensorsByParameter(checkpoint);

  const disagreeing = parameters.filter((name) => {
    const shapes = [...(slots.get(name)?.values() ?? [])].filter(({ slot }) => SHAPED.test(slot)).map(({ shape }) => shape.join());
    return new Set(shapes).size > 1;
  });
  if (disagreeing.length > 0) {
    const [name = ""] = disagreeing;
    const shapes = [...(slots.get(name)?.values() ?? [])].filter(({ slot }) => SHAPED.test(slot)).map(({ slot, shape }) => `${slot} [${shape.join(", ")}]`);
    add(
      "error",
      "shapes-disagree",
      `The slots of ${listText(disagreeing)} have different shapes (${shapes.join(", ")}); all slots of a parameter have its shape.`,
    );
  }

  const present = [...new Set(tensors.map(({ slot }) => slot))];
  for (const slot of present.filter((name) => SHAPED.test(name))) {
    const owners = new Set(tensors.filter((tensor) => tensor.slot === slot).map(({ parameter }) => parameter));
    const lacking = [...slots.keys()].filter((name) => !owners.has(name));
    // A parameter without any slot never had a gradient, which is not a fault.
    if (lacking.length > 0)
      add("error", "missing-slot", `${listText(lacking)} ${lacking.length === 1 ? "lacks" : "lack"} the slot ${slot}, which other parameters have.`);
  }
  if (definition && tensors.length > 0 && format === "stepd") {
    const lacking = definition.slots.default.filter((slot) => !present.includes(slot) && slot !== "step");
    if (lacking.length > 0) add("error", "missing-slot", `No parameter has the slot ${listText(lacking)}, which ${optimizer} needs.`);
    const foreign = present.filter((slot) => !definition.slots.all.includes(slot) && !/^(master_param|mu_product)$/.test(slot));
    if (foreign.length > 0)
      add("error", "foreign-slot", `The file has the slot ${listText(foreign)}, which ${optimizer} does not use. Another optimizer wrote it.`);
  }

  const counts = [...steps.values()];
  const bad = [...steps].filter(([, step]) => !Number.isSafeInteger(step) || step < 0).map(([name]) => name);
  if (bad.length > 0) add("error", "bad-step", `The step of ${listText(bad)} is no whole number from 0 on.`);
  const [least, most] = rangeOf(counts);
  if (counts.length > 1 && least !== most) {
    const behind = [...steps].filter(([, step]) => step < most).map(([name]) => name);
    add(
      "warning",
      "steps-disagree",
      `The steps disagree: most is ${countText(most)}, but ${listText(behind)} ${behind.length === 1 ? "stands" : "stand"} at ${countText(least)}${behind.length === 1 ? "" : " or later"}. That is right for parameters that had no gradient at times, and wrong after a merge of two files.`,
    );
  }
  const withoutStep = [...slots.keys()].filter((name) => !steps.has(name));
  if (withoutStep.length > 0 && format === "stepd")
    add("error", "missing-step", `${listText(withoutStep)} ${withoutStep.length === 1 ? "has" : "have"} slots but no step count.`);
  if (withoutStep.length > 0 && format === "torch" && tensors.some(({ slot }) => slot.startsWith("exp_avg")))
    add("warning", "missing-step", "The file has no step counts. Bias correction would begin anew; a conversion needs the step.");

  if (groups.length > 0) {
    const grouped = groups.flatMap(({ parameters: own }) => own);
    const inGroups = new Set(grouped);
    const stray = [...slots.keys()].filter((name) => !inGroups.has(name));
    if (stray.length > 0)
      add(
        "error",
        "no-group",
        `${listText(stray)} ${stray.length === 1 ? "has" : "have"} state but ${stray.length === 1 ? "is" : "are"} in no parameter group.`,
      );
    const fresh = grouped.filter((name) => !slots.has(name) && !steps.has(name));
    if (fresh.length > 0 && slots.size > 0)
      add(
        "warning",
        "no-state",
        `${listText(fresh)} ${fresh.length === 1 ? "is" : "are"} in a group but ${fresh.length === 1 ? "has" : "have"} no state: no gradient yet, frozen, or lost.`,
      );
    const rates = [...new Set(groups.map(({ values }) => values["lr"]).filter((rate) => typeof rate === "number"))];
    if (rates.some((rate) => rate === 0))
      add("warning", "zero-rate", "A group's learning rate is 0: the schedule has ended, and a resume would learn nothing.");
  }
  if (format === "qhoptim")
    add(
      "note",
      "corrected-moments",
      "The moments are those of qhoptim: already divided by their bias correction. torch and stepd keep them without; convert the file before a resume there.",
    );
  return found;
};

/** Returns the findings from the tensors' values. */
const examineValues = (checkpoint: Checkpoint, statistics: ReadonlyMap<Tensor, Statistics>): readonly Finding[] => {
  const found: Finding[] = [];
  const nonFinite = namesWhere(statistics, (_, { nonFinite }) => nonFinite > 0);
  if (nonFinite.length > 0) {
    const values = [...statistics.values()].reduce((sum, { nonFinite }) => sum + nonFinite, 0);
    found.push(
      finding(
        "error",
        "non-finite",
        `${pluralize(values, "value")} of ${listText(nonFinite)} ${values === 1 ? "is" : "are"} NaN or infinite. Every later step keeps them; go back to an earlier file.`,
      ),
    );
  }
  const negative = namesWhere(statistics, ({ slot }, { negative }) => NON_NEGATIVE.has(slot) && negative > 0);
  if (negative.length > 0)
    found.push(
      finding(
        "error",
        "negative-square",
        `${listText(negative)} ${negative.length === 1 ? "has" : "have"} negative values. It averages squares, so the file is damaged, or its slots are swapped.`,
      ),
    );
  const stepOf = ({ parameter }: Tensor): number => checkpoint.steps.get(parameter) ?? 0;
  const lost = namesWhere(statistics, (tensor, { count, zeros }) => tensor.slot === "exp_avg_sq" && count > 0 && zeros === count && stepOf(tensor) > 0);
  if (lost.length > 0)
    found.push(
      finding(
        "error",
        "zero-moments",
        `${listText(lost)} ${lost.length === 1 ? "is" : "are"} zero everywhere although steps were taken: the moments were reset or never saved, or the gradients were all zero.`,
      ),
    );
  const early = namesWhere(
    statistics,
    (tensor, { count, zeros }) => /^exp_avg/.test(tensor.slot) && zeros < count && checkpoint.steps.get(tensor.parameter) === 0,
  );
  if (early.length > 0)
    found.push(
      finding(
        "error",
        "step-zero",
        `${listText(early)} ${early.length === 1 ? "has" : "have"} values at step 0. The step count was lost, and bias correction would begin anew.`,
      ),
    );
  return found;
};

/** Reads all tensors and examines the checkpoint. `onProgress` receives the finished share, and lets the page redraw. */
export const examine = async (
  checkpoint: Checkpoint,
  definitions: Definitions,
  onProgress: (part: number) => Promise<void> = async () => undefined,
): Promise<Examination> => {
  const tensors = new Map<Tensor, Statistics>();
  const slots = new Map<string, Statistics>();
  const structure = examineStructure(checkpoint, definitions);
  for (const [index, tensor] of checkpoint.tensors.entries()) {
    const statistics = newStatistics();
    try {
      addValues(statistics, await valuesOf(tensor));
    } catch (error) {
      if (error instanceof Unreadable) return { findings: [...structure, finding("error", error.code, error.message)], slots, tensors };
      throw error;
    }
    tensors.set(tensor, statistics);
    const own = slots.get(tensor.slot) ?? newStatistics();
    mergeStatistics(own, statistics);
    slots.set(tensor.slot, own);
    await onProgress((index + 1) / checkpoint.tensors.length);
  }
  return { findings: [...structure, ...examineValues(checkpoint, tensors)], slots, tensors };
};

/** Summarizes a checkpoint in one line. */
export const summarize = (checkpoint: Checkpoint): string => {
  const { format, optimizer, isOptimizerNamed, steps, tensors } = checkpoint;
  if (format === "weights") return `Weights: ${pluralize(parametersOf(checkpoint).length, "parameter")}.`;
  const kinds = {
    stepd: "state of stepd",
    torch: "state of a torch optimizer",
    qhoptim: "state of qhoptim",
    optax: "state of optax",
  } as const;
  const counts = [...new Set(steps.values())].sort((a, b) => a - b);
  const step =
    counts.length === 0
      ? ""
      : counts.length === 1
        ? ` at step ${countText(counts[0] as number)}`
        : ` at steps ${numberText(counts[0] as number)} to ${numberText(counts.at(-1) as number)}`;
  const of = optimizer === undefined ? "" : isOptimizerNamed ? ` of ${optimizer}` : `, by its content of ${optimizer}`;
  return `A ${kinds[format]}${of}${step}, for ${pluralize(parametersOf(checkpoint).length, "parameter")} in ${pluralize(tensors.length, "tensor")}.`;
};
