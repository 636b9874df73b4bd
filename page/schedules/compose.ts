/** Composes a schedule from parts, as JSON for the service and as code for torch. */
import type { Values } from "../common/schema.ts";

export interface Part {
  /** Identifies the part in the list, where it may change its place. */
  readonly id: number;
  readonly name: string;
  readonly steps: number;
  readonly values: Values;
}

/** Returns a new part's initial arguments, which fit its number of steps. */
export const initialValues = (name: string, steps: number, lr: number): Values => {
  switch (name) {
    case "constant":
      return { factor: 1, total_iters: steps };
    case "linear":
      return { start_factor: 0.1, total_iters: steps };
    case "polynomial":
      return { total_iters: steps };
    case "cosine":
      return { T_max: steps };
    case "cosine_warm_restarts":
      return { T_0: Math.max(1, Math.round(steps / 4)) };
    case "step":
      return { step_size: Math.max(1, Math.round(steps / 4)) };
    case "multistep":
      return { milestones: [Math.round(steps / 2), Math.round((3 * steps) / 4)] };
    case "exponential":
      return { gamma: Number((0.01 ** (1 / steps)).toPrecision(6)) };
    case "cyclic":
      return { base_lr: lr / 10, max_lr: lr, step_size_up: Math.max(1, Math.round(steps / 8)) };
    case "inverse_sqrt":
      return { warmup_steps: Math.round(steps / 10) };
    case "warmup_cosine":
      return { warmup_steps: Math.floor(steps / 10), total_steps: steps };
    case "warmup_stable_decay": {
      const [warmup, decay] = [Math.round(steps / 10), Math.max(1, Math.round(steps / 5))];
      return { warmup_steps: warmup, stable_steps: Math.max(0, steps - warmup - decay), decay_steps: decay };
    }
    case "table":
      return { lrs: [lr] };
    case "one_cycle":
      return { max_lr: lr, total_steps: steps };
    default:
      return {};
  }
};

const LENGTHS = ["total_iters", "T_max", "total_steps"];

/** Changes a part's number of steps. Arguments that equal the old number change with it. */
export const withSteps = (part: Part, steps: number): Part => ({
  ...part,
  steps,
  values: Object.fromEntries(Object.entries(part.values).map(([name, value]) => [name, LENGTHS.includes(name) && value === part.steps ? steps : value])),
});

/** Returns the number of steps before each part, except the first. */
const milestonesOf = (parts: readonly Part[]): readonly number[] => {
  let sum = 0;
  return parts.slice(0, -1).map(({ steps }) => {
    sum += steps;
    return sum;
  });
};

export type Schedule = Values & { readonly name: string };

/** Returns the schedule object for the service. Several parts become a sequence. */
export const scheduleOf = (parts: readonly Part[]): Schedule => {
  const schedules = parts.map(({ name, values }) => ({ name, ...values }));
  const [first] = schedules;
  return first && schedules.length === 1 ? first : { name: "sequence", schedules, milestones: milestonesOf(parts) };
};

/** The class of torch for each schedule that has one. */
export const TORCH_CLASSES: Readonly<Record<string, string>> = {
  constant: "ConstantLR",
  cosine: "CosineAnnealingLR",
  cosine_warm_restarts: "CosineAnnealingWarmRestarts",
  cyclic: "CyclicLR",
  exponential: "ExponentialLR",
  linear: "LinearLR",
  multistep: "MultiStepLR",
  one_cycle: "OneCycleLR",
  polynomial: "PolynomialLR",
  step: "StepLR",
};

/** Formats a value as a Python literal. */
const pythonText = (value: unknown): string => {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(pythonText).join(", ")}]`;
  return JSON.stringify(value);
};

const constructorOf = ({ name, values }: Part): string =>
  `${TORCH_CLASSES[name]}(${["optimizer", ...Object.entries(values).map(([key, value]) => `${key}=${pythonText(value)}`)].join(", ")})`;

/** Returns the same schedule as code for torch. The code expects an `optimizer` whose lr is the base rate. */
export const torchCode = (parts: readonly Part[]): string => {
  const other = parts.find(({ name }) => !(name in TORCH_CLASSES));
  if (other) return `# torch has no class for ${other.name}; a LambdaLR with the same formula, or the lr of each step, does the same.`;
  const classes = [...new Set(parts.map(({ name }) => TORCH_CLASSES[name])), ...(parts.length > 1 ? ["SequentialLR"] : [])].sort();
  const lines = [`from torch.optim.lr_scheduler import ${classes.join(", ")}`, ""];
  const [first] = parts;
  if (first && parts.length === 1) return [...lines, `scheduler = ${constructorOf(first)}`].join("\n");
  return [
    ...lines,
    "scheduler = SequentialLR(",
    "    optimizer,",
    "    [",
    ...parts.map((part) => `        ${constructorOf(part)},`),
    "    ],",
    `    milestones=[${milestonesOf(parts).join(", ")}],`,
    ")",
  ].join("\n");
};
