/** Tests the MessagePack reader with every encoding of every value of msgpack-test-suite. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { decodeMsgpack } from "../../src/codec/msgpack.ts";
import { atOnce } from "../../src/codec/turns.ts";

interface Case {
  readonly group: string;
  readonly msgpack: readonly string[];
  readonly [kind: string]: unknown;
}

const bytesOf = (hex: string): Buffer => Buffer.from(hex.replaceAll("-", ""), "hex");

const cases = JSON.parse(readFileSync(join(import.meta.dirname, "msgpack.json"), "utf8")) as readonly Case[];

/** Returns the value of a case as the reader gives it. */
const decodedOf = ({ group: _, msgpack: __, ...value }: Case): unknown => {
  const [[kind, given] = []] = Object.entries(value).filter(([kind]) => kind !== "bignum" || !("number" in value));
  if (kind === "nil") return null;
  if (kind === "binary") return bytesOf(given as string);
  // Integers beyond 2^53 are rounded, as in JSON. Only an id keeps all digits.
  return kind === "bignum" ? Number(given) : given;
};

test("the suite is whole", () => assert.equal(cases.flatMap(({ msgpack }) => msgpack).length, 233));

for (const one of cases) {
  for (const hex of one.msgpack) {
    test(`${one.group}: ${hex}`, () => {
      const bytes = bytesOf(hex);
      const read = (): unknown => atOnce(decodeMsgpack(bytes));
      if ("ext" in one || "timestamp" in one) assert.throws(read, { code: "PARSE_ERROR", message: /an extension type, which no method takes/ });
      else assert.deepEqual(read(), decodedOf(one));
      // A part of an encoding is none, and neither is an encoding with a byte after it.
      for (let length = 0; length < bytes.length; length++) assert.throws(() => atOnce(decodeMsgpack(bytes.subarray(0, length))), { code: "PARSE_ERROR" });
      assert.throws(() => atOnce(decodeMsgpack(Buffer.concat([bytes, Buffer.of(0xc0)]))), { code: "PARSE_ERROR" });
    });
  }
}
