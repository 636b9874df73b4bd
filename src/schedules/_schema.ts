/** Builds the JSON Schema of a schedule's wire object from its definition. */
import type { ScheduleDefinition } from "./_define.ts";

export const scheduleSchema = ({ name, title, formula, arguments: all }: ScheduleDefinition) => {
  const required = Object.keys(all).filter((key) => !("default" in (all[key] ?? {})));
  return {
    title,
    description: formula,
    type: "object",
    required: ["name", ...required],
    additionalProperties: false,
    properties: { name: { const: name }, ...all },
  };
};
