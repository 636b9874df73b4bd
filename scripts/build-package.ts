/**
 * Compiles src to JavaScript in dist for the npm package, because Node does not strip types below node_modules. dist has the layout
 * of src, so that paths to neighbours (build/kernels.wasm, package.json) stay valid.
 */
import { spawnSync } from "node:child_process";
import { readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const root = join(import.meta.dirname, "..");
const output = join(root, "dist");

rmSync(output, { recursive: true, force: true });
const { status } = spawnSync(process.execPath, [join(root, "node_modules/typescript/bin/tsc"), "-p", join(root, "tsconfig.build.json")], { stdio: "inherit" });
if (status !== 0) process.exit(1);

// tsc rewrites the extensions in imports, but not in URLs. Modules for workers and child processes have such URLs.
const MODULE_URL = /(new URL\("\.[^"]*)\.ts(", import\.meta\.url\))/g;

for (const file of readdirSync(output, { recursive: true, encoding: "utf8" }).filter((name) => name.endsWith(".js"))) {
  const path = join(output, file);
  const text = readFileSync(path, "utf8");
  const rewritten = text.replaceAll(MODULE_URL, "$1.js$2");
  if (rewritten !== text) writeFileSync(path, rewritten);
}
