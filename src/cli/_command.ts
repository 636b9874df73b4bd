/** What a command of `stepd` is, and how its arguments are read: one table of options gives the parser, the checks and the help. */
import { parseArgs } from "node:util";
import { nearest } from "../errors/nearest.ts";
import { heading } from "./terminal.ts";

/** A wrong use of the command line. Its message is one line. */
export class UsageError extends Error {
  override readonly name = "UsageError";
}

/** A command that could not do its work. Its message is one line. */
export class CommandError extends Error {
  override readonly name = "CommandError";
}

export interface Option {
  readonly help: string;
  /** What stands for the value in the help; an option without is a switch. */
  readonly value?: string;
  /** May stand several times. */
  readonly isMultiple?: boolean;
  /** The default as the help prints it. */
  readonly initial?: string;
  readonly short?: string;
}

export type Options = Readonly<Record<string, Option>>;

type Value<O extends Option> = O extends { value: string } ? (O extends { isMultiple: true } ? readonly string[] : string | undefined) : boolean;

export type Values<O extends Options> = { readonly [K in keyof O]: Value<O[K]> };

export interface Command<O extends Options = Options> {
  readonly name: string;
  readonly summary: string;
  /** Names of the arguments, all needed; one that ends with ? may be missing. */
  readonly args: readonly string[];
  readonly options: O;
  /** What the help says below the options. */
  readonly notes: readonly string[];
  /** Does the work and returns the exit code. */
  run(values: Values<O>, args: readonly string[]): Promise<number>;
}

/** Types a command: the values that `run` gets follow from its options. */
export const defineCommand = <const O extends Options>(command: Command<O>): Command => command as unknown as Command;

const HELP: Option = { help: "print this", short: "h" };

export interface Parsed {
  readonly isHelp: boolean;
  readonly values: Values<Options>;
  readonly args: readonly string[];
}

/** Reads the arguments of a command. Throws UsageError. */
export const parse = ({ args: names, options }: Command, argv: readonly string[]): Parsed => {
  const all: Options = { ...options, help: HELP };
  const config = Object.entries(all).map(([name, { value, short }]) => {
    return [name, { type: value === undefined ? "boolean" : "string", multiple: true, ...(short && { short }) }] as const;
  });
  // Not strict: its refusals do not say what was expected.
  const { tokens } = parseArgs({ args: [...argv], options: Object.fromEntries(config), strict: false, allowPositionals: true, tokens: true });
  const given = new Map<string, string[]>();
  const args: string[] = [];
  for (const token of tokens) {
    if (token.kind === "positional") args.push(token.value);
    if (token.kind === "option") given.set(token.name, [...(given.get(token.name) ?? []), textGiven(token, all)]);
  }
  const isHelp = given.has("help");
  if (!isHelp) requireArgs(names, args);
  const values = Object.entries(options).map(([name, { value, isMultiple }]) => {
    const texts = given.get(name) ?? [];
    if (texts.length > 1 && !isMultiple && value !== undefined) throw new UsageError(`--${name}: expected one value, found ${texts.length}`);
    if (value === undefined) return [name, texts.length > 0];
    return [name, isMultiple ? texts : texts[0]];
  });
  return { isHelp, values: Object.fromEntries(values) as Values<Options>, args };
};

interface OptionToken {
  readonly name: string;
  readonly rawName: string;
  readonly value: string | undefined;
  readonly inlineValue: boolean | undefined;
}

const textGiven = ({ name, rawName, value, inlineValue }: OptionToken, options: Options): string => {
  const option = Object.hasOwn(options, name) ? options[name] : undefined;
  if (!option) {
    const near = nearest(name, Object.keys(options));
    throw new UsageError(`${rawName}: expected an option that --help lists${near === undefined ? "" : ` (the nearest is --${near})`}, found an unknown one`);
  }
  if (option.value === undefined) {
    if (value !== undefined) throw new UsageError(`${rawName}: expected no value, found ${JSON.stringify(value)}`);
    return "";
  }
  // A forgotten value would swallow the next option.
  if (value === undefined || (!inlineValue && value.startsWith("--")))
    throw new UsageError(`${rawName}: expected ${option.value}, found ${value ?? "nothing"}`);
  return value;
};

const requireArgs = (names: readonly string[], args: readonly string[]): void => {
  const missing = names.slice(args.length).find((name) => !name.endsWith("?"));
  if (missing !== undefined) throw new UsageError(`${missing}: expected an argument, found none`);
  const extra = args[names.length];
  if (extra !== undefined) throw new UsageError(`expected ${names.length === 0 ? "no arguments" : names.join(" ")}, found ${JSON.stringify(extra)} besides`);
};

/** A whole number out of an option's text. Throws UsageError. */
export const wholeNumber = (text: string, name: string, least: number, most: number): number => {
  const number = Number(text);
  if (!/^\d+$/.test(text) || number < least || number > most)
    throw new UsageError(`--${name}: expected a whole number from ${least} to ${most}, found ${JSON.stringify(text)}`);
  return number;
};

/** Words for some choices, with the nearest to what was found. */
export const anyOf = (text: string, choices: readonly string[]): string => {
  const near = nearest(text, choices);
  return `one of ${choices.join(", ")}${near === undefined ? "" : ` (the nearest is ${near})`}`;
};

/** One of some words. Throws UsageError. */
export const oneOf = <T extends string>(text: string, name: string, choices: readonly T[]): T => {
  if (!(choices as readonly string[]).includes(text)) throw new UsageError(`--${name}: expected ${anyOf(text, choices)}, found ${JSON.stringify(text)}`);
  return text as T;
};

export const helpOf = ({ name, summary, args, options, notes }: Command): string => {
  const shown = args.map((arg) => (arg.endsWith("?") ? `[${arg.slice(0, -1)}]` : arg));
  const heads = Object.entries({ ...options, help: HELP }).map(([option, { value, short }]: [string, Option]) => {
    return `${short ? `-${short}, ` : ""}--${option}${value === undefined ? "" : ` ${value}`}`;
  });
  const width = Math.max(...heads.map((head) => head.length));
  const lines = Object.values({ ...options, help: HELP }).map(({ help, initial, isMultiple }: Option, index) => {
    const more = `${isMultiple ? "; may be repeated" : ""}${initial === undefined || initial === "" ? "" : ` (${initial})`}`;
    return `  ${(heads[index] ?? "").padEnd(width)}  ${help}${more}`;
  });
  return [
    `${heading("Usage:")} stepd ${[name, ...shown].join(" ")} [options]`,
    "",
    summary,
    "",
    heading("Options:"),
    ...lines,
    ...(notes.length > 0 ? ["", ...notes] : []),
  ].join("\n");
};
