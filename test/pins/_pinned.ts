/** Reads and writes the file of pinned digests: a revision for each owner, and a digest for each case. */
import { readFileSync, writeFileSync } from "node:fs";

export interface Pins {
  readonly revision: number;
  readonly digests: Readonly<Record<string, string>>;
}

const file = new URL("./pinned.json", import.meta.url);

export const readPins = (): Readonly<Record<string, Pins>> => JSON.parse(readFileSync(file, "utf8")) as Record<string, Pins>;

export const writePins = (pins: Readonly<Record<string, Pins>>): void => writeFileSync(file, `${JSON.stringify(pins, null, 2)}\n`);
