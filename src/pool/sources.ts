/** The digest of src/kernels. The built module stores it, so that a module built from other sources is detected. */
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

/** The custom section of the module that stores the digest. */
const SECTION = "sources";

/** The digest of the kernel sources in a folder. Undefined without sources, as in the npm package and the image. */
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

/** Appends a custom section with the digest of the sources to a module. */
export const withDigest = (wasm: Uint8Array, digest: string): Buffer => {
  const content = Buffer.concat([Buffer.of(SECTION.length), Buffer.from(SECTION), Buffer.from(digest)]);
  if (content.length >= 0x80) throw new RangeError("the size of the section takes one byte");
  return Buffer.concat([wasm, Buffer.of(0, content.length), content]);
};

/** The digest stored in a module. Undefined for a module of an older build. */
export const digestIn = (module: WebAssembly.Module): string | undefined => {
  const [section] = WebAssembly.Module.customSections(module, SECTION);
  return section && Buffer.from(section).toString();
};
