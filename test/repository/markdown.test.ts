/** Tests that every Markdown file renders as intended: complete tables, closed fences, and links and anchors with targets. */
import assert from "node:assert/strict";
import { existsSync, globSync, readFileSync, statSync } from "node:fs";
import { dirname, join, normalize } from "node:path";
import { test } from "node:test";
import GithubSlugger from "github-slugger";
import MarkdownIt, { type Token } from "markdown-it";
import { root } from "../support/tree.ts";

const INSTALLED = ["node_modules", "build", "dist", ".venv", ".git"];

const files: readonly string[] = globSync("**/*.md", { cwd: root, exclude: (path) => INSTALLED.includes(path.split("/").at(-1) ?? "") }).sort();

// Without linkify, the parser finds links only in Markdown syntax, not in every word with a dot.
const markdown = new MarkdownIt({ html: true, linkify: false });

/** A parsed Markdown file. */
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

  /** Returns the line ranges (from 0, end exclusive) that the tokens of a type cover. */
  spans(type: string): readonly (readonly [number, number])[] {
    return this.tokens.filter((token) => token.type === type).flatMap(({ map }) => (map ? [map] : []));
  }

  /** Returns the targets of links and images. */
  targets(): readonly string[] {
    return this.tokens
      .flatMap(({ children }) => children ?? [])
      .flatMap((token) => (token.type === "link_open" ? [token.attrGet("href")] : token.type === "image" ? [token.attrGet("src")] : []))
      .filter((target) => typeof target === "string");
  }

  /** Returns the anchors in the page. */
  anchors(): ReadonlySet<string> {
    const slugger = new GithubSlugger();
    const titles = this.tokens.flatMap((token, index) => {
      const text = this.tokens[index + 1]?.children?.map(({ content }) => content).join("") ?? "";
      return token.type === "heading_open" ? [slugger.slug(text)] : [];
    });
    return new Set(titles);
  }
}

/** Returns the number of cells in a table row. */
const countCells = (line: string): number =>
  line
    .trim()
    .replace(/^\|/, "")
    .replace(/(?<!\\)\|$/, "")
    .split(/(?<!\\)\|/).length;

/** Returns the lines (from 1) that look like table rows but are outside of a table, or have the wrong number of cells. */
const brokenRows = (page: Page): readonly string[] => {
  const tables = page.spans("table_open");
  const literal = ["fence", "code_block", "html_block"].flatMap((type) => page.spans(type));
  const isIn = (spans: readonly (readonly [number, number])[], line: number) => spans.find(([start, end]) => line >= start && line < end);
  return page.lines.flatMap((line, index) => {
    const table = isIn(tables, index);
    if (!table) return line.trimStart().startsWith("|") && !isIn(literal, index) ? [`${index + 1}: a row outside of a table`] : [];
    const expected = countCells(page.lines[table[0]] ?? "");
    return countCells(line) === expected ? [] : [`${index + 1}: expected ${expected} cells, found ${countCells(line)}`];
  });
};

/** Returns the fences that are not closed, or lack a language. */
const brokenFences = (page: Page): readonly string[] =>
  page.tokens.flatMap(({ type, map, markup, info }) => {
    if (type !== "fence" || !map) return [];
    const last = page.lines[map[1] - 1] ?? "";
    return last.trim() !== markup ? [`${map[0] + 1}: a fence without an end`] : info.trim() === "" ? [`${map[0] + 1}: a fence without a language`] : [];
  });

/** Returns the text with brackets of links that the parser did not recognize. */
const brokenLinks = (page: Page): readonly string[] =>
  page.tokens
    .flatMap(({ children }) => children ?? [])
    .filter(({ type, content }) => type === "text" && /\]\s?[[(]/.test(content))
    .map(({ content }) => `no link: ${content}`);

/** Returns the problem with a link's target. Undefined if the target exists or is outside of the tree. */
const linkProblem = (file: string, target: string): string | undefined => {
  if (URL.canParse(target)) return /^(https|mailto):/.test(target) ? undefined : `${target}: expected https`;
  const [path = "", anchor] = target.split("#");
  const at = path === "" ? file : normalize(join(dirname(file), decodeURIComponent(path)));
  if (at.startsWith("..") || !existsSync(join(root, at))) return `${target}: there is no ${at}`;
  if (anchor === undefined) return undefined;
  if (statSync(join(root, at)).isDirectory() || !at.endsWith(".md")) return /^L\d+(-L\d+)?$/.test(anchor) ? undefined : `${target}: ${at} has no anchors`;
  return Page.read(at).anchors().has(anchor) ? undefined : `${target}: ${at} has no heading of that name`;
};

test("files of all parts of the tree are checked", () => {
  for (const file of ["README.md", "docs/wire-format.md", "clients/go/README.md", "examples/federated/README.md", "test/conformance/README.md"])
    assert.ok(files.includes(file), file);
});

for (const file of files) {
  const page = Page.read(file);

  test(`${file}: tables are complete`, () => assert.deepEqual(brokenRows(page), []));
  test(`${file}: fences are closed and have a language`, () => assert.deepEqual(brokenFences(page), []));
  test(`${file}: links have targets`, () =>
    assert.deepEqual([...brokenLinks(page), ...page.targets().flatMap((target) => linkProblem(file, target) ?? [])], []));
}

test("every page links back to the README, or to the index of its folder", () => {
  const pages = files.filter((file) => file !== "README.md" && !file.startsWith(".github/"));
  for (const file of pages) {
    const linked = Page.read(file)
      .targets()
      .map((target) => normalize(join(dirname(file), target.split("#")[0] ?? "")));
    const index = file.endsWith("README.md") ? "README.md" : join(dirname(file), "README.md");
    assert.ok(linked.includes("README.md") || linked.includes(index), file);
  }
});

test("the checks find each kind of mistake", () => {
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
  assert.equal(linkProblem("docs/cli.md", "wire-format.md#optimizerstep"), undefined);
  assert.match(linkProblem("docs/cli.md", "wire-format.md#nothing") ?? "", /no heading/);
  assert.match(linkProblem("docs/cli.md", "nothing.md") ?? "", /there is no docs\/nothing\.md/);
  assert.match(linkProblem("docs/cli.md", "http://example.org") ?? "", /expected https/);
});
