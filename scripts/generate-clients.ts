/**
 * Writes what clients/python shares with the server. Part of `npm run generate`.
 *
 *   src/errors/errors.ts  -> clients/python/src/stepd/_error_table.py
 */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { errors } from "../src/errors/errors.ts";

const target = join(import.meta.dirname, "../clients/python/src/stepd");
const header = "# DO NOT EDIT: written by `npm run generate`.\n";

/** INVALID_PARAMS as InvalidParams. */
const classOf = (name: string): string =>
  name
    .toLowerCase()
    .split("_")
    .map((word) => `${word.slice(0, 1).toUpperCase()}${word.slice(1)}`)
    .join("");

const classes = Object.entries(errors).map(
  ([name, { code, status, title }]) => `
class ${classOf(name)}(ServerError):
    """${title}."""

    name = "${name}"
    code = ${code}
    status = ${status}
`,
);
const exported = Object.keys(errors)
  .map(classOf)
  .sort()
  .map((name) => `    "${name}",\n`);
writeFileSync(
  join(target, "_error_table.py"),
  `${header}"""The errors of the server, one class each."""

from ._errors import ServerError

__all__ = [
${exported.join("")}]

${classes.join("\n")}`,
);
