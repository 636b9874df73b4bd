/** The site shows the Markdown files of the repository where they lie, so that their links work here and in the repository. */
import { existsSync, statSync } from "node:fs";
import { dirname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";
import { slug } from "github-slugger";
import { defineConfig, type MarkdownRenderer } from "vitepress";
import { sidebar } from "./sidebar.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));

/** The address of the repository's files, such as https://host/stepd/blob/main. Without it, links to sources become plain text. */
const repository = process.env["DOCS_REPOSITORY"];

/** Returns the target of a link as the site has it: a README is the page of its folder. Undefined if the site has no such page. */
const toPage = (page: string, target: string): string | undefined => {
  if (/^(https?:|mailto:|#)/.test(target)) return target;
  const [path = "", anchor] = target.split("#");
  let file = normalize(join(dirname(page), decodeURIComponent(path)));
  if (existsSync(join(root, file)) && statSync(join(root, file)).isDirectory()) file = join(file, "README.md");
  const suffix = anchor === undefined ? "" : `#${anchor}`;
  if (file.endsWith(".md") && existsSync(join(root, file))) return `/${file.replace(/README\.md$/, "")}${suffix}`;
  return repository === undefined ? undefined : `${repository}/${file}${suffix}`;
};

/** Changes the targets of links, and shows Mermaid diagrams. */
const extend = (md: MarkdownRenderer): void => {
  md.core.ruler.push("repository-links", ({ tokens, env }) => {
    for (const { children } of tokens) {
      let isOpen = true;
      for (const token of children ?? []) {
        if (token.type === "link_open") {
          const target = toPage(env.relativePath as string, token.attrGet("href") ?? "");
          isOpen = target !== undefined;
          if (target !== undefined) token.attrSet("href", target);
        }
        if (!isOpen && (token.type === "link_open" || token.type === "link_close")) Object.assign(token, { type: "text", tag: "", content: "", nesting: 0 });
      }
    }
  });
  const fence = md.renderer.rules.fence;
  md.renderer.rules.fence = (tokens, index, ...rest) => {
    const token = tokens[index];
    if (token?.info.trim() === "mermaid") return `<Diagram source="${encodeURIComponent(token.content)}" />`;
    // The highlighter does not know this language.
    if (token?.info.trim() === "promql") token.info = "text";
    return fence?.(tokens, index, ...rest) ?? "";
  };
};

export default defineConfig({
  title: "stepd",
  description: "Optimizer steps as a service: stateless, and the same bits on every CPU.",
  srcDir: "..",
  srcExclude: ["**/node_modules/**", "**/.venv/**", "**/build/**", "**/dist/**", ".github/**", "site/**"],
  rewrites: (id) => id.replace(/README\.md$/, "index.md"),
  outDir: "dist",
  cacheDir: "node_modules/.cache/vitepress",
  lang: "en",
  metaChunk: true,
  // Anchors are those of the repository, which its tests check.
  markdown: { config: extend, anchor: { slugify: slug } },
  themeConfig: {
    search: { provider: "local" },
    outline: [2, 3],
    nav: [
      { text: "Use it", link: "/clients/python/" },
      { text: "Run it", link: "/docs/deployment.md" },
      { text: "Understand it", link: "/docs/request-lifecycle.md" },
      { text: "Change it", link: "/CONTRIBUTING.md" },
    ],
    sidebar,
  },
});
