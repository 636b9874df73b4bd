/**
 * Fuzzes the readers: `npm run fuzz -- [SECONDS [TARGET ...]]`, 60 seconds for all targets by default. An input that fails is printed
 * and kept in build/. With SAVE=1, inputs that reach new code are added to corpus.json.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { importCounted } from "./_coverage.ts";
import { fuzz } from "./_fuzz.ts";
import type { Target } from "./targets.ts";

const CORPUS = join(import.meta.dirname, "corpus.json");
/** Longer inputs are not saved. */
const MOST_SAVED_BYTES = 400;

const [seconds = "60", ...chosen] = process.argv.slice(2);
if (!(Number(seconds) > 0)) throw new Error(`expected a number of seconds, found ${seconds}`);
const { module, counts } = await importCounted<{ readonly targets: Readonly<Record<string, Target>> }>("test/fuzz/targets.ts", "fuzz-targets");
const unknown = chosen.find((name) => !(name in module.targets));
if (unknown !== undefined) throw new Error(`expected targets among ${Object.keys(module.targets).join(", ")}, found ${unknown}`);
const names = chosen.length > 0 ? chosen : Object.keys(module.targets);
const saved = JSON.parse(readFileSync(CORPUS, "utf8")) as Record<string, readonly string[]>;
const seed = Date.now() % 2 ** 31;
for (const name of names) {
  const corpus = (saved[name] ?? []).map((text) => Buffer.from(text, "base64"));
  const before = process.memoryUsage().heapUsed / 2 ** 20;
  const found = fuzz(module.targets[name] as Target, counts, { corpus, ms: (Number(seconds) * 1000) / names.length, seed });
  const grown = process.memoryUsage().heapUsed / 2 ** 20 - before;
  console.log(
    `${name}: ${found.executions} executions, ${found.branches} branches, ${found.corpus.length} inputs, slowest ${found.slowestMs.toFixed(2)} ms, heap ${grown.toFixed(0)} MiB more`,
  );
  if (found.failure) {
    const { input, error } = found.failure;
    writeFileSync(join("build", `fuzz-${name}.bin`), input);
    console.error(`${name}: build/fuzz-${name}.bin fails (seed ${seed}): ${Buffer.from(input).toString("base64")}\n${(error as Error).stack}`);
    process.exit(1);
  }
  saved[name] = found.corpus.filter(({ length }) => length <= MOST_SAVED_BYTES).map((input) => Buffer.from(input).toString("base64"));
}
if (process.env["SAVE"] !== undefined) writeFileSync(CORPUS, `${JSON.stringify(saved, null, 1)}\n`);
