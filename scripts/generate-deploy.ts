/**
 * Writes the files of the Helm chart that derive from other files: the bounds of settings in values.schema.json from src/config.ts, and
 * copies of the alert rules and the dashboard, because a chart can read only its own files. Also writes the runbook of docs/operations.md
 * as a page that HAProxy serves, so that the links of alerts lead somewhere.
 */
import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { slug } from "github-slugger";
import MarkdownIt from "markdown-it";
import { settings } from "../src/config.ts";

const root = join(import.meta.dirname, "..");
const chart = join(root, "deploy/helm/stepd");

/** The chart sets these settings by other values. Twice in a pod, the last would win without a word. */
const CHART_SETTINGS: readonly string[] = [
  settings.host,
  settings.port,
  settings.socket,
  settings.workers,
  settings.arenaMib,
  settings.adminHost,
  settings.adminPort,
  settings.drainGraceMs,
  settings.drainTimeoutMs,
  settings.tokensFile,
  settings.tlsCertFile,
  settings.tlsKeyFile,
  settings.tlsClientCaFile,
].map(({ name }) => name);

type Schema = Record<string, unknown>;

/** YAML reads the words on and off as booleans. */
const withBooleans = (schema: Schema): Schema => {
  const choices = schema["enum"] as readonly string[] | undefined;
  if (!choices) return schema;
  return { enum: [...choices, ...(choices.includes("on") ? [true] : []), ...(choices.includes("off") ? [false] : [])] };
};

const settingsSchema = (): Schema => ({
  description: "DO NOT EDIT: written by `npm run generate` from src/config.ts. The chart sets the settings that are missing here by other values.",
  type: "object",
  additionalProperties: false,
  properties: Object.fromEntries(
    Object.values(settings)
      .filter(({ name }) => !CHART_SETTINGS.includes(name))
      .map(({ name, help, kind }) => [name, { description: help, ...withBooleans(kind.schema) }]),
  ),
});

const writeSchema = (): void => {
  const file = join(chart, "values.schema.json");
  const schema = JSON.parse(readFileSync(file, "utf8"));
  const { properties } = schema;
  properties.arenaMib = settings.arenaMib.kind.schema;
  properties.workers = settings.workers.kind.schema;
  properties.drain.properties = { graceMs: settings.drainGraceMs.kind.schema, timeoutMs: settings.drainTimeoutMs.kind.schema };
  properties.settings = settingsSchema();
  writeFileSync(file, `${JSON.stringify(schema, null, 2)}\n`);
};

const copyFiles = (): void => {
  mkdirSync(join(chart, "files"), { recursive: true });
  copyFileSync(join(root, "deploy/prometheus/stepd.rules.yml"), join(chart, "files/stepd.rules.yml"));
  copyFileSync(join(root, "deploy/grafana/stepd.json"), join(chart, "files/stepd.json"));
};

const STYLE = "body{font:16px/1.5 sans-serif;max-width:50em;margin:2em auto;padding:0 1em}code{background:#8882}:target{background:#fd08}";

/** Writes the runbook as one HTML page without links to other pages. The page must fit into a buffer of HAProxy (tune.bufsize). */
const writeRunbook = (): void => {
  const text = readFileSync(join(root, "docs/operations.md"), "utf8");
  const start = text.indexOf("\n## Runbook");
  const end = text.indexOf("\n[Back to", start);
  if (start < 0 || end < 0) throw new Error("docs/operations.md lacks its runbook");
  const markdown = text.slice(start, end).replaceAll(/\[([^\]]+)\]\([^)]+\)/g, "$1");
  const body = new MarkdownIt().render(markdown).replaceAll(/<h3>(.*?)<\/h3>/g, (_, title: string) => `<h3 id="${slug(title)}">${title}</h3>`);
  const head = `<meta charset="utf-8"><title>Runbook of stepd</title><style>${STYLE}</style>`;
  writeFileSync(
    join(root, "deploy/haproxy/runbook.html"),
    `<!doctype html>\n<!-- DO NOT EDIT: written by npm run generate from docs/operations.md. -->\n<html lang="en"><head>${head}</head><body>\n${body}</body></html>\n`,
  );
};

writeSchema();
copyFiles();
writeRunbook();
