/** `npm run bench [-- kernels|steps|around] [-- --rounds N]`: prints tables, asserts nothing. See bench/README.md. */
import os from "node:os";
import { parseArgs } from "node:util";
import { Progress } from "../src/cli/terminal.ts";
import { benchKernels } from "./kernels.ts";
import { benchAround, benchSteps } from "./steps.ts";

const LEAST_ROUNDS = 6;

const { values, positionals } = parseArgs({ allowPositionals: true, options: { rounds: { type: "string", default: "10" } } });
const rounds = Math.max(LEAST_ROUNDS, Number.parseInt(values.rounds, 10) || LEAST_ROUNDS);
const parts = { kernels: benchKernels, steps: benchSteps, around: benchAround };
const unknown = positionals.find((part) => !Object.hasOwn(parts, part));
if (unknown !== undefined) {
  console.error(`bench: expected ${Object.keys(parts).join(" or ")}, found ${unknown}`);
  process.exit(1);
}

console.log(`${os.cpus()[0]?.model ?? "unknown processor"}, ${os.availableParallelism()} cores, node ${process.version}\n`);
const reports: string[] = [];
// A job that runs on workers does not keep a process alive by itself.
const keepAlive = setInterval(() => {}, 1000);
try {
  using bar = new Progress();
  for (const [name, bench] of Object.entries(parts)) if (positionals.length === 0 || positionals.includes(name)) reports.push(await bench(rounds, bar));
} finally {
  clearInterval(keepAlive);
}
console.log(reports.join("\n\n"));
