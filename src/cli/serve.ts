/** `stepd serve`: runs the service, or checks its settings. Its options are generated from the settings in src/config.ts. */
import { type Config, ConfigError, readConfig, readSettingsFile, settings, warningsFor } from "../config.ts";
import { version } from "../version.ts";
import { type Command, CommandError, defineCommand, type Option, UsageError } from "./_command.ts";
import { escapeControls, pluralize } from "./terminal.ts";

const PREFIX = "STEPD_";

/** Converts a setting's name to an option's name: STEPD_ARENA_MIB to arena-mib. */
const optionOf = (setting: string): string => setting.slice(PREFIX.length).toLowerCase().replaceAll("_", "-");

const variables: ReadonlyMap<string, string> = new Map(Object.values(settings).map(({ name }) => [optionOf(name), name]));

const CHECK: Option = { help: "read the settings and every file that they name, print what the service would do, and exit" };

const options: Readonly<Record<string, Option>> = {
  ...Object.fromEntries(
    Object.values(settings).map(({ name, help, initial }): [string, Option] => {
      const option = optionOf(name);
      return [option, { help, initial, value: option.slice(option.lastIndexOf("-") + 1).toUpperCase() }];
    }),
  ),
  check: CHECK,
};

type Variables = Readonly<Record<string, string | undefined>>;

export const serve = (env: Variables): Command =>
  defineCommand({
    name: "serve",
    summary: "Runs the service until SIGTERM or Ctrl-C, then lets calls in flight finish.",
    args: [],
    options,
    notes: [
      "Each option is also an environment variable: --arena-mib is STEPD_ARENA_MIB. The option takes precedence, then the variable, then the file of settings.",
    ],

    async run({ check: isCheck, ...values }) {
      const given = Object.entries(values).flatMap(([option, value]) =>
        typeof value === "string" ? [[option, variables.get(option) ?? "", value] as const] : [],
      );
      /** Replaces variable names in an error message by the options that the caller used. */
      const inOptions = (message: string): string =>
        given.reduce((text, [option, variable]) => text.replaceAll(new RegExp(`\\b${variable}\\b`, "g"), `--${option}`), message);
      const all: Variables = { ...env, ...Object.fromEntries(given.map(([, variable, value]) => [variable, value])) };
      let config: Config;
      try {
        config = readConfig(all);
      } catch (error) {
        throw error instanceof ConfigError ? new UsageError(inOptions(error.message.replaceAll("\n", "\nstepd: "))) : error;
      }
      if (isCheck) return await printCheck(config, { env, given: new Map(given.map(([name, variable, value]) => [variable, { name, value }])) }, inOptions);
      // Loading the service takes time, so an error in the settings is reported before the import.
      const { serve } = await import("../serve.ts");
      try {
        await serve(config, warningsFor(env, config));
      } catch (error) {
        throw error instanceof ConfigError ? new CommandError(inOptions(error.message)) : error;
      }
      return 0;
    },
  });

interface Origins {
  readonly env: Variables;
  /** The options that the caller gave, by variable. */
  readonly given: ReadonlyMap<string, { readonly name: string; readonly value: string }>;
}

/** Lists the settings that differ from a plain start, each with its origin. */
const originLines = (config: Config, { env, given }: Origins): readonly string[] => {
  const file = config.settingsFile;
  const inFile = file === "" ? {} : readSettingsFile(file);
  return Object.values(settings).flatMap(({ name }) => {
    const option = given.get(name);
    if (option) return [`${name}=${option.value}, by --${option.name}`];
    if (env[name] !== undefined) return [`${name}=${env[name]}, by its variable`];
    return inFile[name] === undefined ? [] : [`${name}=${inFile[name]}, by ${file}`];
  });
};

/** Prints what the service would do. Returns the exit code: 1 if it could not start. */
const printCheck = async (config: Config, origins: Origins, inOptions: (message: string) => string): Promise<number> => {
  const { check } = await import("../check.ts");
  const { facts, warnings, problems } = await check(config);
  const rows = [...originLines(config, origins).map((line) => ["setting", line] as const), ...facts];
  const width = Math.max(...rows.map(([title]) => title.length));
  for (const [title, fact] of rows) console.log(`${title.padEnd(width)}  ${escapeControls(fact)}`);
  for (const warning of [...warningsFor(origins.env, config), ...warnings]) console.log(`warning: ${escapeControls(warning)}`);
  for (const problem of problems) console.error(`stepd: ${escapeControls(inOptions(problem))}`);
  if (problems.length === 0) console.log(`stepd ${version} would start`);
  else console.log(`stepd ${version} would not start: ${pluralize(problems.length, "problem")}`);
  return problems.length === 0 ? 0 : 1;
};
