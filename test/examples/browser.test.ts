/** Tests the browser example as a visitor uses it: one command, a headless Chromium, and training in the tab. */
import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after, before, suite, test } from "node:test";
import { build } from "esbuild";
import type { Page } from "playwright-core";
import type * as stepd from "../../clients/typescript/src/index.ts";
import { Client } from "../../clients/typescript/src/index.ts";
import { readDigits } from "../../examples/browser/page/digits.ts";
import { lossAndGradients, type Network, start } from "../../examples/browser/page/model.ts";
import { TestBrowser } from "../support/chromium.ts";
import { root } from "../support/tree.ts";

const folder = join(root, "examples/browser");
const { train } = readDigits(readFileSync(join(folder, "page/digits.bin")));

/** The browser example as a running process, started by its command. */
class Example implements AsyncDisposable {
  /** The address that the example prints. */
  readonly address: string;
  readonly #process: ReturnType<typeof spawn>;

  private constructor(address: string, process: ReturnType<typeof spawn>) {
    this.address = address;
    this.#process = process;
  }

  static async start(): Promise<Example> {
    const child = spawn(join(folder, "run"), [], { stdio: ["ignore", "pipe", "pipe"] });
    const log: string[] = [];
    child.stderr.on("data", (chunk: Buffer) => log.push(chunk.toString()));
    for await (const line of createInterface({ input: child.stdout })) {
      const address = /^Open (\S+)$/.exec(line)?.[1];
      if (address) return new Example(address, child);
    }
    throw new Error(`the example did not start: ${log.join("")}`);
  }

  get stepd(): string {
    return new URL(this.address).searchParams.get("stepd") ?? "";
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#process.kill();
    await once(this.#process, "exit");
  }
}

const inState = (page: Page, state: string): Promise<unknown> => page.waitForSelector(`body[data-state="${state}"]`, { timeout: 120_000 });

/** Trains once, and returns the last row of the table of runs. */
const trainIn = async (
  page: Page,
  optimizer: string,
  epochs: number,
): Promise<{ readonly steps: number; readonly loss: number; readonly accuracy: number }> => {
  await page.selectOption("#optimizer", optimizer);
  await page.fill("#epochs", String(epochs));
  await page.click("button");
  await inState(page, "training");
  await inState(page, "done");
  const [, , steps, loss, accuracy] = await page.locator("tbody tr:last-child td").allTextContents();
  return { steps: Number(steps), loss: Number(loss), accuracy: Number.parseFloat(accuracy ?? "") / 100 };
};

suite("browser example", () => {
  let example: Example;
  let browser: TestBrowser;
  before(async () => {
    [example, browser] = await Promise.all([Example.start(), TestBrowser.start()]);
  });
  after(async () => {
    await browser?.[Symbol.asyncDispose]();
    await example?.[Symbol.asyncDispose]();
  });

  test("the page trains to over 94 %, with two optimizers, and plots the runs", async () => {
    const { page, errors } = await browser.open(example.address);
    await inState(page, "ready");
    assert.ok((await page.locator("#optimizer option").count()) >= 15);
    for (const optimizer of ["adamw", "sgd"]) {
      const { steps, loss, accuracy } = await trainIn(page, optimizer, 15);
      assert.equal(steps, 15 * Math.floor(train.count / 64));
      assert.ok(accuracy > 0.94, `${optimizer}: ${accuracy}`);
      assert.ok(loss < 0.1, `${optimizer}: ${loss}`);
      assert.equal(await page.locator("progress").evaluate((bar: HTMLProgressElement) => bar.value), steps);
    }
    const points = await page.locator("polyline").evaluateAll((lines) => lines.map((line) => line.getAttribute("points")?.split(" ").length));
    assert.deepEqual(points, [66, 66, 66, 66]);
    assert.ok((await page.locator("figure.right").count()) > 0.9 * (await page.locator("figure").count()));
    assert.deepEqual(errors, []);
    const picture = process.env["SCREENSHOT"];
    if (picture !== undefined) await page.screenshot({ path: picture, fullPage: true });
  });

  test("the page stops on demand, and shows stepd's refusals", async () => {
    const { page } = await browser.open(example.address);
    await inState(page, "ready");
    await page.fill("#epochs", "200");
    await page.click("button");
    await page.locator("tbody td", { hasText: "%" }).waitFor();
    await page.click("button");
    await inState(page, "failed");
    assert.equal(await page.locator("#status").textContent(), "stopped");
    await page.evaluate("document.querySelector('#rate').removeAttribute('min')");
    await page.fill("#rate", "-1");
    await page.click("button");
    await page.locator("#status", { hasText: "refused" }).waitFor();
    assert.equal(await page.locator("#status").textContent(), "stepd refused: /optimizer/lr: expected at least 0, found -1");
  });

  test("the page explains what to check if stepd is unreachable", async () => {
    const url = new URL(example.address);
    url.searchParams.set("stepd", "http://127.0.0.1:1");
    const { page } = await browser.open(url.href);
    await inState(page, "failed");
    assert.match((await page.locator("#status").textContent()) ?? "", /was not reached.*STEPD_CORS_ORIGINS/);
  });

  test("steps in the tab give the same bits as steps in Node", async () => {
    const { page } = await browser.open(example.address);
    const bundle = await build({
      entryPoints: [join(root, "clients/typescript/src/index.ts")],
      bundle: true,
      format: "iife",
      globalName: "stepd",
      footer: { js: "globalThis.stepd = stepd;" },
      write: false,
    });
    // The debugger injects the script, because the page's content security policy blocks foreign scripts.
    await page.evaluate(bundle.outputFiles[0]?.text ?? "");
    const settings = { optimizer: { name: "adamw", lr: 0.01 }, clip: { max_norm: 0.5 }, schedule: { name: "cosine", T_max: 20 } } as const;
    const client = new Client(example.stepd);
    const sharded = { url: example.stepd, requestBytes: 3000 };
    let network = start(3);
    let state: stepd.State | null = null;
    for (let step = 0; step < 10; step++) {
      const batch = Array.from({ length: 64 }, (_, index) => (step * 64 + index) % train.count);
      const { gradients } = lossAndGradients(network, train, batch);
      const input: Omit<TabInput, "url"> = {
        params: plain(network),
        grads: plain(gradients),
        state: state && [...state.bytes],
        settings,
        sharded: step % 2 === 0 ? null : sharded,
      };
      const found: TabResult = await page.evaluate(stepInTab, { url: example.stepd, ...input });
      const result = await client.step({ ...settings, params: network, grads: gradients, state });
      network = result.params as Network;
      state = result.state;
      assert.deepEqual(found.step, step + 1);
      assert.ok(Buffer.from(found.state).equals(Buffer.from(state.bytes)), `state after step ${step + 1}`);
      for (const [name, { data }] of Object.entries(network)) assert.ok(sameBits(found.params[name] ?? [], data), `${name} after step ${step + 1}`);
    }
    const all = Array.from({ length: train.count }, (_, index) => index);
    assert.ok(lossAndGradients(network, train, all).loss < 0.9 * lossAndGradients(start(3), train, all).loss, "it learnt");
  });

  test("the gradients match finite differences of the loss", () => {
    const network = start(5);
    const batch = [1, 2, 3, 5, 8];
    const { gradients } = lossAndGradients(network, train, batch);
    for (const [name, { data }] of Object.entries(network)) {
      for (const at of [0, 1, data.length >> 1, data.length - 1]) {
        const [here = 0, size] = [data[at], 0.01];
        const lossAt = (value: number): number => {
          data[at] = value;
          return lossAndGradients(network, train, batch).loss;
        };
        const slope = (lossAt(here + size) - lossAt(here - size)) / (2 * size);
        data[at] = here;
        const found = gradients[name as keyof Network].data[at] ?? Number.NaN;
        assert.ok(Math.abs(found - slope) < 1e-3 + 0.02 * Math.abs(slope), `${name}[${at}]: ${found}, not ${slope}`);
      }
    }
  });

  test("the example type-checks", () => {
    const { stdout } = spawnSync(process.execPath, [join(root, "node_modules/typescript/bin/tsc"), "-p", folder], { encoding: "utf8" });
    assert.equal(stdout, "");
  });
});

type Plain = Readonly<Record<string, { readonly shape: readonly number[]; readonly data: readonly number[] }>>;

/** Converts tensors to lists of numbers, which can be passed into the tab. */
const plain = (network: Network): Plain => Object.fromEntries(Object.entries(network).map(([name, { shape, data }]) => [name, { shape, data: [...data] }]));

const sameBits = (found: readonly number[], { buffer, byteOffset, byteLength }: Float32Array): boolean =>
  Buffer.from(Float32Array.from(found).buffer).equals(Buffer.from(buffer, byteOffset, byteLength));

interface TabInput {
  readonly url: string;
  readonly params: Plain;
  readonly grads: Plain;
  readonly state: readonly number[] | null;
  readonly settings: stepd.StepSettings;
  readonly sharded: { readonly url: string; readonly requestBytes: number } | null;
}

interface TabResult {
  readonly step: number;
  readonly state: readonly number[];
  readonly params: Readonly<Record<string, readonly number[]>>;
}

/** Runs in the tab, and so cannot use anything else in this file. */
const stepInTab = async ({ url, params, grads, state, settings, sharded }: TabInput): Promise<TabResult> => {
  const { Client, ShardedClient } = (globalThis as unknown as { stepd: typeof stepd }).stepd;
  const typed = (tensors: Plain): stepd.Tensors =>
    Object.fromEntries(Object.entries(tensors).map(([name, { shape, data }]) => [name, { shape, data: Float32Array.from(data) }]));
  const client = sharded ? new ShardedClient([sharded.url], { requestBytes: sharded.requestBytes }) : new Client(url);
  const result = await client.step({ ...settings, params: typed(params), grads: typed(grads), state: state && Uint8Array.from(state) });
  return {
    step: result.step,
    state: [...result.state.bytes],
    params: Object.fromEntries(Object.entries(result.params).map(([name, { data }]) => [name, [...data]])),
  };
};
