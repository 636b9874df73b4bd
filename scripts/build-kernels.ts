/**
 * Compiles src/kernels/*.ts (AssemblyScript) to build/kernels.wasm, unless a build from the same sources exists. Runs
 * automatically after `npm ci` and before `npm start`, `npm test` and `npm run bench`.
 */
import { createHash } from "node:crypto";
import { mkdirSync, readdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import asc from "assemblyscript/asc";
import { digestOfSources, withDigest } from "../src/pool/sources.ts";

const root = join(import.meta.dirname, "..");
const sources = join(root, "src/kernels");
const files = readdirSync(sources)
  .filter((name) => name.endsWith(".ts"))
  .sort();

/** Fused multiply-add and relaxed SIMD stay disabled. test/repository/opcodes.test.ts checks the compiled kernels. */
const options = [
  "-O3",
  "--runtime",
  "stub",
  "--use",
  "abort=",
  "--noAssert",
  "--enable",
  "simd,threads",
  "--importMemory",
  "--sharedMemory",
  "--initialMemory",
  "1",
  "--maximumMemory",
  "65536",
];

const sourcesDigest = digestOfSources(sources) as string;
const hash = createHash("sha256")
  .update(options.join(" "))
  .update(readFileSync(join(root, "node_modules/assemblyscript/package.json")))
  .update(sourcesDigest);
const digest = hash.digest("hex");

const output = join(root, "build/kernels.wasm");
const stamp = join(root, "build/kernels.sha256");

/** Returns the stamp of a build: the digests of its sources and of its output. The second digest reveals a damaged build. */
const stampOf = (wasm: Uint8Array): string => `${digest} ${createHash("sha256").update(wasm).digest("hex")}\n`;

const isFresh = (): boolean => {
  try {
    return readFileSync(stamp, "utf8") === stampOf(readFileSync(output));
  } catch {
    return false;
  }
};

if (!isFresh()) {
  mkdirSync(join(root, "build"), { recursive: true });
  const entries = files.filter((name) => !name.startsWith("_")).map((name) => `src/kernels/${name}`);
  const partial = `build/kernels.${process.pid}.wasm`;
  const { error, stderr } = await asc.main([...entries, ...options, "--baseDir", root, "--outFile", partial]);
  if (error) {
    console.error(`The kernels do not compile: ${error.message}\n${stderr.toString()}`);
    process.exit(1);
  }
  const wasm = withDigest(readFileSync(join(root, partial)), sourcesDigest);
  writeFileSync(join(root, partial), wasm);
  renameSync(join(root, partial), output);
  writeFileSync(stamp, stampOf(wasm));
  console.log(`Built build/kernels.wasm from ${entries.length} kernel files.`);
}
