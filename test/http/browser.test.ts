/**
 * Tests GET /: HTML for browsers with a strict policy, links for other clients, and neither HTML nor files with STEPD_PAGE=off.
 */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { TestService } from "../support/service.ts";

const BROWSER = { Accept: "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8" };

interface Summary {
  readonly name: string;
  readonly authentication: string;
  readonly links: Readonly<Record<string, string>>;
}

let service: TestService;
before(async () => {
  service = await TestService.start();
});
after(() => service[Symbol.asyncDispose]());

test("browsers get the page, and its files for ever", async () => {
  const response = await fetch(`${service.url}/`, { headers: BROWSER });
  const html = await response.text();
  assert.equal(response.status, 200);
  assert.equal(response.headers.get("content-type"), "text/html; charset=utf-8");
  assert.equal(response.headers.get("vary"), "Accept");
  assert.equal(response.headers.get("cache-control"), "no-cache");
  assert.match(response.headers.get("content-security-policy") ?? "", /^default-src 'self';.*frame-ancestors 'none'$/);
  assert.doesNotMatch(response.headers.get("content-security-policy") ?? "", /unsafe|https?:|\*/);
  const [, script = ""] = /src="(page\/main-\w+\.js)"/.exec(html) ?? [];
  const file = await fetch(`${service.url}/${script}`);
  assert.equal(file.status, 200);
  assert.match(file.headers.get("cache-control") ?? "", /immutable/);
  assert.match(file.headers.get("content-type") ?? "", /javascript/);
  assert.ok((await file.text()).length > 1000);
});

test("other callers get links that work", async () => {
  for (const headers of [{}, { Accept: "*/*" }, { Accept: "application/json" }]) {
    const response = await fetch(`${service.url}/`, { headers });
    const { name, authentication, links } = (await response.json()) as Summary;
    assert.deepEqual([name, authentication], ["stepd", "none"]);
    for (const [link, path] of Object.entries(links)) {
      if (path.includes("{")) continue;
      const { status } = await fetch(`${service.url}/${path}`);
      assert.ok(status === 200 || (status === 405 && /\./.test(link)) || link === "rpc", `${link} ${path}: ${status}`);
    }
  }
  const wrong = await fetch(`${service.url}/`, { method: "POST" });
  assert.deepEqual([wrong.status, wrong.headers.get("allow")], [405, "GET, HEAD"]);
});

test("files outside the page stay unreachable", async () => {
  for (const path of ["/page/index.html/", "/page/..%2fkernels.wasm", "/page/%2e%2e/kernels.wasm", "/page/", "/page/.secret"])
    assert.equal((await fetch(`${service.url}${path}`)).status, 404, path);
});

test("STEPD_PAGE=off leaves the links", async () => {
  await using plain = await TestService.start({ STEPD_PAGE: "off", STEPD_ADMIN_PORT: "0" });
  const response = await fetch(`${plain.url}/`, { headers: BROWSER });
  const { links } = (await response.json()) as Summary;
  assert.equal(links["page"], undefined);
  assert.equal(links["metrics"], undefined);
  assert.equal(links["openapi"], "openapi.json");
  assert.equal((await fetch(`${plain.url}/page/index.html`)).status, 404);
});
