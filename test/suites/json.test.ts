/** Tests the JSON reader with JSONTestSuite, alone and as bodies of a running service. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { decodeJson } from "../../src/codec/json.ts";
import { atOnce } from "../../src/codec/turns.ts";
import { JSON_TYPE, TestService } from "../support/service.ts";

/** Stepd refuses an object with the same name twice, which RFC 8259 allows, because readers differ in which value they take. */
const STRICTER: readonly string[] = ["y_object_duplicated_key.json", "y_object_duplicated_key_and_value.json"];

const entries = JSON.parse(readFileSync(join(import.meta.dirname, "json.json"), "utf8")) as readonly [string, string, string?, number?][];
const texts = entries.map(([name, rest, repeated = "", times = 0]) => ({
  name,
  bytes: Buffer.concat([Buffer.from(repeated.repeat(times)), Buffer.from(rest, "base64")]),
}));

let service: TestService;
before(async () => {
  service = await TestService.start();
});
after(() => service[Symbol.asyncDispose]());

test("the suite is whole", () => assert.equal(texts.length, 318));

for (const { name, bytes } of texts) {
  test(name, async () => {
    let value: unknown;
    let refusal: { readonly code?: string } | undefined;
    const shared = Buffer.from(new SharedArrayBuffer(Math.max(bytes.length, 1)), 0, bytes.length);
    shared.set(bytes);
    try {
      value = atOnce(decodeJson(shared));
    } catch (error) {
      refusal = error as { code?: string };
    }
    if (name.startsWith("n_") || STRICTER.includes(name)) assert.ok(refusal);
    if (name.startsWith("y_") && !STRICTER.includes(name)) assert.equal(refusal, undefined);
    if (refusal) assert.equal(refusal.code, "PARSE_ERROR");
    else assert.deepEqual(value, JSON.parse(bytes.toString()));
    const { error } = (await (await service.post("/rpc", bytes, JSON_TYPE)).json()) as { error?: { code: number } };
    // A text that can be read is no call.
    assert.equal(error?.code ?? "a list of errors", refusal ? -32700 : Array.isArray(value) && value.length > 0 ? "a list of errors" : -32600);
  });
}
