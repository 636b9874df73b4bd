/** Writes the contents of ratios.json into docs/performance.md, between its markers, and draws the chart beside the page. */
import { spawnSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Results } from "./record.ts";
import type { Ratio } from "./rounds.ts";

const PAGE = join(import.meta.dirname, "../docs/performance.md");
const PICTURE = join(import.meta.dirname, "../docs/performance.png");

const markdownTable = (head: readonly string[], rows: readonly (readonly string[])[]): string =>
  [head, head.map(() => "---"), ...rows].map((cells) => `| ${cells.map((cell) => cell.replaceAll("|", "\\|")).join(" | ")} |`).join("\n");

const goalRow = ({ name, median, min, goal = 0 }: Ratio): readonly string[] => [
  name,
  goal.toFixed(2),
  median.toFixed(2),
  min.toFixed(2),
  median <= goal ? "reached" : "not reached",
];

const disturbedText = (part: number): string => (part > 0 ? `; ${Math.round(part * 100)} % of the runs began while others were at work on the machine` : "");

const sections = (record: Results): Readonly<Record<string, string>> => {
  const parts = Object.values(record);
  const goals = parts.flatMap(({ ratios }) => ratios.filter(({ goal }) => goal !== undefined));
  const machines = [...new Set(parts.map(({ machine, date }) => `${machine}; measured ${date}`))];
  const tables = parts.map(
    ({ title, figures, disturbed, head, rows }) => `### ${title}\n\n${figures}${disturbedText(disturbed)}\n\n${markdownTable(head, rows)}`,
  );
  return {
    machine: machines.map((machine) => `${machine}.`).join("\n"),
    goals: markdownTable(["time against time", "goal: at most", "median", "of minima", ""], goals.map(goalRow)),
    tables: tables.join("\n\n"),
  };
};

const replaceSection = (page: string, name: string, text: string): string => {
  const begin = `<!-- begin ${name}: DO NOT EDIT, written by npm run bench -->`;
  const end = `<!-- end ${name} -->`;
  const [from, to] = [page.indexOf(begin), page.indexOf(end)];
  if (from < 0 || to < from) throw new Error(`${PAGE} lacks the markers of ${name}`);
  return `${page.slice(0, from)}${begin}\n\n${text}\n\n${page.slice(to)}`;
};

/** Returns the bars of the chart: times of a large step, relative to that over TCP. Undefined if the record lacks one of them. */
const bars = (record: Results): readonly { readonly name: string; readonly value: number }[] | undefined => {
  const ratios = new Map(Object.values(record).flatMap((part) => part.ratios.map(({ name, median }) => [name, median])));
  const relative = (name: string): number => ratios.get(`step of 16 Mi, ${name}`) ?? Number.NaN;
  const all = [
    { name: "FastAPI and torch", value: 1 / relative("TCP / FastAPI, functional") },
    { name: "echo of the bytes", value: 1 / relative("TCP / echo") },
    { name: "stepd over TCP", value: 1 },
    { name: "stepd in shared memory", value: relative("shared memory / TCP") },
  ];
  return all.every(({ value }) => Number.isFinite(value)) ? all : undefined;
};

export const writePage = async (python: string, record: Results): Promise<void> => {
  let page = readFileSync(PAGE, "utf8");
  for (const [name, text] of Object.entries(sections(record))) page = replaceSection(page, name, text);
  writeFileSync(PAGE, page);
  const drawn = bars(record);
  if (!drawn) return;
  const script = join(import.meta.dirname, "peers/plot.py");
  const title = "Time of an AdamW step of 16 Mi parameters, relative to stepd over TCP";
  const { status, stderr } = spawnSync(python, [script, PICTURE, title], { input: JSON.stringify(drawn), encoding: "utf8" });
  if (status !== 0) throw new Error(`plot.py failed: ${stderr}`);
};
