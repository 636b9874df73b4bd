/** Opens the page in a tab, records its requests and errors, and audits its accessibility. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import type { Page } from "playwright-core";
import type { TestBrowser } from "../support/chromium.ts";

const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

interface Finding {
  readonly id: string;
  readonly help: string;
  readonly nodes: readonly { readonly html: string; readonly failureSummary: string }[];
}

/** Requires that axe-core finds no violation outside the parts that `exclude` selects. */
export const requireAccessible = async (page: Page, exclude: readonly string[] = []): Promise<void> => {
  // The debugger injects the script, because the page's content security policy blocks foreign scripts.
  await page.evaluate(axe);
  const findings = (await page.evaluate(
    `axe.run({ exclude: ${JSON.stringify(exclude.map((selector) => [selector]))} }).then(({ violations }) => violations)`,
  )) as readonly Finding[];
  const sentences = findings.map(({ id, help, nodes }) => `${id}: ${help}: ${nodes.map(({ html, failureSummary }) => `${html} ${failureSummary}`).join("\n")}`);
  assert.deepEqual(sentences, []);
};

export class Visitor {
  readonly page: Page;
  readonly #errors: readonly string[];
  readonly #requests: readonly string[];
  readonly #origin: string;

  private constructor(page: Page, errors: readonly string[], requests: readonly string[], origin: string) {
    this.page = page;
    this.#errors = errors;
    this.#requests = requests;
    this.#origin = origin;
  }

  static async open(browser: TestBrowser, url: string): Promise<Visitor> {
    const requests: string[] = [];
    const { page, errors } = await browser.open(url, (page) => page.on("request", (request) => requests.push(request.url())));
    return new Visitor(page, errors, requests, new URL(url).origin);
  }

  /** Opens a panel by its link, as a person does. */
  async panel(title: string): Promise<void> {
    await this.page.getByRole("navigation", { name: "Panels" }).getByRole("link", { name: title, exact: true }).click();
    await this.page.getByRole("heading", { level: 1, name: title, exact: true }).waitFor();
    await this.page.getByText("Loading …").waitFor({ state: "detached" });
  }

  /** Requires that the console has no error and that no request went to another server. */
  requireQuiet(): void {
    assert.deepEqual(this.#errors, []);
    const elsewhere = this.#requests.filter((url) => !url.startsWith(`${this.#origin}/`) && !/^(data|blob):/.test(url));
    assert.deepEqual(elsewhere, []);
    assert.ok(this.#requests.length > 2);
  }
}
