/**
 * Writes the published suites that json.test.ts and msgpack.test.ts read: `node test/suites/record.ts JSON_TEST_SUITE MSGPACK_TEST_SUITE`,
 * with a checkout of each.
 */
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const [json = "", msgpack = ""] = process.argv.slice(2);

/** Two files of the suite repeat a text thousands of times. */
const REPEATED = /^(.{1,12}?)\1{999,}/s;

const parsing = join(json, "test_parsing");
const lines = readdirSync(parsing)
  .sort()
  .map((name) => {
    const bytes = readFileSync(join(parsing, name));
    const text = bytes.toString("latin1");
    const [all = "", repeated = ""] = REPEATED.exec(text) ?? [];
    const rest = Buffer.from(text.slice(all.length), "latin1").toString("base64");
    return JSON.stringify(all === "" ? [name, rest] : [name, rest, repeated, all.length / repeated.length]);
  });
writeFileSync(join(import.meta.dirname, "json.json"), `[\n${lines.join(",\n")}\n]\n`);

const groups = JSON.parse(readFileSync(join(msgpack, "dist/msgpack-test-suite.json"), "utf8")) as Readonly<Record<string, readonly object[]>>;
const cases = Object.entries(groups).flatMap(([group, members]) => members.map((member) => JSON.stringify({ group, ...member })));
writeFileSync(join(import.meta.dirname, "msgpack.json"), `[\n${cases.join(",\n")}\n]\n`);
