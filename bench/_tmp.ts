// @ts-nocheck
import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { echoRequest, stepRequest } from "./bodies.ts";
import { RawClient } from "./client.ts";

const N = Number(process.argv[2] ?? 2 ** 24);
const go = async (args: string[], env: Record<string, string>) => {
  const c = spawn(process.execPath, args, { env: { PATH: process.env["PATH"], ...env }, stdio: ["ignore", "pipe", "inherit"] });
  process.on("exit", () => c.kill("SIGKILL"));
  for await (const l of createInterface({ input: c.stdout! })) {
    const a = / listens on (\S+)$/.exec(l)?.[1];
    if (a) return { a, c };
  }
  throw 1;
};
const s = await go(["src/main.ts"], { STEPD_PORT: "0", STEPD_LOG_LEVEL: "warn", STEPD_ARENA_MIB: "640", ...JSON.parse(process.argv[4] ?? "{}") });
const e = await go(["bench/_echo_tmp.ts", "640"], {});
const sc = await RawClient.connect(s.a),
  ec = await RawClient.connect(e.a);
const step = stepRequest(N);
const reply = await sc.request(step.head, step.body);
const echo = echoRequest(step, reply);
await ec.request(echo.head, echo.body);
const phases = async () => {
  const t = await (await fetch(s.a + "/metrics")).text();
  return Object.fromEntries([...t.matchAll(/^stepd_phase_seconds_sum\{phase="(\w+)"\} (\S+)/gm)].map((m) => [m[1], Number(m[2]) * 1000]));
};
const A: number[] = [],
  B: number[] = [];
for (let i = 0; i < Number(process.argv[3] ?? 8); i++) {
  await new Promise((r) => setTimeout(r, 150));
  let t = performance.now();
  await ec.request(echo.head, echo.body);
  B.push(performance.now() - t);
  await new Promise((r) => setTimeout(r, 150));
  const p = await phases();
  t = performance.now();
  await sc.request(step.head, step.body);
  A.push(performance.now() - t);
  const q = await phases();
  console.log(
    "echo",
    B.at(-1)!.toFixed(0),
    "step",
    A.at(-1)!.toFixed(0),
    Object.entries(q)
      .map(([k, v]) => k + " " + (v - (p[k] ?? 0)).toFixed(1))
      .join(" "),
  );
}
const med = (x: number[]) => x.toSorted((a, b) => a - b)[x.length >> 1]!;
console.log(
  "median echo",
  med(B).toFixed(1),
  "step",
  med(A).toFixed(1),
  "ratio",
  (med(A) / med(B)).toFixed(3),
  "min",
  (Math.min(...A) / Math.min(...B)).toFixed(3),
);
process.exit();
