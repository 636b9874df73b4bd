/**
 * Serves the page, and starts a stepd server that allows the page's origin, unless STEPD_URL names a server. Prints the address
 * to open. Ctrl-C ends both.
 *
 * esbuild bundles the page at each request, so the page always matches its sources, with one dependency and no configuration.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { context } from "esbuild";

const folder = join(import.meta.dirname, "page");
const main = join(import.meta.dirname, "../../src/main.ts");

const bundle = await context({
  entryPoints: [join(folder, "main.ts")],
  outdir: folder,
  bundle: true,
  format: "esm",
  target: "es2022",
  minify: true,
  write: false,
  logLevel: "error",
});
const { port } = await bundle.serve({ servedir: folder, host: "127.0.0.1", port: Number(process.env["PAGE_PORT"] ?? 0) });
const origin = `http://127.0.0.1:${port}`;

/** Starts stepd on a free port and returns its address. */
const startStepd = async (): Promise<string> => {
  const own = Object.entries(process.env).filter(([name]) => !name.startsWith("STEPD_"));
  const env = { ...Object.fromEntries(own), STEPD_PORT: "0", STEPD_LOG_LEVEL: "warn", STEPD_CORS_ORIGINS: origin };
  const stepd = spawn(process.execPath, [main], { env, stdio: ["ignore", "inherit", "pipe"] });
  process.on("exit", () => stepd.kill());
  void once(stepd, "exit").then(([code]) => {
    console.error(`stepd ended with ${code}`);
    process.exit(1);
  });
  for await (const line of createInterface({ input: stepd.stderr })) {
    const address = / listens on ([^"]+)"/.exec(line)?.[1];
    if (address === undefined) {
      console.error(line);
      continue;
    }
    stepd.stderr.pipe(process.stderr);
    return address;
  }
  throw new Error("stepd did not start");
};

for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => process.exit(0));
const stepd = process.env["STEPD_URL"] ?? (await startStepd());
console.log(`Open ${origin}/?stepd=${encodeURIComponent(stepd)}`);
