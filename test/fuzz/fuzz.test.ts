/** Tests the fuzzer: it finds planted faults, and a short run with the saved corpus finds none in the readers. FUZZ_SECONDS sets its time. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { runCommand } from "../support/command.ts";
import { root } from "../support/tree.ts";
import { instrument } from "./_coverage.ts";
import { fuzz } from "./_fuzz.ts";

const SECONDS = process.env["FUZZ_SECONDS"] ?? "60";

const PLANTED: Readonly<Record<string, string>> = {
  "four bytes in a row": 'if (bytes[0] === 70) if (bytes[1] === 85) if (bytes[2] === 90) if (bytes[3] === 33) throw new Error("planted");',
  "a loop that runs long": "let i = 0; while (i < bytes.length && bytes[i] === 65) i++; if (i > 12) throw new Error('planted');",
  "a time that grows with the square of the length":
    "let sum = 0; for (const a of bytes) for (const b of bytes) for (let i = 0; i < 99; i++) sum += a * b; return sum;",
};

for (const [name, body] of Object.entries(PLANTED)) {
  test(`the fuzzer finds ${name}`, () => {
    const { code, counters } = instrument(`const run = (bytes) => { ${body} };`);
    const counts = new Uint8Array(8 * Math.ceil(counters / 8));
    Object.assign(globalThis, { __counts: counts });
    const run = new Function(`${code}; return run;`)() as (bytes: Buffer) => void;
    const { failure } = fuzz({ seeds: [Buffer.from("AAAA")], words: ["A"], run }, counts, { corpus: [], ms: 60_000, seed: 7 });
    assert.match(String(failure?.error), /planted|more than 25$/);
  });
}

test("instrumented code gives the results of the code", () => {
  const script = `const f = (a, b) => a ? b ?? (() => 1)() : [1, 2, 3].map((x) => x * a); function* g(n) { for (let i = 0; i < n; i++) if (i % 2) yield i; else yield -i; }
    const h = (x) => { switch (x) { case 1: return "one"; case 2: case 3: { return "more"; } default: return x > 5 && "many"; } };
    return [f(1, null), f(0, 1), f(2, 5), [...g(5)], h(1), h(2), h(3), h(4), h(6)];`;
  const { code } = instrument(`const all = () => { ${script} };`);
  Object.assign(globalThis, { __counts: new Uint8Array(64) });
  assert.deepEqual(new Function(`${code}; return all();`)(), new Function(script)());
});

test("a run with the saved inputs finds nothing", async () => {
  const { code, out, log } = await runCommand("node", ["test/fuzz/main.ts", SECONDS], { cwd: root });
  assert.equal(code, 0, `${out}${log}`);
  const saved = JSON.parse(readFileSync(join(root, "test/fuzz/corpus.json"), "utf8")) as Readonly<Record<string, readonly string[]>>;
  for (const [target, inputs] of Object.entries(saved)) {
    const [, executions] = new RegExp(`^${target}: (\\d+) executions`, "m").exec(out) ?? [];
    assert.ok(inputs.length > 20 && Number(executions) > 2 * inputs.length, `${target}: ${out}`);
  }
});
