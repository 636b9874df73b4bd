/** A headless Chromium for tests: Debian's, which is installed where it is missing, driven by playwright-core. */
import { execFile, spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import os from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { type BrowserContext, chromium, type Page } from "playwright-core";

const run = promisify(execFile);

const INSTALLED = "/usr/bin/chromium";

/** Without the network flags it asks for updates and the like, which a closed network refuses many times over. */
const FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

/** The browser's path: CHROMIUM, or Debian's package. */
const findChromium = async (): Promise<string> => {
  const given = process.env["CHROMIUM"];
  if (given !== undefined) return given;
  if (existsSync(INSTALLED)) return INSTALLED;
  if (process.getuid?.() !== 0 || spawnSync("apt-get", ["--version"]).status !== 0)
    throw new Error(`there is no ${INSTALLED}; install the package chromium, or name a Chromium by CHROMIUM`);
  const env = { ...process.env, DEBIAN_FRONTEND: "noninteractive" };
  const wait = ["-o", "DPkg::Lock::Timeout=300"];
  await run("apt-get", ["update", "-qq", ...wait], { env });
  await run("apt-get", ["install", "-y", "-qq", "--no-install-recommends", ...wait, "chromium"], { env, maxBuffer: 2 ** 26 });
  return INSTALLED;
};

export class TestBrowser implements AsyncDisposable {
  readonly #context: BrowserContext;
  readonly #profile: string;

  private constructor(context: BrowserContext, profile: string) {
    this.#context = context;
    this.#profile = profile;
  }

  static async start(): Promise<TestBrowser> {
    const executablePath = await findChromium();
    const profile = mkdtempSync(join(os.tmpdir(), "stepd-chromium-"));
    const viewport = { width: 1120, height: 860 };
    return new TestBrowser(await chromium.launchPersistentContext(profile, { executablePath, headless: true, args: FLAGS, viewport }), profile);
  }

  /** A new tab. What goes wrong in it comes out in `errors`. */
  async open(url: string): Promise<{ readonly page: Page; readonly errors: readonly string[] }> {
    const page = await this.#context.newPage();
    const errors: string[] = [];
    page.on("pageerror", ({ message }) => errors.push(message));
    page.on("console", (message) => {
      if (message.type() === "error") errors.push(message.text());
    });
    await page.goto(url);
    return { page, errors };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#context.close();
    rmSync(this.#profile, { recursive: true, force: true });
  }
}
