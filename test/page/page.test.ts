/** Tests the page as visitors use it: a real service, a headless Chromium, and one panel after another. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer, request as send } from "node:http";
import type { AddressInfo } from "node:net";
import os from "node:os";
import { join } from "node:path";
import { after, before, suite, test } from "node:test";
import { gzipSync } from "node:zlib";
import type { Locator } from "playwright-core";
import { TestBrowser } from "../support/chromium.ts";
import { TestService } from "../support/service.ts";
import { root } from "../support/tree.ts";
import { brokenFiles, state, stateFile } from "./_files.ts";
import { requireAccessible, Visitor } from "./_visitor.ts";

const folder = join(root, "build/page");

/** Returns a file in the form that playwright expects. */
const payload = ({ name }: File, bytes: Uint8Array) => ({ name, mimeType: "application/octet-stream", buffer: Buffer.from(bytes) });

/** The folder for the documentation's pictures, such as PICTURES=docs/page. If it is not set, the tests take no pictures. */
const PICTURES = process.env["PICTURES"];

suite("page", () => {
  let service: TestService;
  let browser: TestBrowser;
  let visitor: Visitor;
  before(async () => {
    const { status, stderr } = spawnSync(process.execPath, [join(root, "scripts/build-page.ts")], { encoding: "utf8" });
    assert.equal(status, 0, stderr);
    [service, browser] = await Promise.all([TestService.start(), TestBrowser.start()]);
    visitor = await Visitor.open(browser, service.url);
  });
  after(async () => {
    await browser?.[Symbol.asyncDispose]();
    await service?.[Symbol.asyncDispose]();
  });

  /** Takes a picture for docs/page if the variable PICTURES is set. */
  const takePicture = async (name: string): Promise<void> => {
    if (PICTURES === undefined) return;
    await visitor.page.evaluate("scrollTo(0, 0)");
    await visitor.page.screenshot({ path: join(PICTURES, `${name}.png`), clip: { x: 0, y: 0, width: 1120, height: 800 } });
  };

  test("Now shows the server, live series of its calls, and a step to copy", async () => {
    const { page } = visitor;
    await visitor.panel("Now");
    // Each fact appears before its first reading does, so the test waits for the text.
    const fact = (name: string, text: RegExp) => page.locator("dl div", { has: page.locator("dt", { hasText: name }) }).locator("dd", { hasText: text });
    const { version } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as { version: string };
    await fact("Version", new RegExp(`^${version.replaceAll(".", "\\.")}, on Node v\\d+`)).waitFor();
    const call = JSON.stringify({ optimizer: { name: "adamw" }, params: { w: { shape: [1], values: [1] } }, grads: { w: { shape: [1], values: [1] } } });
    const chart = page.getByRole("img", { name: /^Calls per second.*steps: (?!0[,.]|no)/ });
    // The page polls /metrics, so the test makes calls until a reading shows some.
    for (
      const seen = chart.waitFor({ timeout: 20_000 }).then(() => true);
      !(await Promise.race([seen, service.post("/v1/step", call, "application/json").then(() => false)]));
    );
    await page.getByRole("img", { name: /^Time of a step.*p99: \d/ }).waitFor();
    await fact("Health", /^ready/).waitFor();
    await service.post("/v1/step", "{}", "text/plain");
    await page.getByRole("row", { name: /UNSUPPORTED_MEDIA_TYPE 1/ }).waitFor();
    const curl = (await page.getByRole("region", { name: "A step with curl" }).textContent()) ?? "";
    const { status, stdout, stderr } = spawnSync("sh", ["-c", curl], { encoding: "utf8" });
    assert.equal(status, 0, stderr);
    assert.equal((JSON.parse(stdout) as { step: number }).step, 1);
    for (const language of ["Python", "Go", "TypeScript"]) {
      await page.getByRole("radio", { name: language }).check();
      assert.match((await page.getByRole("region", { name: `A step with ${language}` }).textContent()) ?? "", new RegExp(service.url));
    }
    // A picture needs a longer series than the test.
    for (let start = performance.now(); PICTURES !== undefined && performance.now() - start < 12_000; )
      await service.post("/v1/step", call, "application/json");
    await takePicture("now");
    await requireAccessible(page);
    await page.getByRole("combobox", { name: "Theme" }).selectOption("dark");
    await requireAccessible(page);
    await page.getByRole("combobox", { name: "Theme" }).selectOption("system");
    visitor.requireQuiet();
  });

  test("the doctor names what is wrong with each of many files", async () => {
    const { page } = visitor;
    await visitor.panel("State doctor");
    const field = page.getByLabel("A: a checkpoint");
    await field.setInputFiles(payload(stateFile(state()), await stateFile(state()).bytes()));
    await page.getByText("A state of stepd of adamw at step 41, for 2 parameters in 4 tensors.").waitFor();
    await page.getByText("Nothing is wrong with this file.").waitFor();
    await page.getByRole("img", { name: /^Magnitudes of exp_avg_sq from 0\.0625 to 2,/ }).waitFor();
    await page.getByText("2 parameters", { exact: true }).click();
    await page.getByRole("row", { name: /layer\.weight 41 \[2, 3\]/ }).waitFor();
    await requireAccessible(page);
    const broken = brokenFiles();
    assert.ok(broken.length >= 12);
    for (const [index, { code, file, sentence }] of broken.entries()) {
      // The unique name shows that the finding belongs to this file.
      const name = `${index}-${file.name}`;
      await field.setInputFiles({ ...payload(file, await file.bytes()), name });
      await page.getByRole("heading", { level: 2, name: new RegExp(`^A: ${name},`) }).waitFor();
      const found = page.locator("li.error, li.warning");
      assert.deepEqual(await found.evaluateAll((items) => items.map((item) => (item as HTMLElement).dataset["code"])), [code], name);
      assert.match((await found.textContent()) ?? "", sentence);
    }
  });

  test("the doctor compares two files of torch, converts one, and sends nothing before", async () => {
    const { page } = visitor;
    const posts: string[] = [];
    page.on("request", (request) => request.method() === "POST" && posts.push(new URL(request.url()).pathname));
    await page.getByLabel("A: a checkpoint").setInputFiles(join(import.meta.dirname, "torch/adamw-names.pt"));
    await page.getByLabel("B: another one, to compare").setInputFiles(join(import.meta.dirname, "torch/adamw-later.pt"));
    const report = page.locator("section.card", { hasText: "Why a resume from B would differ from A" });
    await report.getByText("lr is 0.01 in A and 0.005 in B, for “weight” and “bias”.").waitFor();
    await report.getByText("“weight” is at step 7 in A and 9 in B, and 1 other differ, too.").waitFor();
    await takePicture("doctor");
    await requireAccessible(page);
    assert.deepEqual(posts, []);
    const card = page.locator("section.card", { hasText: "A: adamw-names.pt" });
    await card.getByText("Convert to another format or optimizer").click();
    await requireAccessible(page);
    const [download] = await Promise.all([page.waitForEvent("download"), card.getByRole("button", { name: "Convert and download" }).click()]);
    assert.equal(download.suggestedFilename(), "adamw-names.stepd.safetensors");
    await card.getByText("It holds all of the state").waitFor();
    assert.deepEqual(posts, ["/v1/state/convert"]);
    const converted = readFileSync(await download.path());
    const { optimizer, tensors } = await service.call<{ optimizer: string; tensors: Record<string, { step: number }> }>("state.inspect", { state: converted });
    assert.deepEqual([optimizer, Object.keys(tensors), tensors["weight"]?.step], ["adamw", ["bias", "weight"], 7]);
    visitor.requireQuiet();
  });

  test("Try runs optimizers side by side, follows its settings, and keeps them in a link", async () => {
    const { page } = visitor;
    await visitor.panel("Try");
    const status = page.getByText(/\d+ optimizers took/);
    await page.getByText("3 optimizers took 600 steps").waitFor();
    await page.getByRole("img", { name: "The paths of sgd, adam, lion on the surface Quadratic" }).waitFor();
    await takePicture("try");
    await requireAccessible(page);
    await page.getByRole("button", { name: "The first 10" }).click();
    await page.getByText("10 optimizers took 2,000 steps").waitFor();
    if (process.env["TIMES"] !== undefined) console.log(await status.textContent());
    await page.getByRole("button", { name: "Remove adagrad", exact: true }).click();
    await page.getByRole("combobox", { name: "Surface" }).selectOption("Matrix of 8 × 8");
    await page.getByText("9 optimizers took 1,800 steps").waitFor();
    await page.getByRole("combobox", { name: "Surface" }).selectOption("Rosenbrock");
    const adam = page.getByRole("group", { name: "adam", exact: true });
    // On the way to this number, the field is empty, and its text is "0." and "0.2e-".
    const rate = adam.getByRole("spinbutton", { name: "lr", exact: true });
    await rate.press("Control+a");
    await rate.press("Delete");
    assert.equal(await rate.inputValue(), "");
    await rate.pressSequentially("0.2e-0");
    assert.equal(await rate.inputValue(), "0.2e-0");
    await adam.getByRole("slider", { name: "betas[0], slider" }).press("ArrowLeft");
    await page.waitForURL(/#try\?.*0\.899/);
    await status.waitFor();
    const link = (await page.getByRole("link", { name: "A link to this setting" }).getAttribute("href")) ?? "";
    const calls = (await page.getByRole("region", { name: "The first call as JSON-RPC" }).textContent()) ?? "";
    const replies = (await (await service.post("/rpc", calls, "application/json")).json()) as readonly { readonly result?: { readonly step: number } }[];
    assert.deepEqual(
      replies.map(({ result }) => result?.step),
      new Array(9).fill(1),
    );
    const other = await Visitor.open(browser, `${service.url}/${link}`);
    await other.page.getByText(/^9 optimizers took/).waitFor();
    const field = other.page.getByRole("group", { name: "adam", exact: true });
    assert.equal(await field.getByRole("spinbutton", { name: "lr", exact: true }).inputValue(), "0.2");
    assert.equal(await field.getByRole("spinbutton", { name: "betas[0]", exact: true }).inputValue(), "0.899");
    other.requireQuiet();
    await other.page.close();
    await visitor.panel("Now");
    visitor.requireQuiet();
  });

  test("Schedules composes parts, and shows their curve, JSON and code", async () => {
    const { page } = visitor;
    await visitor.panel("Schedules");
    const shown = page.getByRole("region", { name: "The schedule as JSON" });
    const schedule = async () => JSON.parse((await shown.textContent()) ?? "") as { name: string; schedules: { name: string }[]; milestones: number[] };
    const names = async () => (await schedule()).schedules.map(({ name }) => name);
    await page.getByRole("img", { name: /^Learning rate by step/ }).waitFor();
    await page.getByLabel("Add a part").selectOption("one_cycle");
    await page.getByRole("img", { name: /^Momentum by step/ }).waitFor();
    await page.getByText("1,200 steps").waitFor();
    assert.deepEqual((await schedule()).milestones, [100, 1000]);
    await page
      .getByRole("group", { name: /3: one_cycle/ })
      .locator("legend")
      .dragTo(page.getByRole("group", { name: /2: cosine/ }).locator("legend"));
    await page.getByRole("group", { name: /2: one_cycle/ }).waitFor();
    assert.deepEqual(await names(), ["linear", "one_cycle", "cosine"]);
    await page.getByRole("button", { name: "Move part 2, one_cycle up" }).press("Enter");
    const linear = page.getByRole("group", { name: /2: linear/ });
    await linear.waitFor();
    assert.deepEqual(await names(), ["one_cycle", "linear", "cosine"]);
    await linear.getByRole("spinbutton", { name: "Steps" }).fill("50");
    await page.keyboard.press("Tab");
    await page.getByText("1,150 steps").waitFor();
    assert.equal(await linear.getByRole("spinbutton", { name: "total_iters" }).inputValue(), "50");
    const { lrs } = await service.call<{ lrs: number[] }>("schedule.evaluate", { schedule: await schedule(), lr: 0.001, count: 1150 });
    const last = (lrs.at(-1) as number).toExponential(2);
    await page.getByRole("img", { name: `Learning rate by step. Last values: lr: ${last}.` }).waitFor();
    await takePicture("schedules");
    await requireAccessible(page);
    await page
      .getByRole("group", { name: /3: cosine/ })
      .getByRole("spinbutton", { name: "T_max" })
      .fill("0");
    await page.getByRole("alert").getByText("/schedule/schedules/2/T_max: expected at least 1, found 0").waitFor();
  });

  test("Plan shows bytes and times of a model, and names a line that it cannot read", async () => {
    const { page } = visitor;
    await visitor.panel("Plan");
    const model = page.getByLabel("A line for each tensor");
    await model.fill("w 1000x1000\nb: [24]");
    await page.getByRole("heading", { name: "A step of 1,000,024 parameters, by dtype" }).waitFor();
    const tensors = { w: { shape: [1000, 1000] }, b: { shape: [24] } };
    const plan = await service.call<{ bytes_in: number; bytes_out: number }>("optimizer.plan", { optimizer: { name: "adamw" }, tensors });
    const milliseconds = (((plan.bytes_in + plan.bytes_out) * 8) / 1e9) * 1000;
    await page.getByRole("row", { name: `MessagePack 26.7 MiB ${Number(milliseconds.toPrecision(4))} ms` }).waitFor();
    await page.getByRole("row", { name: /^F64 30\.5 MiB .* fits$/ }).waitFor();
    await page.getByRole("row", { name: /^F32 with moments in Q8 / }).waitFor();
    await takePicture("plan");
    await requireAccessible(page);
    await page.getByLabel("Optimizer").selectOption("adagrad");
    await page.getByRole("row", { name: /^F32 with moments in Q8 / }).waitFor({ state: "detached" });
    await model.fill("w 1000x1000\nwhat");
    await page.getByRole("alert").getByText("line 2: expected a name and a shape").waitFor();
  });

  test("the reference of the API sends real calls", async () => {
    const { page } = visitor;
    await visitor.panel("API");
    await page
      .getByRole("button", { name: /^POST .*schedule/ })
      .first()
      .waitFor();
    await takePicture("api");
    await page
      .getByRole("button", { name: /^POST .*schedule/ })
      .first()
      .click();
    await page.getByRole("button", { name: "Try it out" }).click();
    await page.getByRole("button", { name: "Execute" }).click();
    const reply = page.locator(".live-responses-table");
    await reply.getByText("200", { exact: true }).waitFor();
    assert.match((await reply.locator("code, pre").allTextContents()).join(), /"lrs"/);
    await requireAccessible(page, [".reference"]);
    visitor.requireQuiet();
  });

  test("the keyboard alone reaches every panel", async () => {
    const { page } = visitor;
    const panels = await page.getByRole("navigation", { name: "Panels" }).getByRole("link").allTextContents();
    await visitor.panel("Now");
    await page.reload();
    await page.getByRole("heading", { name: "This server", exact: true }).waitFor();
    await page.keyboard.press("Tab");
    assert.equal(await page.evaluate("document.activeElement.textContent.trim()"), "Skip to the panel");
    for (const title of panels) {
      await page.keyboard.press("Tab");
      assert.equal(await page.evaluate("document.activeElement.textContent"), title);
    }
    await page.keyboard.press("Enter");
    await page.getByRole("heading", { level: 1, name: panels.at(-1) as string, exact: true }).waitFor();
  });

  test("on a narrow screen, in the dark, every panel fits and is accessible", async () => {
    const { page } = visitor;
    const width = 320;
    await page.setViewportSize({ width, height: 700 });
    await page.getByRole("combobox", { name: "Theme" }).selectOption("dark");
    const shown: Readonly<Record<string, Locator>> = {
      Now: page.getByRole("heading", { name: "This server", exact: true }),
      "State doctor": page.getByLabel("A: a checkpoint"),
      Try: page.getByText(/\d+ optimizers? took/),
      Schedules: page.getByRole("img", { name: /^Learning rate by step/ }),
      Plan: page.getByRole("heading", { name: /^A step of .* by dtype/ }),
    };
    for (const [title, content] of Object.entries(shown)) {
      await visitor.panel(title);
      await content.waitFor();
      assert.equal(await page.evaluate("document.documentElement.scrollWidth"), width, title);
      await requireAccessible(page);
    }
    await page.getByRole("combobox", { name: "Theme" }).selectOption("system");
    await page.setViewportSize({ width: 1120, height: 860 });
    visitor.requireQuiet();
  });

  test("a server that goes away is named as such by every panel, and its last health is not shown", async () => {
    await using passing = await TestService.start();
    const { page } = await Visitor.open(browser, passing.url);
    await page.locator("dd", { hasText: "ready: it takes calls" }).waitFor();
    for (const title of ["Schedules", "Plan"]) await page.getByRole("link", { name: title, exact: true }).click();
    await page.getByRole("heading", { name: /^A step of .* by dtype/ }).waitFor();
    await passing.stop();
    const { host } = new URL(passing.url);
    const alert = page.getByRole("alert").getByText(`${host} does not answer.`);
    await page.getByLabel("A line for each tensor").fill("w 3");
    await alert.waitFor();
    await page.getByRole("link", { name: "Now", exact: true }).click();
    await page.locator("dd", { hasText: "no answer" }).waitFor();
    await alert.waitFor();
    await page.getByRole("link", { name: "Try", exact: true }).click();
    await page.getByRole("alert").getByText("The panel was not loaded").waitFor();
    // The error belongs to that panel only.
    await page.getByRole("link", { name: "Schedules", exact: true }).click();
    await page.getByText("1,000 steps").waitFor();
    await page.getByRole("alert").getByText("The panel was not loaded").waitFor({ state: "detached" });
    await page.close();
  });

  test("Now has a line for each replica that the operator named, and connects to no other", async () => {
    await using replica = await TestService.start({ STEPD_CORS_ORIGINS: "*" });
    await using stopped = await TestService.start();
    await stopped.stop();
    await using named = await TestService.start({ STEPD_PAGE_REPLICAS: `${replica.url}, ${stopped.url}/` });
    const policy = (await fetch(named.url, { headers: { Accept: "text/html" } })).headers.get("content-security-policy") ?? "";
    assert.match(policy, new RegExp(`; connect-src 'self' ${replica.url} ${stopped.url};`));
    const hosts = new Set<string>();
    const { page } = await browser.open(named.url, (tab) => tab.on("request", (request) => hosts.add(new URL(request.url()).origin)));
    const row = (url: string) => page.getByRole("row", { name: new RegExp(`^${new URL(url).host} `) });
    await row(stopped.url).getByText("no answer").waitFor();
    const call = JSON.stringify({ optimizer: { name: "adamw" }, params: { w: { shape: [1], values: [1] } }, grads: { w: { shape: [1], values: [1] } } });
    const chart = page.getByRole("img", { name: new RegExp(`^Steps per second, by replica.*${new URL(replica.url).host}: (0\\.\\d|[1-9])`) });
    for (let isSeen = false; !isSeen; isSeen = await chart.isVisible())
      await Promise.all([page.waitForResponse(`${replica.url}/metrics`), replica.post("/v1/step", call, "application/json")]);
    await row(replica.url).getByText("ready: it takes calls").waitFor();
    await requireAccessible(page);
    assert.deepEqual(hosts, new Set([named.url, replica.url, stopped.url]));
    await page.close();
  });

  test("a server with tokens asks for a token, and the page keeps the token in memory only", async () => {
    const tokens = mkdtempSync(join(os.tmpdir(), "stepd-page-"));
    try {
      writeFileSync(join(tokens, "tokens"), "alice 0123456789abcdefghij\n");
      await using guarded = await TestService.start({ STEPD_TOKENS_FILE: join(tokens, "tokens") });
      const { page } = await Visitor.open(browser, guarded.url);
      await page.getByRole("dialog", { name: "This server needs a token" }).waitFor();
      await requireAccessible(page);
      // Browsers close a dialog at the second Escape. The page must ask again, since it can do nothing else.
      for (let press = 0; press < 3; press++) await page.keyboard.press("Escape");
      await page.getByRole("textbox", { name: "Token" }).fill("not-the-token-of-alice");
      await page.keyboard.press("Enter");
      await page.getByText("The server does not know this token.").waitFor();
      await page.getByRole("textbox", { name: "Token" }).fill(" 0123456789abcdefghij ");
      await page.keyboard.press("Enter");
      await page.locator("dd", { hasText: "every call needs one" }).waitFor();
      // The reference of the API sends its calls by itself.
      await page.getByRole("navigation", { name: "Panels" }).getByRole("link", { name: "API", exact: true }).click();
      await page
        .getByRole("button", { name: /^POST .*schedule/ })
        .first()
        .click();
      await page.getByRole("button", { name: "Try it out" }).click();
      await page.getByRole("button", { name: "Execute" }).click();
      await page.locator(".live-responses-table").getByText("200", { exact: true }).waitFor();
      assert.doesNotMatch(
        (await page.evaluate("JSON.stringify([{ ...localStorage }, { ...sessionStorage }, document.cookie, location.href])")) as string,
        /0123456789/,
      );
      await page.reload();
      await page.getByRole("dialog").waitFor();
      await page.close();
    } finally {
      rmSync(tokens, { recursive: true });
    }
  });

  test("a proxy may add a path prefix", async () => {
    const proxy = createServer((req, res) => {
      const onward = send(`${service.url}${(req.url ?? "").replace(/^\/optimizers/, "")}`, { method: req.method ?? "GET", headers: req.headers }, (reply) => {
        res.writeHead(reply.statusCode ?? 502, reply.headers);
        reply.pipe(res);
      });
      if (!req.url?.startsWith("/optimizers/")) res.writeHead(404).end();
      else req.pipe(onward);
      onward.on("error", () => res.destroy());
    });
    await new Promise<void>((resolve) => proxy.listen(0, "127.0.0.1", resolve));
    try {
      const prefixed = await Visitor.open(browser, `http://127.0.0.1:${(proxy.address() as AddressInfo).port}/optimizers/`);
      await prefixed.page.locator("dd", { hasText: ", on Node" }).waitFor();
      prefixed.requireQuiet();
      await prefixed.page.close();
    } finally {
      proxy.closeAllConnections();
      proxy.close();
    }
  });

  test("the page and its panels take at most 300 KB, compressed and without the API reference", () => {
    const own = readdirSync(folder).filter((file) => !/^(swagger-ui|licenses)/.test(file));
    const sizes = own.map((file) => gzipSync(readFileSync(join(folder, file))).length);
    assert.ok(own.length > 3);
    assert.ok(sizes.reduce((sum, size) => sum + size) < 300_000, `${sizes}`);
  });

  test("the page names the licenses of all packages in it", () => {
    const [file = ""] = readdirSync(folder).filter((name) => name.startsWith("licenses"));
    const text = readFileSync(join(folder, file), "utf8");
    for (const name of ["preact", "uplot", "swagger-ui-dist", "@msgpack/msgpack", "@zip.js/zip.js", "pickleparser"])
      assert.match(text, new RegExp(`^${name} \\d`, "m"), name);
    assert.match(text, /Permission is hereby granted/);
  });
});
