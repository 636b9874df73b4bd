/** Defines a `stepd` command and parses its arguments. The parser, the checks and the help use the same table of options. */
import { parseArgs } from "node:util";
import { nearest } from "../errors/nearest.ts";
import { heading } from "./terminal.ts";

/** Thrown for wrong usage of the command line. Its message is one line. */
export class UsageError extends Error {
  override readonly name = "UsageError";
}

/** Thrown if a command fails. Its message is one line. */
export class CommandError extends Error {
  override readonly name = "CommandError";
}

export interface Option {
  readonly help: string;
  /** The help shows this placeholder for the value. An option without a placeholder takes no value. */
  readonly value?: string;
  /** True if the option may be repeated. */
  readonly isMultiple?: boolean;
  /** The default value as text, for the help. */
  readonly initial?: string;
  readonly short?: string;
}

export type Options = Readonly<Record<string, Option>>;

type Value<O extends Option> = O extends { value: string } ? (O extends { isMultiple: true } ? readonly string[] : string | undefined) : boolean;

export type Values<O extends Options> = { readonly [K in keyof O]: Value<O[K]> };

export interface Command<O extends Options = Options> {
  readonly name: string;
  readonly summary: string;
  /** The names of the positional arguments. An argument whose name ends with "?" is optional. */
  readonly args: readonly string[];
  readonly options: O;
  /** The help prints these paragraphs below the options. */
  readonly notes: readonly string[];
  /** Runs the command and returns the exit code. */
  run(values: Values<O>, args: readonly string[]): Promise<number>;
}

/** Defines a command. The options determine the type of the values that `run` receives. */
export const defineCommand = <const O extends Options>(command: Command<O>): Command => command as unknown as Command;

const HELP: Option = { help: "print this", short: "h" };

export interface Parsed {
  readonly isHelp: boolean;
  readonly values: Values<Options>;
  readonly args: readonly string[];
}

/** Parses the arguments of a command. Throws UsageError. */
export const parseArguments = ({ args: names, options }: Command, argv: readonly string[]): Parsed => {
  const all: Options = { ...options, help: HELP };
  const config = Object.entries(all).map(([name, { value, short }]) => {
    return [name, { type: value === undefined ? "boolean" : "string", multiple: true, ...(short && { short }) }] as const;
  });
  // The errors of strict mode do not name the expected value.
  const { tokens } = parseArgs({ args: [...argv], options: Object.fromEntries(config), strict: false, allowPositionals: true, tokens: true });
  const given = new Map<string, string[]>();
  const args: string[] = [];
  for (const token of tokens) {
    if (token.kind === "positional") args.push(token.value);
    if (token.kind === "option") given.set(token.name, [...(given.get(token.name) ?? []), optionText(token, all)]);
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

const optionText = ({ name, rawName, value, inlineValue }: OptionToken, options: Options): string => {
  const option = Object.hasOwn(options, name) ? options[name] : undefined;
  if (!option) {
    const near = nearest(name, Object.keys(options));
    throw new UsageError(`${rawName}: expected an option that --help lists${near === undefined ? "" : ` (the nearest is --${near})`}, found an unknown one`);
  }
  if (option.value === undefined) {
    if (value !== undefined) throw new UsageError(`${rawName}: expected no value, found ${JSON.stringify(value)}`);
    return "";
  }
  // If a value is missing, parseArgs takes the next option as the value.
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

/** Parses an option's text as a whole number. Throws UsageError. */
export const parseWholeNumber = (text: string, name: string, minimum: number, maximum: number): number => {
  const number = Number(text);
  if (!/^\d+$/.test(text) || number < minimum || number > maximum)
    throw new UsageError(`--${name}: expected a whole number from ${minimum} to ${maximum}, found ${JSON.stringify(text)}`);
  return number;
};

/** Lists the choices for an error message, and names the choice nearest to the given text. */
export const listChoices = (text: string, choices: readonly string[]): string => {
  const near = nearest(text, choices);
  return `one of ${choices.join(", ")}${near === undefined ? "" : ` (the nearest is ${near})`}`;
};

/** Checks that an option's text is one of the choices. Throws UsageError. */
export const parseChoice = <T extends string>(text: string, name: string, choices: readonly T[]): T => {
  if (!(choices as readonly string[]).includes(text)) throw new UsageError(`--${name}: expected ${listChoices(text, choices)}, found ${JSON.stringify(text)}`);
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
