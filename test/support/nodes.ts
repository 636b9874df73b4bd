/** Fetches Node versions other than the pinned version, from the npm packages that contain Node's binaries. */
import { execFile } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import { preparing } from "./prepared.ts";
import { root } from "./tree.ts";

const run = promisify(execFile);

/** The oldest and the newest version that can run the service. */
export const OTHER_NODES = ["24.0.0", "26.12.1"];

/** Returns a folder that `make` fills once. npm ci deletes the folder. If two tests fill it at once, one of them wins. */
export const cached = async (name: string, make: (folder: string) => Promise<void>): Promise<string> => {
  const folder = join(root, "node_modules/.cache", name);
  if (existsSync(folder)) return folder;
  mkdirSync(join(folder, ".."), { recursive: true });
  const partial = mkdtempSync(`${folder}-`);
  try {
    await preparing(`Fetching ${name}`, () => make(partial));
    if (!existsSync(folder)) renameSync(partial, folder);
  } finally {
    rmSync(partial, { recursive: true, force: true });
  }
  return folder;
};

/** Returns the path of a Node binary. */
export const nodeBinary = async (version: string, platform = `${process.platform}-${process.arch}`): Promise<string> => {
  const name = `node-${platform}`;
  const folder = await cached(`${name}-${version}`, async (target) => {
    const { stdout } = await run("npm", ["pack", "--silent", "--pack-destination", target, `${name}@${version}`]);
    const archive = join(target, stdout.trim());
    await run("tar", ["-xzf", archive, "-C", target, "package/bin/node"]);
    rmSync(archive);
  });
  return join(folder, "package/bin/node");
};
