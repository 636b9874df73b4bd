/** `stepd serve`: the service with its settings as options, derived from the table of src/config.ts. */
import { type Config, ConfigError, misleadingIn, readConfig, settings } from "../config.ts";
import { type Command, CommandError, defineCommand, type Option, UsageError } from "./_command.ts";

const PREFIX = "STEPD_";

/** The option of a setting: arena-mib for STEPD_ARENA_MIB. */
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
    notes: ["Each option is also a variable, which it goes before: --arena-mib is STEPD_ARENA_MIB."],

    async run(values) {
      const given = Object.entries(values).flatMap(([option, value]) => (value === undefined ? [] : [[option, variables.get(option) ?? "", value] as const]));
      /** Replaces variable names in a message by the options that the caller used. */
      const inOptions = (message: string): string =>
        given.reduce((text, [option, variable]) => text.replaceAll(new RegExp(`\\b${variable}\\b`, "g"), `--${option}`), message);
      let config: Config;
      try {
        config = readConfig({ ...env, ...Object.fromEntries(given.map(([, variable, value]) => [variable, value])) });
      } catch (error) {
        throw error instanceof ConfigError ? new UsageError(inOptions(error.message)) : error;
      }
      // Imported only with valid settings, so that an error message appears without the import's delay.
      const { serve } = await import("../serve.ts");
      try {
        await serve(config, misleadingIn(env, config));
      } catch (error) {
        throw error instanceof ConfigError ? new CommandError(inOptions(error.message)) : error;
      }
      return 0;
    },
  });
