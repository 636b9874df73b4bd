/**
 * Runs the benchmark: `npm run bench [-- PART... --rounds N --no-write --check]`. It prints tables, and writes them to
 * docs/performance.md and ratios.json. --check writes nothing: it compares with ratios.json and fails on a slowdown. See
 * bench/README.md.
 */
import { parseArgs } from "node:util";
import { formatTable, heading, Progress } from "../src/cli/terminal.ts";
import { linkFault } from "./_network.ts";
import { benchKernels, benchLamb } from "./kernels.ts";
import { benchLink } from "./link.ts";
import { benchMemory } from "./memory.ts";
import { benchMoments } from "./moments.ts";
import { writePage } from "./page.ts";
import { findPython, HOW_TO_GET_PYTHON } from "./processes.ts";
import { benchPython } from "./python.ts";
import { benchConcurrency, benchRate } from "./rate.ts";
import { compare, describeMachine, type Measured, readRecord, writeRecord } from "./record.ts";
import { Quiet, type Report, type Setup } from "./rounds.ts";
import { benchGradientOptions, benchSteps } from "./steps.ts";
import { benchTorch } from "./torch.ts";
import { benchTransport } from "./transport.ts";

const LEAST_ROUNDS = 6;

interface Part {
  readonly run: (setup: Setup) => Promise<Report>;
  /** "python" if the whole part needs the Python environment, "peers" if only the comparison with peers needs it. */
  readonly needs?: "python" | "peers";
  /** Explains why this machine cannot run the part; undefined if it can. */
  readonly fault?: () => string | undefined;
}

const PARTS: Readonly<Record<string, Part>> = {
  kernels: { run: benchKernels },
  torch: { run: benchTorch, needs: "python" },
  lamb: { run: benchLamb },
  steps: { run: benchSteps, needs: "peers" },
  transport: { run: benchTransport },
  rate: { run: benchRate, needs: "peers" },
  concurrency: { run: benchConcurrency },
  "gradient-options": { run: benchGradientOptions },
  moments: { run: benchMoments },
  python: { run: benchPython, needs: "python" },
  link: { run: benchLink, needs: "python", fault: linkFault },
  memory: { run: benchMemory, needs: "peers" },
};

const fail = (message: string): never => {
  console.error(`bench: ${message}`);
  process.exit(2);
};

const { values, positionals } = parseArgs({
  allowPositionals: true,
  allowNegative: true,
  options: { rounds: { type: "string", default: "10" }, check: { type: "boolean", default: false }, write: { type: "boolean" } },
});
const rounds = Number(values.rounds);
if (!Number.isInteger(rounds) || rounds < LEAST_ROUNDS) fail(`--rounds: expected a whole number from ${LEAST_ROUNDS}, found ${values.rounds}`);
const unknown = positionals.find((part) => !Object.hasOwn(PARTS, part));
if (unknown !== undefined) fail(`expected ${Object.keys(PARTS).join(", ")}, found ${unknown}`);

const python = findPython();
const isWritten = (values.write ?? !values.check) && python !== undefined;
const machine = await describeMachine(python);
console.log(`${machine}\n`);

/** Removes the progress bar before the table is printed. */
const withProgress = async (run: (bar: Progress) => Promise<Report>): Promise<Report> => {
  using bar = new Progress();
  return await run(bar);
};

const measured: Record<string, Measured> = {};
// Jobs on workers do not keep the process alive, so this timer does.
const keepAlive = setInterval(() => {}, 1000);
try {
  for (const [name, { run, needs, fault }] of Object.entries(PARTS)) {
    if (positionals.length > 0 && !positionals.includes(name)) continue;
    if (python === undefined && needs !== undefined) {
      console.log(`${name}: ${needs === "python" ? "left out" : "without peers"}: ${HOW_TO_GET_PYTHON}\n`);
      if (needs === "python") continue;
    }
    const reason = fault?.();
    if (reason !== undefined) {
      console.log(`${name}: left out: ${reason}\n`);
      continue;
    }
    const quiet = new Quiet();
    const report = await withProgress((bar) => run({ rounds, bar, quiet, python }));
    measured[name] = { date: new Date().toISOString().slice(0, 10), machine, disturbed: quiet.disturbed, ...report };
    console.log(`${heading(`${report.title}: ${report.figures}`)}\n\n${formatTable(report.head, report.rows, 2)}\n`);
    if (quiet.disturbed > 0) console.log(`${Math.round(quiet.disturbed * 100)} % of the runs began while others were at work on this machine\n`);
  }
} finally {
  clearInterval(keepAlive);
}

if (isWritten) {
  writeRecord({ ...readRecord(), ...measured }, Object.keys(PARTS));
  await writePage(python, readRecord());
  console.log("Written: bench/ratios.json, docs/performance.md, docs/performance.png");
}
if (values.check) {
  const { text, slower } = compare(measured, readRecord());
  console.log(text);
  if (slower > 0) process.exitCode = 1;
}
