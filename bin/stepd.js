#!/usr/bin/env node
/**
 * The program `stepd`, of the package and of a checkout: hands over to the Node that the package pins, because the caller's may be
 * another. The service's bits do not depend on it, its speed and its tests do. JavaScript, and nothing but what Node 20 has.
 */
import { spawn } from "node:child_process";
import { existsSync, realpathSync } from "node:fs";
import { createRequire } from "node:module";
import { constants } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

/** Without a listener SIGUSR2 would end this process, and SIGUSR1 open its inspector. */
const FORWARDED = /** @type {const} */ (["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"]);

/** The first major version that has all that the service uses. */
const LEAST_MAJOR = 24;

/** A checkout has the sources, the package what was compiled of them. */
const places = ["../src/cli/main.ts", "../dist/cli/main.js"].map((path) => new URL(path, import.meta.url));
const main = places.find((url) => existsSync(url)) ?? places[1];

/** The program of the npm package `node`; undefined where its install script did not run. */
const pinned = () => {
  try {
    const folder = dirname(createRequire(import.meta.url).resolve("node/package.json"));
    const program = join(folder, "bin", process.platform === "win32" ? "node.exe" : "node");
    return existsSync(program) ? realpathSync(program) : undefined;
  } catch {
    return undefined;
  }
};

/** Where npx runs this in a shell, SIGTERM may end the shell without a word to what runs in it: then nobody would end this process. */
const PARENT_POLL_MS = 250;

if (process.env["npm_command"] === "exec") {
  const parent = process.ppid;
  const timer = setInterval(() => {
    if (process.ppid === parent) return;
    clearInterval(timer);
    process.kill(process.pid, "SIGTERM");
  }, PARENT_POLL_MS);
  timer.unref();
}

const program = pinned();
if (program !== undefined && program !== realpathSync(process.execPath)) {
  // Over the channel it learns when this process is killed.
  const child = spawn(program, ["--disable-sigusr1", fileURLToPath(main), ...process.argv.slice(2)], { stdio: ["inherit", "inherit", "inherit", "ipc"] });
  for (const signal of FORWARDED) process.on(signal, () => child.kill(signal));
  child.on("error", (error) => {
    console.error(`stepd: ${program}: expected a program that runs, found ${error.message}`);
    process.exit(1);
  });
  // A shell tells of an end by a signal in the same way.
  child.on("exit", (code, signal) => process.exit(code ?? 128 + constants.signals[signal ?? "SIGKILL"]));
} else if (Number.parseInt(process.versions.node, 10) >= LEAST_MAJOR) await import(main.href);
else {
  console.error(
    `stepd: expected the npm package node beside this one, or Node ${LEAST_MAJOR}, found Node ${process.versions.node}; npm rebuild node installs it`,
  );
  process.exit(1);
}
