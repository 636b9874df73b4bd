/** Builds the image of the service, and the base image from which it is built. */
import { execFile } from "node:child_process";
import { copyFileSync, cpSync, existsSync, mkdirSync, readFileSync, realpathSync, writeFileSync } from "node:fs";
import { delimiter, dirname, join } from "node:path";
import { promisify } from "node:util";
import { debianProgram, findProgram } from "../support/debian.ts";
import { root } from "../support/tree.ts";
import type { Engine } from "./_engine.ts";

const run = promisify(execFile);

/** The revision that the image's label must show. */
export const REVISION = "0123456789abcdef0123456789abcdef01234567";

/** The default base image in the Dockerfile. */
export const [, OFFICIAL = "", NODE = "", DEBIAN = ""] = /^ARG NODE_IMAGE=(node:(\d+)-(\w+)-slim)$/m.exec(readFileSync(join(root, "Dockerfile"), "utf8")) ?? [];

/**
 * Returns the npm settings of this machine, because the build container needs the same registry. Asks the system's npm, as npm
 * ci does.
 */
const npmSettings = async (): Promise<Readonly<Record<string, string>>> => {
  const PATH = (process.env["PATH"] ?? "").split(delimiter).filter((folder) => !folder.includes("node_modules"));
  const { stdout } = await run("npm", ["config", "get", "registry", "cafile", "userconfig", "globalconfig"], {
    cwd: root,
    env: { ...process.env, PATH: PATH.join(delimiter) },
  });
  const lines = stdout.trim().split("\n");
  return Object.fromEntries(lines.map((line) => [line.slice(0, line.indexOf("=")), line.slice(line.indexOf("=") + 1)]));
};

/** Returns Dockerfile lines that replace the official image: Debian's packages, this process's Node, and this machine's npm. */
const makeOfficial = async (engine: Engine, context: string): Promise<readonly string[]> => {
  if (process.versions.node.split(".")[0] !== NODE) throw new Error(`expected node ${NODE} to run the suite, found ${process.version}`);
  await debianProgram("mmdebstrap").catch((error: Error) => {
    throw new Error(`${OFFICIAL} is not on this engine (docker pull ${OFFICIAL}), and to make it: ${error.message}`);
  });
  const archive = join(engine.folder, "debian.tar");
  await run("mmdebstrap", ["--quiet", "--variant=essential", "--include=libstdc++6", DEBIAN, archive], { env: { ...process.env, TMPDIR: engine.folder } });
  const debian = await engine.docker("import", "--change", `LABEL ${engine.label}`, archive);
  copyFileSync(process.execPath, join(context, "node"));
  const npm = realpathSync(process.env["npm_execpath"] ?? findProgram("npm") ?? "npm");
  cpSync(dirname(dirname(npm)), join(context, "npm"), { recursive: true });
  return [
    `FROM ${debian}`,
    "ENV PATH=/usr/local/bin:/usr/bin:/bin",
    "COPY node /usr/local/bin/node",
    "COPY npm /usr/local/lib/node_modules/npm",
    "RUN ln -s ../lib/node_modules/npm/bin/npm-cli.js /usr/local/bin/npm",
  ];
};

/** Builds the base image: Node and npm, with the npm settings of this machine. */
const buildBase = async (engine: Engine): Promise<string> => {
  const context = join(engine.folder, "base");
  mkdirSync(context);
  const isThere = await engine.docker("images", "--quiet", OFFICIAL);
  const lines = [...(isThere ? [`FROM ${OFFICIAL}`] : await makeOfficial(engine, context))];
  const { registry, userconfig = "", globalconfig = "", ...settings } = await npmSettings();
  // The certificate authorities come from npm's setting, or from Node's extra certificates.
  const cafile = existsSync(settings["cafile"] ?? "") ? settings["cafile"] : process.env["NODE_EXTRA_CA_CERTS"];
  lines.push(`ENV npm_config_registry=${registry}`);
  for (const [name, source, target] of [
    ["user", userconfig, "/etc/npmrc"],
    ["global", globalconfig, "/usr/local/etc/npmrc"],
    ["authorities", cafile, "/etc/npm-authorities.pem"],
  ] as const) {
    if (source === undefined || !existsSync(source)) continue;
    copyFileSync(source, join(context, name));
    lines.push(`COPY ${name} ${target}`);
    if (source === userconfig) lines.push(`ENV npm_config_userconfig=${target}`);
    if (source === cafile) lines.push(`ENV npm_config_cafile=${target}`);
  }
  writeFileSync(join(context, "Dockerfile"), `${lines.join("\n")}\n`);
  const tag = `stepd-base:${engine.label.split("=")[1]}`;
  await engine.docker("build", "--quiet", "--force-rm", "--label", engine.label, "--tag", tag, context);
  return tag;
};

/** Builds the service's image as docs/container.md says, and returns the image's tag. */
export const buildService = async (engine: Engine): Promise<string> => {
  const base = await buildBase(engine);
  const tag = `stepd:${engine.label.split("=")[1]}`;
  // The build uses the host's network, which may be the only way to the registries.
  const options = ["--force-rm", "--network", "host", "--label", engine.label, "--build-arg", `NODE_IMAGE=${base}`, "--build-arg", `REVISION=${REVISION}`];
  await engine.docker("build", ...options, "--tag", tag, root);
  return tag;
};
