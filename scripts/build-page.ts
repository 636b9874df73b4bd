/**
 * Bundles page/ to build/page, which the service shows to browsers. Runs automatically after `npm ci`, before `npm start`, and
 * when the package is packed. Unchanged files are not written, so the tree may be read-only once the page is built.
 *
 * File names contain a digest of the content, so that browsers may cache them for ever. Only index.html has a fixed name.
 */
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { basename, join, relative } from "node:path";

const root = join(import.meta.dirname, "..");
const source = join(root, "page");
const output = join(root, "build/page");

/** esbuild is a development dependency. An installation without development dependencies runs the service without its page. */
const esbuild = await import("esbuild").catch(() => undefined);
if (esbuild === undefined) {
  if (!existsSync(join(output, "index.html"))) console.error("The page is not built: npm ci without --omit=dev installs what it needs.");
  process.exit(0);
}

const { outputFiles, metafile } = await esbuild.build({
  absWorkingDir: root,
  entryPoints: ["page/main.tsx"],
  entryNames: "[name]-[hash]",
  chunkNames: "[name]-[hash]",
  assetNames: "[name]-[hash]",
  outdir: output,
  bundle: true,
  splitting: true,
  format: "esm",
  target: "es2022",
  jsx: "automatic",
  jsxImportSource: "preact",
  minify: true,
  legalComments: "none",
  // The API reference is a finished bundle. The page loads it on demand, so it is not an input here.
  loader: { ".svg": "file" },
  metafile: true,
  write: false,
  // The output must be the same if node_modules is a link.
  preserveSymlinks: true,
  logLevel: "error",
});

const files = new Map<string, Uint8Array>(outputFiles.map(({ path, contents }) => [relative(output, path), contents]));

/** Adds a file. Its name gets a digest of the contents. Returns the new name. */
const addFile = (name: string, contents: Uint8Array): string => {
  const digest = createHash("sha256").update(contents).digest("hex").slice(0, 8);
  const full = name.replace(/(\.\w+)$/, `-${digest}$1`);
  files.set(full, contents);
  return full;
};

const packageFile = (name: string, file: string): Uint8Array => readFileSync(join(root, "node_modules", name, file));

const SWAGGER = "swagger-ui-dist";
const swagger = {
  script: addFile("swagger-ui.js", packageFile(SWAGGER, "swagger-ui-bundle.js")),
  style: addFile("swagger-ui.css", packageFile(SWAGGER, "swagger-ui.css")),
};

/** The names of the packages in the bundles. */
const packages = new Set(
  [...Object.keys(metafile.inputs), `node_modules/${SWAGGER}/`].flatMap((path) => /^node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(path)?.[1] ?? []),
);

/**
 * Returns the license notices of a package: all files whose names begin with LICENSE or NOTICE, and the notices of its finished
 * bundles.
 */
const noticesOf = (name: string): string => {
  const folder = join(root, "node_modules", name);
  const { version, license } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8")) as { version: string; license?: string };
  const names = readdirSync(folder).filter((file) => /^(licen[sc]e|notice)/i.test(file) || file === "swagger-ui-bundle.js.LICENSE.txt");
  const texts = names.map((file) => readFileSync(join(folder, file), "utf8").trim());
  return [`${name} ${version} (${license ?? "see below"})`, ...texts].join("\n\n");
};

const licenses = addFile(
  "licenses.txt",
  Buffer.from(
    `${[...packages]
      .sort()
      .map(noticesOf)
      .join(`\n\n${"-".repeat(80)}\n\n`)}\n`,
  ),
);

const outputOf = (pattern: RegExp): string => {
  const [found, ...others] = Object.keys(metafile.outputs)
    .map((path) => basename(path))
    .filter((name) => pattern.test(name));
  if (found === undefined || others.length > 0) throw new Error(`expected one output like ${pattern}, found ${others.length + (found === undefined ? 0 : 1)}`);
  return found;
};

const names: Readonly<Record<string, string>> = {
  MAIN_SCRIPT: outputOf(/^main-\w+\.js$/),
  MAIN_STYLE: outputOf(/^main-\w+\.css$/),
  SWAGGER_SCRIPT: swagger.script,
  SWAGGER_STYLE: swagger.style,
  LICENSES: licenses,
};
const index = readFileSync(join(source, "index.html"), "utf8").replaceAll(/\{(\w+)\}/g, (_, name: string) => {
  const file = names[name];
  if (file === undefined) throw new Error(`page/index.html: expected one of ${Object.keys(names).join(", ")}, found ${name}`);
  return `page/${file}`;
});
files.set("index.html", Buffer.from(index));

const present = (name: string): Uint8Array | undefined => {
  try {
    return readFileSync(join(output, name));
  } catch {
    return undefined;
  }
};

const changed = [...files].filter(([name, contents]) => !Buffer.from(contents).equals(present(name) ?? Buffer.alloc(0)));
if (changed.length > 0) {
  mkdirSync(output, { recursive: true });
  // index.html is written last, so that every file that it names exists.
  for (const [name, contents] of changed) {
    const partial = join(output, `.${name}.${process.pid}`);
    writeFileSync(partial, contents);
    renameSync(partial, join(output, name));
  }
  for (const name of readdirSync(output)) if (!files.has(name) && !name.startsWith(".")) rmSync(join(output, name), { force: true });
  console.error(`Built build/page from ${Object.keys(metafile.inputs).length} files.`);
}
