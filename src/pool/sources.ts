/** Computes the digest of src/kernels. A built module stores its digest, so a module built from other sources is detected. */
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

/** The digest is stored in the module's custom section of this name. */
const SECTION = "sources";

/** Computes the digest of the kernel sources in a folder. Returns undefined without sources, as in the npm package and the image. */
export const digestOfSources = (folder: string): string | undefined => {
  const hash = createHash("sha256");
  let files: readonly string[];
  try {
    files = readdirSync(folder).filter((name) => name.endsWith(".ts"));
  } catch {
    return undefined;
  }
  if (files.length === 0) return undefined;
  for (const name of [...files].sort()) hash.update(name).update(readFileSync(join(folder, name)));
  return hash.digest("hex");
};

/** Appends a custom section with the digest to a module. */
export const withDigest = (wasm: Uint8Array, digest: string): Buffer => {
  const content = Buffer.concat([Buffer.of(SECTION.length), Buffer.from(SECTION), Buffer.from(digest)]);
  if (content.length >= 0x80) throw new RangeError("the size of the section takes one byte");
  return Buffer.concat([wasm, Buffer.of(0, content.length), content]);
};

/** Reads the digest that a module stores. Returns undefined for a module of an older build. */
export const digestIn = (module: WebAssembly.Module): string | undefined => {
  const [section] = WebAssembly.Module.customSections(module, SECTION);
  return section && Buffer.from(section).toString();
};
