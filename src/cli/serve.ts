/** `stepd serve`: runs the service. Its options are generated from the settings in src/config.ts. */
import { type Config, ConfigError, readConfig, settings, warningsFor } from "../config.ts";
import { type Command, CommandError, defineCommand, type Option, UsageError } from "./_command.ts";

const PREFIX = "STEPD_";

/** Converts a setting's name to an option's name: STEPD_ARENA_MIB to arena-mib. */
const optionOf = (setting: string): string => setting.slice(PREFIX.length).toLowerCase().replaceAll("_", "-");

const variables: ReadonlyMap<string, string> = new Map(Object.values(settings).map(({ name }) => [optionOf(name), name]));

const options = Object.fromEntries(
  Object.values(settings).map(({ name, help, initial }): [string, Option & { value: string }] => {
    const option = optionOf(name);
    return [option, { help, initial, value: option.slice(option.lastIndexOf("-") + 1).toUpperCase() }];
  }),
);

export const serve = (env: Readonly<Record<string, string | undefined>>): Command =>
  defineCommand({
    name: "serve",
    summary: "Runs the service until SIGTERM or Ctrl-C, then lets calls in flight finish.",
    args: [],
    options,
    notes: ["Each option is also an environment variable: --arena-mib is STEPD_ARENA_MIB. The option takes precedence."],

    async run(values) {
      const given = Object.entries(values).flatMap(([option, value]) => (value === undefined ? [] : [[option, variables.get(option) ?? "", value] as const]));
      /** Replaces variable names in an error message by the options that the caller used. */
      const inOptions = (message: string): string =>
        given.reduce((text, [option, variable]) => text.replaceAll(new RegExp(`\\b${variable}\\b`, "g"), `--${option}`), message);
      let config: Config;
      try {
        config = readConfig({ ...env, ...Object.fromEntries(given.map(([, variable, value]) => [variable, value])) });
      } catch (error) {
        throw error instanceof ConfigError ? new UsageError(inOptions(error.message)) : error;
      }
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
