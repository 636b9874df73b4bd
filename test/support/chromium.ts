/** A headless Chromium for tests, driven by playwright-core. Debian's package is installed if it is missing. */
import { mkdtempSync, rmSync } from "node:fs";
import os from "node:os";
import { join } from "node:path";
import { type BrowserContext, chromium, type Page } from "playwright-core";
import { debianProgram } from "./debian.ts";

/** The network flags prevent requests for updates and the like, which would fail repeatedly without Internet access. */
const FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

/** Returns the browser's path: the variable CHROMIUM, or Debian's package. */
export const findChromium = async (): Promise<string> => process.env["CHROMIUM"] ?? debianProgram("chromium");

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

  /** Opens a new tab. The page's errors go into `errors`. `prepare` gets the tab before it loads the address. */
  async open(url: string, prepare: (page: Page) => void = () => undefined): Promise<{ readonly page: Page; readonly errors: readonly string[] }> {
    const page = await this.#context.newPage();
    prepare(page);
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
