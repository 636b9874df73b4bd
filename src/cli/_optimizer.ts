/** Builds an optimizer object from options such as `--optimizer adamw --set lr=0.1`. The service's schema validates the object. */
import { UsageError } from "./_command.ts";

export const optimizerOptions = {
  optimizer: { value: "NAME", help: "the optimizer", initial: "adamw" },
  set: { value: "NAME=VALUE", isMultiple: true, help: "a hyperparameter, such as lr=0.1, betas=0.9,0.99 or amsgrad=true" },
} as const;

export const optimizerOf = ({ optimizer = "adamw", set }: { readonly optimizer: string | undefined; readonly set: readonly string[] }) => ({
  ...Object.fromEntries(set.map(readSetting)),
  name: optimizer,
});

const readSetting = (text: string): readonly [string, unknown] => {
  const equals = text.indexOf("=");
  if (equals < 1 || text.startsWith("name="))
    throw new UsageError(`--set: expected the name of a hyperparameter, = and its value, found ${JSON.stringify(text)}`);
  return [text.slice(0, equals), readValue(text.slice(equals + 1))];
};

/** Parses a value as a list if it has commas, else as JSON, else as a string. */
const readValue = (text: string): unknown => {
  if (text.includes(",")) return text.split(",").map(readValue);
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
};

/** Maps the fields of an optimizer object to command-line options, for error messages. */
export const optimizerFields: readonly (readonly [RegExp, string])[] = [
  [/^\/optimizer\/name$/, "--optimizer"],
  [/^\/optimizer\//, "--set "],
];
