/** Tests the documentation's site: every page is in the navigation, and every link and anchor of the built pages has a target. */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { globSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import os from "node:os";
import { dirname, join, normalize } from "node:path";
import { after, before, test } from "node:test";
import { promisify } from "node:util";
import { sidebar } from "../../site/.vitepress/sidebar.ts";
import { root } from "../support/tree.ts";

const folder = mkdtempSync(join(os.tmpdir(), "stepd-site-"));
after(() => rmSync(folder, { recursive: true, force: true }));

before(async () => {
  const vitepress = join(root, "site/node_modules/vitepress/bin/vitepress.js");
  await promisify(execFile)(process.execPath, [vitepress, "build", "site", "--outDir", folder], { cwd: root, maxBuffer: 2 ** 26 });
});

interface Item {
  readonly link?: string;
  readonly items?: readonly Item[];
}

const linksOf = (items: readonly Item[]): readonly string[] => items.flatMap(({ link, items: inner = [] }) => [...(link ? [link] : []), ...linksOf(inner)]);

/** These pages belong to a folder of the tests, and other pages link to them. */
const UNLISTED = ["/test/conformance/", "/test/suites/", "/test/vectors/record/"];

/** Returns the built pages by path, such as docs/cli.html. */
const builtPages = (): ReadonlyMap<string, string> =>
  new Map(globSync("**/*.html", { cwd: folder }).map((file) => [file, readFileSync(join(folder, file), "utf8")]));

test("the navigation lists every page once", () => {
  const links = [...linksOf(sidebar), ...UNLISTED];
  assert.equal(new Set(links).size, links.length);
  const pages = [...builtPages().keys()].filter((file) => file !== "404.html").sort();
  assert.ok(pages.length > 40);
  const listed = links
    .map((link) =>
      link
        .slice(1)
        .replace(/(^|\/)$/, "$1index.html")
        .replace(/\.md$/, ".html"),
    )
    .sort();
  assert.deepEqual(listed, pages);
});

test("every link and anchor of a built page has a target", () => {
  const pages = builtPages();
  let count = 0;
  for (const [file, html] of pages) {
    for (const [, href = ""] of html.matchAll(/ href="([^"]+)"/g)) {
      if (/^(https?:|mailto:)/.test(href)) continue;
      const [path = "", anchor] = href.split("#");
      const target = normalize(path === "" ? file : path.startsWith("/") ? path.slice(1) : join(dirname(file), path));
      if (!/(\.html|\/|^)$/.test(target)) continue;
      const page = pages.get(target.endsWith(".html") ? target : join(target, "index.html"));
      assert.ok(page !== undefined, `${file}: ${href}`);
      if (anchor) assert.ok(page.includes(` id="${decodeURIComponent(anchor)}"`), `${file}: ${href} has no such anchor`);
      count++;
    }
  }
  assert.ok(count > 1000, String(count));
});

test("the search finds words of every part, and diagrams are drawn", () => {
  const [index = ""] = globSync("assets/chunks/*localSearchIndex*.js", { cwd: folder });
  const text = readFileSync(join(folder, index), "utf8");
  for (const word of ["Warm-up and cosine", "Resident steps", "StepdArenaNearlyFull", "optimizer.reduce", "Adding an optimizer"])
    assert.ok(text.includes(word), word);
  assert.doesNotMatch(builtPages().get("index.html") ?? "", /flowchart LR/);
});
