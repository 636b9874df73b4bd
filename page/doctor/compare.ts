/** Compares two checkpoints. The findings explain why runs that resume from them would differ. */
import { countText, listText, numberText, pluralize } from "../common/format.ts";
import {
  type Checkpoint,
  type Definitions,
  dtypeOf,
  elementsIn,
  type Finding,
  type Group,
  type Level,
  parametersOf,
  type Tensor,
  tensorsByParameter,
} from "./checkpoint.ts";
import { rangeOf } from "./examine.ts";
import { valuesOf } from "./values.ts";

const finding = (level: Level, code: string, sentence: string): Finding => ({ code, level, sentence });

/** Adds a name to the list of a key. */
const push = (lists: Map<string, string[]>, key: string, name: string): void => {
  const names = lists.get(key) ?? [];
  names.push(name);
  lists.set(key, names);
};

/** Maps the prefixes of parameter names to the wrappers that add them. */
const PREFIXES: Readonly<Record<string, string>> = {
  "module.": "DataParallel or DistributedDataParallel",
  "_orig_mod.": "torch.compile",
  "_fsdp_wrapped_module.": "FSDP",
  "_forward_module.": "Lightning's Fabric",
  "base_model.model.": "PEFT",
  "model.": "a wrapper, such as a LightningModule",
  "params/": "flax",
};

/** The parameters that both files have. */
interface Pairs {
  /** Maps a parameter's name in A to its name in B. */
  readonly pairs: ReadonlyMap<string, string>;
  readonly findings: readonly Finding[];
}

const isNumber = (name: string): boolean => /^\d+$/.test(name);

const shapeOf = (slots: ReadonlyMap<string, Tensor> | undefined): string | undefined =>
  [...(slots?.values() ?? [])].find(({ shape }) => shape.length > 0 && elementsIn(shape) > 0)?.shape.join(", ");

const countsOf = (values: readonly (string | undefined)[]): ReadonlyMap<string | undefined, number> => {
  const counts = new Map<string | undefined, number>();
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
  return counts;
};

/** Pairs the parameters of two files by name, with or without a wrapper's prefix. If one file has only numbers, pairs them by order. */
const pairParameters = (a: Checkpoint, b: Checkpoint): Pairs => {
  const [namesA, namesB] = [parametersOf(a), parametersOf(b)];
  const [slotsA, slotsB] = [tensorsByParameter(a), tensorsByParameter(b)];
  const [setA, setB] = [new Set(namesA), new Set(namesB)];
  const onlyA = namesA.filter((name) => !setB.has(name));
  const onlyB = namesB.filter((name) => !setA.has(name));
  const pairs = new Map(namesA.filter((name) => setB.has(name)).map((name) => [name, name]));
  if (onlyA.length === 0 && onlyB.length === 0) return { pairs, findings: [] };

  if (pairs.size === 0 && namesA.every(isNumber) !== namesB.every(isNumber) && namesA.length === namesB.length) {
    for (const [index, name] of namesA.entries()) pairs.set(name, namesB[index] as string);
    const wrong = namesA.filter((name) => shapeOf(slotsA.get(name)) !== shapeOf(slotsB.get(pairs.get(name) as string)));
    const numbered = namesA.every(isNumber) ? "A" : "B";
    if (wrong.length === 0)
      return {
        pairs,
        findings: [
          finding(
            "note",
            "numbered",
            `${numbered} numbers its parameters. They are compared in their order with the names of the other file; all shapes agree.`,
          ),
        ],
      };
    return {
      pairs,
      findings: [
        finding(
          "error",
          "order-differs",
          `${numbered} numbers its parameters, and their order is not that of the other file: the shapes of ${listText(wrong)} disagree. Give the names in the optimizer's order.`,
        ),
      ],
    };
  }

  for (const [longer, shorter, from, to] of [
    ["B", "A", onlyA, onlyB],
    ["A", "B", onlyB, onlyA],
  ] as const) {
    const prefix = to[0]?.endsWith(from[0] ?? "\0") ? (to[0] as string).slice(0, -(from[0] as string).length) : "";
    const prefixes = prefix === "" ? Object.keys(PREFIXES) : [prefix];
    const others = new Set(to);
    const found = prefixes.find((start) => from.length > 0 && from.length === to.length && from.every((name) => others.has(start + name)));
    if (found === undefined) continue;
    for (const name of from) pairs.set(longer === "B" ? name : found + name, longer === "B" ? found + name : name);
    const cause = PREFIXES[found] === undefined ? "" : `, which ${PREFIXES[found]} adds`;
    return {
      pairs,
      findings: [
        finding(
          "error",
          "renamed",
          `${longer} has “${found}” before the names of ${shorter}${cause}. A resume that goes by name would find no state for ${pluralize(from.length, "parameter")}.`,
        ),
      ],
    };
  }

  // Unpaired parameters count as renamed if both files have the same shapes in the same order. Else only those with a unique shape do.
  const [shapesA, shapesB] = [onlyA.map((name) => shapeOf(slotsA.get(name))), onlyB.map((name) => shapeOf(slotsB.get(name)))];
  const isSameOrder = shapesA.length === shapesB.length && shapesA.every((shape, index) => shape !== undefined && shape === shapesB[index]);
  const [countsA, countsB] = [countsOf(shapesA), countsOf(shapesB)];
  const byShape = new Map(onlyB.map((name, index) => [shapesB[index], name]));
  for (const [index, name] of onlyA.entries()) {
    const shape = shapesA[index];
    const isUnique = shape !== undefined && countsA.get(shape) === 1 && countsB.get(shape) === 1;
    if (isSameOrder) pairs.set(name, onlyB[index] as string);
    else if (isUnique) pairs.set(name, byShape.get(shape) as string);
  }
  const paired = new Set(pairs.values());
  const renamed = onlyA.flatMap((name) => (pairs.has(name) ? [`“${name}” to “${pairs.get(name)}”`] : []));
  const leftA = onlyA.filter((name) => !pairs.has(name));
  const leftB = onlyB.filter((name) => !paired.has(name));
  const findings: Finding[] = [];
  if (renamed.length > 0) {
    const shown = renamed.slice(0, 3).join(", ");
    findings.push(
      finding(
        "error",
        "renamed",
        `${pluralize(renamed.length, "parameter")} ${renamed.length === 1 ? "seems" : "seem"} renamed, by ${isSameOrder ? "order and shape" : "shape"}: ${shown}${renamed.length > 3 ? " and others" : ""}. A resume by name would lose their state.`,
      ),
    );
  }
  if (leftA.length > 0)
    findings.push(
      finding(
        "error",
        "missing-parameter",
        `${listText(leftA)} ${leftA.length === 1 ? "is" : "are"} in A and not in B. A resume from B would start ${leftA.length === 1 ? "it" : "them"} at zero.`,
      ),
    );
  if (leftB.length > 0) findings.push(finding("error", "new-parameter", `${listText(leftB)} ${leftB.length === 1 ? "is" : "are"} in B and not in A.`));
  return { pairs, findings };
};

const compareOptimizers = (a: Checkpoint, b: Checkpoint, definitions: Definitions): readonly Finding[] => {
  if (a.optimizer === undefined || b.optimizer === undefined || a.optimizer === b.optimizer) return [];
  const [familyA, familyB] = [definitions.get(a.optimizer)?.family, definitions.get(b.optimizer)?.family];
  const names = `A is of ${a.optimizer}, B of ${b.optimizer}`;
  if (familyA !== undefined && familyA === familyB)
    return [finding("warning", "other-optimizer", `${names}. Both keep the same slots, so either goes on from either file, but the steps differ.`)];
  return [finding("error", "other-optimizer", `${names}: their slots differ, so neither goes on from the other's file.`)];
};

/** Maps each parameter to the index of its group. */
const groupsByParameter = (groups: readonly Group[]): ReadonlyMap<string, number> =>
  new Map(groups.flatMap(({ parameters }, index) => parameters.map((name) => [name, index] as const)));

const compareGroups = (a: Checkpoint, b: Checkpoint, pairs: ReadonlyMap<string, string>): readonly Finding[] => {
  if (a.groups.length === 0 || b.groups.length === 0) return [];
  const found: Finding[] = [];
  if (a.groups.length !== b.groups.length)
    found.push(
      finding(
        "error",
        "group-count",
        `A has ${pluralize(a.groups.length, "parameter group")}, B ${countText(b.groups.length)}. torch refuses to load one into the other.`,
      ),
    );
  const [groupsA, groupsB] = [groupsByParameter(a.groups), groupsByParameter(b.groups)];
  const moved: string[] = [];
  const byKey = new Map<string, string[]>();
  for (const [name, other] of pairs) {
    const [atA, atB] = [groupsA.get(name) ?? -1, groupsB.get(other) ?? -1];
    const [valuesA, valuesB] = [a.groups[atA]?.values, b.groups[atB]?.values];
    if (!valuesA || !valuesB) continue;
    if (atA !== atB && a.groups.length === b.groups.length) moved.push(name);
    for (const key of new Set([...Object.keys(valuesA), ...Object.keys(valuesB)])) {
      const [first, second] = [JSON.stringify(valuesA[key]), JSON.stringify(valuesB[key])];
      if (first === second || first === undefined || second === undefined) continue;
      const sentence = `${key} is ${first} in A and ${second} in B`;
      push(byKey, sentence, name);
    }
  }
  if (moved.length > 0)
    found.push(
      finding(
        "error",
        "moved-group",
        `${listText(moved)} ${moved.length === 1 ? "is" : "are"} in another parameter group in B, and so ${moved.length === 1 ? "gets" : "get"} its learning rate and settings.`,
      ),
    );
  for (const [sentence, names] of byKey) {
    const code = sentence.startsWith("lr ") || sentence.startsWith("initial_lr ") ? "other-rate" : "other-setting";
    found.push(finding("warning", code, `${sentence}, for ${listText(names)}.`));
  }
  return found;
};

/** Common decay rates. They are tried in addition to the files' own. */
const COMMON_BETAS = [0.5, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9999];
const RATIO_TOLERANCE = 2e-3;

/** The differences of one slot between the two files. */
interface SlotDifference {
  readonly parameters: string[];
  elements: number;
  different: number;
  largest: number;
  /** Maps a parameter to the ratio B/A, if this ratio is the same for all its elements. */
  readonly ratios: Map<string, number>;
  /** Parameters with a single element. Their ratios prove nothing. */
  singles: number;
  readonly zeroInB: string[];
}

/** Elements below this share of the tensor's largest magnitude are ignored, because rounding dominates their ratios. */
const RATIO_FLOOR = 1e-6;

const compareValues = (
  x: ArrayLike<number>,
  y: ArrayLike<number>,
): { readonly different: number; readonly largest: number; readonly ratio: number | undefined; readonly isSingle: boolean; readonly isZero: boolean } => {
  let [different, largest, magnitude, nonZero] = [0, 0, 0, 0];
  for (let at = 0; at < x.length; at++) {
    const [first, second] = [x[at] as number, y[at] as number];
    // NaN equals NaN here, and 0 equals -0, since a step gives the same parameters from either.
    if (first !== second && !(Number.isNaN(first) && Number.isNaN(second))) {
      different++;
      const distance = Math.abs(first - second);
      if (!(distance <= largest)) largest = Number.isNaN(distance) ? Number.POSITIVE_INFINITY : distance;
    }
    magnitude = Math.max(magnitude, Math.abs(first));
    if (second !== 0) nonZero++;
  }
  let [least, most] = [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY];
  let ratios = 0;
  for (let at = 0; at < x.length; at++) {
    const first = x[at] as number;
    if (Math.abs(first) <= magnitude * RATIO_FLOOR) continue;
    ratios++;
    const ratio = (y[at] as number) / first;
    if (ratio < least) least = ratio;
    if (ratio > most) most = ratio;
  }
  const ratio = (least + most) / 2;
  const isConstant = different > 0 && least > 0 && most - least <= RATIO_TOLERANCE * most && Math.abs(ratio - 1) > RATIO_TOLERANCE;
  return { different, largest, ratio: isConstant && ratios > 1 ? ratio : undefined, isSingle: ratios === 1, isZero: nonZero === 0 && magnitude > 0 };
};

const betasOf = (slot: string, checkpoints: readonly Checkpoint[]): readonly number[] => {
  const at = slot === "exp_avg" ? 0 : 1;
  const given = checkpoints.flatMap(({ groups }) => groups.flatMap(({ values }) => (Array.isArray(values["betas"]) ? [Number(values["betas"][at])] : [])));
  return [...new Set([...given, ...COMMON_BETAS])];
};

/** Finds the beta for which the ratio equals the bias correction 1 - beta^step or its inverse. `corrected` names the file that is bias-corrected. */
const findBiasCorrection = (ratio: number, step: number, betas: readonly number[]): { readonly beta: number; readonly corrected: "A" | "B" } | undefined => {
  for (const beta of betas) {
    const correction = 1 - beta ** step;
    if (Math.abs(ratio * correction - 1) < RATIO_TOLERANCE) return { beta, corrected: "B" };
    if (Math.abs(ratio / correction - 1) < RATIO_TOLERANCE) return { beta, corrected: "A" };
  }
  return undefined;
};

const describeSlot = (slot: string, difference: SlotDifference, a: Checkpoint, b: Checkpoint): readonly Finding[] => {
  const { parameters, elements, different, largest, ratios, singles, zeroInB } = difference;
  const hasRatio = ratios.size > 0 && ratios.size + singles === parameters.length;
  if (different === 0) return [];
  const what = slot === "" ? "weights" : slot;
  const found: Finding[] = [];
  if (zeroInB.length > 0) found.push(finding("error", "lost-in-b", `${what} of ${listText(zeroInB)} is zero everywhere in B: its state was lost.`));
  if (/^exp_avg(_sq)?$/.test(slot) && hasRatio) {
    const biases = [...ratios].map(([name, ratio]) =>
      findBiasCorrection(ratio, a.steps.get(name) ?? [...a.steps.values()][0] ?? [...b.steps.values()][0] ?? 0, betasOf(slot, [a, b])),
    );
    const [first] = biases;
    if (first && biases.every((bias) => bias?.corrected === first.corrected))
      return [
        ...found,
        finding(
          "error",
          "bias-corrected",
          `${what} of ${first.corrected} is divided by its bias correction 1 - ${first.beta}^step, and that of the other file is not. torch and stepd keep moments without the correction; state.convert changes one into the other.`,
        ),
      ];
  }
  const values = [...ratios.values()];
  const [least, most] = rangeOf(values);
  if (hasRatio && most - least <= RATIO_TOLERANCE * most)
    return [
      ...found,
      finding(
        "error",
        "scaled",
        `${what} of B is ${numberText(values[0] as number)} times that of A everywhere: gradients were scaled otherwise, for instance by a loss scale or by accumulation.`,
      ),
    ];
  if (zeroInB.length < parameters.length)
    found.push(
      finding(
        "warning",
        "other-values",
        `${what} differs in ${countText(different)} of ${pluralize(elements, "value")}, ${Number.isFinite(largest) ? `by up to ${numberText(largest)}` : "some of which are NaN or infinite in one file only"}, in ${listText(parameters)}.`,
      ),
    );
  return found;
};

/** Compares two checkpoints. The run wrote A, and resumes from B. */
export const compare = async (
  a: Checkpoint,
  b: Checkpoint,
  definitions: Definitions,
  onProgress: (part: number) => Promise<void> = async () => undefined,
): Promise<readonly Finding[]> => {
  const { pairs, findings } = pairParameters(a, b);
  const found: Finding[] = [...compareOptimizers(a, b, definitions), ...findings];
  const add = (level: Level, code: string, sentence: string): void => {
    found.push(finding(level, code, sentence));
  };

  const late = [...pairs].filter(([name, other]) => a.steps.get(name) !== b.steps.get(other) && (a.steps.has(name) || b.steps.has(other)));
  if (late.length > 0) {
    const [[name, other] = ["", ""]] = late;
    const [stepA, stepB] = [a.steps.get(name), b.steps.get(other)];
    const sentence = `“${name}” is at step ${stepA === undefined ? "(none)" : countText(stepA)} in A and ${stepB === undefined ? "(none)" : countText(stepB)} in B`;
    const effect = stepB === undefined || stepB === 0 ? " Bias correction and schedules would begin anew." : " Bias correction and schedules go by the step.";
    add("error", "other-step", `${sentence}${late.length > 1 ? `, and ${pluralize(late.length - 1, "other")} differ, too` : ""}.${effect}`);
  }

  const [slotsA, slotsB] = [tensorsByParameter(a), tensorsByParameter(b)];
  const shapes: string[] = [];
  const transposed: string[] = [];
  const [missing, dtypes] = [new Map<string, string[]>(), new Map<string, string[]>()];
  const differences = new Map<string, SlotDifference>();
  let done = 0;
  for (const [name, other] of pairs) {
    const [own, others] = [slotsA.get(name) ?? new Map<string, Tensor>(), slotsB.get(other) ?? new Map<string, Tensor>()];
    for (const slot of new Set([...own.keys(), ...others.keys()])) {
      const [first, second] = [own.get(slot), others.get(slot)];
      if (!first || !second) {
        const key = `${slot}\n${first ? "B" : "A"}`;
        push(missing, key, name);
        continue;
      }
      if (first.shape.join() !== second.shape.join()) {
        if (!shapes.includes(name) && !transposed.includes(name)) (first.shape.toReversed().join() === second.shape.join() ? transposed : shapes).push(name);
        continue;
      }
      if (dtypeOf(first) !== dtypeOf(second)) {
        const key = `${slot} is ${dtypeOf(first)} in A and ${dtypeOf(second)} in B`;
        push(dtypes, key, name);
      }
      const [x, y] = [await valuesOf(first), await valuesOf(second)];
      const { different, largest, ratio, isSingle, isZero } = compareValues(x, y);
      if (different > 0) {
        const difference: SlotDifference = differences.get(slot) ?? {
          parameters: [],
          elements: 0,
          different: 0,
          largest: 0,
          ratios: new Map(),
          singles: 0,
          zeroInB: [],
        };
        differences.set(slot, difference);
        difference.parameters.push(name);
        difference.elements += x.length;
        difference.different += different;
        difference.largest = Math.max(difference.largest, largest);
        if (ratio !== undefined) difference.ratios.set(name, ratio);
        if (isSingle) difference.singles++;
        if (isZero) difference.zeroInB.push(name);
      }
    }
    await onProgress(++done / pairs.size);
  }
  for (const [key, names] of missing) {
    const [slot = "", side] = key.split("\n");
    const effect = side === "B" ? "A resume from B would start it at zero" : "A did not have it";
    add(
      "error",
      "missing-slot",
      `${side} lacks the slot ${slot} of ${listText(names)}. ${effect}${slot === "max_exp_avg_sq" ? "; amsgrad was switched" : ""}.`,
    );
  }
  if (transposed.length > 0)
    add(
      "error",
      "transposed",
      `${listText(transposed)} ${transposed.length === 1 ? "is" : "are"} transposed: torch keeps weights as [out, in], flax as [in, out].`,
    );
  if (shapes.length > 0) {
    const [name = ""] = shapes;
    add(
      "error",
      "other-shape",
      `The shapes of ${listText(shapes)} differ: “${name}” is [${shapeOf(slotsA.get(name))}] in A and [${shapeOf(slotsB.get(pairs.get(name) ?? ""))}] in B.`,
    );
  }
  for (const [sentence, names] of dtypes) add("warning", "other-dtype", `${sentence}, for ${listText(names)}. A narrower dtype has rounded the values.`);
  for (const [slot, difference] of differences) found.push(...describeSlot(slot, difference, a, b));
  found.push(...compareGroups(a, b, pairs));
  if (found.every(({ level }) => level === "note"))
    add(
      "note",
      "same",
      a.format === "weights" ? "Both files hold the same weights." : "Both files hold the same state: a run that resumes from either takes the same steps.",
    );
  return found;
};
