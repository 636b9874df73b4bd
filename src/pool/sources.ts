/** What a build of the kernels was made of: a digest of src/kernels, which the built module bears, so that no other sources run with it. */
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

/** The module's custom section that has the digest. */
const SECTION = "sources";

/** The digest of the kernels' sources in a folder; undefined where there are none, as in the package and the image. */
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

/** A module with the digest of its sources, in a custom section behind all others. */
export const withDigest = (wasm: Uint8Array, digest: string): Buffer => {
  const content = Buffer.concat([Buffer.of(SECTION.length), Buffer.from(SECTION), Buffer.from(digest)]);
  if (content.length >= 0x80) throw new RangeError("the size of the section takes one byte");
  return Buffer.concat([wasm, Buffer.of(0, content.length), content]);
};

/** The digest that a module bears; undefined in one of an older build. */
export const digestIn = (module: WebAssembly.Module): string | undefined => {
  const [section] = WebAssembly.Module.customSections(module, SECTION);
  return section && Buffer.from(section).toString();
};
