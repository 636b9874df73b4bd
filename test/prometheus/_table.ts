/**
 * Makes the table of all metrics in docs/metrics.md from a real server's exposition. `node test/prometheus/_table.ts` writes
 * the table, and a test compares it.
 */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { JSON_TYPE, TestService } from "../support/service.ts";
import { root } from "../support/tree.ts";
import { exposition } from "./_exposition.ts";

export const page = join(root, "docs/metrics.md");

const MARKERS = /(<!-- begin metrics:[^>]*-->\n\n).*?(\n\n<!-- end metrics -->)/s;

/** The unit of a metric by the suffix of its name, before _total. */
const UNITS = [
  ["_bytes", "bytes"],
  ["_seconds", "seconds"],
] as const;

/** The labels that the exposition format itself defines. */
const FORMAT_LABELS = ["le", "quantile"];

const labelsOf = (text: string, name: string): readonly string[] => {
  const lines = text.matchAll(new RegExp(`^${name}(?:_bucket|_sum|_count)?\\{(.*)\\} `, "gm"));
  const found = [...lines].flatMap(([, labels = ""]) => [...labels.matchAll(/(\w+)="/g)].map(([, label = ""]) => label));
  return [...new Set(found)].filter((label) => !FORMAT_LABELS.includes(label));
};

/** Returns the table, with stepd's own metrics first. */
const tableOf = (text: string): string => {
  const metrics = [...text.matchAll(/^# HELP (\S+) (.*)\n# TYPE \S+ (\w+)$/gm)].map(([, name = "", help = "", type = ""]) => {
    const unit = UNITS.find(([end]) => name.replace(/_total$/, "").endsWith(end))?.[1] ?? "";
    const labels = labelsOf(text, name).map((label) => `\`${label}\``);
    return { name, row: [`\`${name}\``, type, labels.join(", "), unit, help.replace(/\.$/, "")] };
  });
  const ours = metrics.filter(({ name }) => name.startsWith("stepd_"));
  const rows = [...ours, ...metrics.filter((metric) => !ours.includes(metric))].map(({ row }) => row);
  return [["metric", "type", "labels", "unit", "meaning"], ["---", "---", "---", "---", "---"], ...rows].map((row) => `| ${row.join(" | ")} |`).join("\n");
};

const TOKEN = "0123456789abcdef";

/** Returns the page with a new table. The server has a token and takes a step first, so that every metric has its labels. */
export const withTable = async (text: string): Promise<string> => {
  const scratch = mkdtempSync(join(os.tmpdir(), "stepd-table-"));
  using _ = { [Symbol.dispose]: () => rmSync(scratch, { recursive: true }) };
  const tokens = join(scratch, "tokens");
  writeFileSync(tokens, `trainer ${TOKEN} json_mib=1\n`, { mode: 0o600 });
  // A small young generation triggers a garbage collection soon.
  await using service = await TestService.start({ STEPD_TOKENS_FILE: tokens, STEPD_ADMIN_PORT: "0" }, ["--max-semi-space-size=1"]);
  const step = async (values: readonly number[]): Promise<void> => {
    const tensor = { w: { shape: [values.length], values } };
    const body = JSON.stringify({ optimizer: { name: "sgd" }, params: tensor, grads: tensor });
    await (await service.post("/v1/step", body, JSON_TYPE, { Authorization: `Bearer ${TOKEN}` })).arrayBuffer();
  };
  await step([1]);
  // A limit of the caller refuses this step, because only refusals for want of room have the label of the limit.
  await step(Array<number>(2 ** 19).fill(1));
  // The metric of garbage collections has labels only after the first collection.
  let metrics = "";
  while (!metrics.includes("nodejs_gc_duration_seconds_count{") || !metrics.includes('outcome="PAYLOAD_TOO_LARGE"')) {
    metrics = await exposition(service);
    await delay(10);
  }
  if (!MARKERS.test(text)) throw new Error("docs/metrics.md lacks the markers of the table of metrics");
  return text.replace(MARKERS, (_, begin: string, end: string) => `${begin}${tableOf(metrics)}${end}`);
};

if (import.meta.main) writeFileSync(page, await withTable(readFileSync(page, "utf8")));
