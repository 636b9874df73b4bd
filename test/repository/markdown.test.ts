/** Every Markdown file renders as it was meant: whole tables, closed fences, links and anchors that lead somewhere. */
import assert from "node:assert/strict";
import { existsSync, globSync, readFileSync, statSync } from "node:fs";
import { dirname, join, normalize } from "node:path";
import { test } from "node:test";
import GithubSlugger from "github-slugger";
import MarkdownIt, { type Token } from "markdown-it";
import { root } from "../support/tree.ts";

const INSTALLED = ["node_modules", "build", "dist", ".venv", ".git"];

const files: readonly string[] = globSync("**/*.md", { cwd: root, exclude: (path) => INSTALLED.includes(path.split("/").at(-1) ?? "") }).sort();

// Links are looked for where Markdown says them, not in every word with a dot.
const markdown = new MarkdownIt({ html: true, linkify: false });

/** A file's text with what a reader of it needs. */
class Page {
  readonly lines: readonly string[];
  readonly tokens: readonly Token[];

  constructor(text: string) {
    this.lines = text.split("\n");
    this.tokens = markdown.parse(text, {});
  }

  static read(file: string): Page {
    return new Page(readFileSync(join(root, file), "utf8"));
  }

  /** What the tokens of a type cover, as the lines that they start at, from 0, and end before. */
  spans(type: string): readonly (readonly [number, number])[] {
    return this.tokens.filter((token) => token.type === type).flatMap(({ map }) => (map ? [map] : []));
  }

  /** Where links and images lead. */
  targets(): readonly string[] {
    return this.tokens
      .flatMap(({ children }) => children ?? [])
      .flatMap((token) => (token.type === "link_open" ? [token.attrGet("href")] : token.type === "image" ? [token.attrGet("src")] : []))
      .filter((target) => typeof target === "string");
  }

  /** The names that a link into the page may have after its #. */
  anchors(): ReadonlySet<string> {
    const slugger = new GithubSlugger();
    const titles = this.tokens.flatMap((token, index) => {
      const text = this.tokens[index + 1]?.children?.map(({ content }) => content).join("") ?? "";
      return token.type === "heading_open" ? [slugger.slug(text)] : [];
    });
    return new Set(titles);
  }
}

/** Cells of a line of a table. */
const cells = (line: string): number =>
  line
    .trim()
    .replace(/^\|/, "")
    .replace(/(?<!\\)\|$/, "")
    .split(/(?<!\\)\|/).length;

/** The lines, from 1, that look like a table's and are in none, or have another number of cells than their table's head. */
const brokenRows = (page: Page): readonly string[] => {
  const tables = page.spans("table_open");
  const literal = ["fence", "code_block", "html_block"].flatMap((type) => page.spans(type));
  const isIn = (spans: readonly (readonly [number, number])[], line: number) => spans.find(([start, end]) => line >= start && line < end);
  return page.lines.flatMap((line, index) => {
    const table = isIn(tables, index);
    if (!table) return line.trimStart().startsWith("|") && !isIn(literal, index) ? [`${index + 1}: a row outside of a table`] : [];
    const expected = cells(page.lines[table[0]] ?? "");
    return cells(line) === expected ? [] : [`${index + 1}: expected ${expected} cells, found ${cells(line)}`];
  });
};

/** The fences that end with their page instead of a line of their own, or whose language is not said. */
const brokenFences = (page: Page): readonly string[] =>
  page.tokens.flatMap(({ type, map, markup, info }) => {
    if (type !== "fence" || !map) return [];
    const last = page.lines[map[1] - 1] ?? "";
    return last.trim() !== markup ? [`${map[0] + 1}: a fence without an end`] : info.trim() === "" ? [`${map[0] + 1}: a fence without a language`] : [];
  });

/** What in the text of a page only a parser that failed leaves there: the brackets of a link without its target. */
const brokenLinks = (page: Page): readonly string[] =>
  page.tokens
    .flatMap(({ children }) => children ?? [])
    .filter(({ type, content }) => type === "text" && /\]\s?[[(]/.test(content))
    .map(({ content }) => `no link: ${content}`);

/** Where a link of a file leads to nothing; undefined where it leads somewhere, or out of the tree. */
const missing = (file: string, target: string): string | undefined => {
  if (URL.canParse(target)) return /^(https|mailto):/.test(target) ? undefined : `${target}: expected https`;
  const [path = "", anchor] = target.split("#");
  const at = path === "" ? file : normalize(join(dirname(file), decodeURIComponent(path)));
  if (at.startsWith("..") || !existsSync(join(root, at))) return `${target}: there is no ${at}`;
  if (anchor === undefined) return undefined;
  if (statSync(join(root, at)).isDirectory() || !at.endsWith(".md")) return /^L\d+(-L\d+)?$/.test(anchor) ? undefined : `${target}: ${at} has no anchors`;
  return Page.read(at).anchors().has(anchor) ? undefined : `${target}: ${at} has no heading of that name`;
};

test("the files of all parts of the tree are looked at", () => {
  for (const file of ["README.md", "docs/wire-format.md", "clients/go/README.md", "examples/federated/README.md", "test/conformance/README.md"])
    assert.ok(files.includes(file), file);
});

for (const file of files) {
  const page = Page.read(file);

  test(`${file}: tables are whole`, () => assert.deepEqual(brokenRows(page), []));
  test(`${file}: fences end and name their language`, () => assert.deepEqual(brokenFences(page), []));
  test(`${file}: links lead somewhere`, () => assert.deepEqual([...brokenLinks(page), ...page.targets().flatMap((target) => missing(file, target) ?? [])], []));
}

test("each mistake is found", () => {
  const table = "| a | b |\n| --- | --- |\n| 1 | 2 |\n";
  assert.deepEqual(brokenRows(new Page(table)), []);
  assert.deepEqual(brokenRows(new Page(`${table}\n| 3 | 4 |\n`)), ["5: a row outside of a table"]);
  assert.deepEqual(brokenRows(new Page(`${table}| 3 | 4 | 5 |\n`)), ["4: expected 2 cells, found 3"]);
  assert.deepEqual(brokenRows(new Page(`${table}| \\|x\\| | 4 |\n\n\`\`\`sh\n| no row\n\`\`\`\n`)), []);
  assert.deepEqual(brokenFences(new Page("```sh\nls\n```\n")), []);
  assert.deepEqual(brokenFences(new Page("text\n\n```sh\nls\n")), ["3: a fence without an end"]);
  assert.deepEqual(brokenFences(new Page("```\nls\n```\n")), ["1: a fence without a language"]);
  assert.equal(brokenLinks(new Page("[a](b c) and [d] [e]\n")).length, 1);
  assert.deepEqual(brokenLinks(new Page("[a](b) and `[c](d)`\n")), []);
  assert.equal(missing("docs/cli.md", "wire-format.md#optimizerstep"), undefined);
  assert.match(missing("docs/cli.md", "wire-format.md#nothing") ?? "", /no heading/);
  assert.match(missing("docs/cli.md", "nothing.md") ?? "", /there is no docs\/nothing\.md/);
  assert.match(missing("docs/cli.md", "http://example.org") ?? "", /expected https/);
});
