/** The time of a whole AdamW step, from the first byte of the request out to the last of the reply in, against an echo of the same bytes. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import os from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { pack } from "msgpackr";
import { type Progress, table } from "../src/cli/terminal.ts";
import { writeState, writeTensors } from "../test/support/tensors.ts";
import { RawClient } from "./client.ts";
import { type Contender, type Figures, race, sizeName } from "./rounds.ts";

const ARENA_MIB = "640";
const GAP_MS = 100;

const SIZES: readonly { readonly elements: number; readonly repetitions: number }[] = [
  { elements: 1000, repetitions: 100 },
  { elements: 2 ** 16, repetitions: 20 },
  { elements: 2 ** 20, repetitions: 5 },
  { elements: 2 ** 24, repetitions: 2 },
];

/** A tensor of values between 0.25 and 1 in size: no subnormals anywhere. */
const tensor = (elements: number, signed: boolean) => {
  const data = new Float32Array(elements);
  for (let i = 0; i < elements; i++) {
    const size = 0.25 + ((Math.imul(i, 2654435761) >>> 9) / 2 ** 24) * 1.5;
    data[i] = signed && (i & 1) === 1 ? -size : size;
  }
  return { shape: [elements], data };
};

/** The body of a step in mid-training: all slots are there. `more` are further fields of the call. */
const stepBody = (elements: number, more: Readonly<Record<string, unknown>> = {}): Buffer => {
  const params = writeTensors({ w: tensor(elements, true) });
  const grads = writeTensors({ w: tensor(elements, true) });
  const slots = { exp_avg: { w: tensor(elements, true) }, exp_avg_sq: { w: tensor(elements, false) } };
  const state = writeState({ optimizer: "adamw", steps: { w: 100 }, slots });
  return Buffer.from(
    pack({ jsonrpc: "2.0", id: 1, method: "optimizer.step", params: { optimizer: { name: "adamw", lr: 1e-3 }, params, grads, state, ...more } }),
  );
};

const head = (path: string, length: number): Buffer =>
  Buffer.from(`POST ${path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/vnd.msgpack\r\nContent-Length: ${length}\r\n\r\n`);

class Server implements AsyncDisposable {
  readonly address: string;
  readonly #child: ChildProcess;

  private constructor(address: string, child: ChildProcess) {
    this.address = address;
    this.#child = child;
  }

  static async start(script: string, args: readonly string[], env: Readonly<Record<string, string>>): Promise<Server> {
    const path = join(import.meta.dirname, script);
    const child = spawn(process.execPath, [path, ...args], { env: { PATH: process.env["PATH"], ...env }, stdio: ["ignore", "pipe", "inherit"] });
    for await (const line of createInterface({ input: child.stdout })) {
      const address = / listens on (\S+)$/.exec(line)?.[1];
      if (address) return new Server(address, child);
    }
    throw new Error(`${script} did not start`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#child.exitCode !== null) return;
    this.#child.kill("SIGKILL");
    await once(this.#child, "exit");
  }
}

const ms = ({ median, min }: Figures): string => `${median.toFixed(median < 10 ? 3 : 1)} [${min.toFixed(min < 10 ? 3 : 1)}]`;

export const benchSteps = async (rounds: number, bar: Progress): Promise<string> => {
  const folder = mkdtempSync(join(os.tmpdir(), "stepd-bench-"));
  await using stack = new AsyncDisposableStack();
  stack.defer(() => rmSync(folder, { recursive: true, force: true }));
  const rows: string[][] = [];
  const environment = (env: Readonly<Record<string, string>>) => ({ STEPD_ARENA_MIB: ARENA_MIB, STEPD_LOG_LEVEL: "warn", ...env });
  for (const transport of ["TCP", "Unix"]) {
    await using round = new AsyncDisposableStack();
    const path = (name: string): string => (transport === "TCP" ? "" : join(folder, name));
    const service = round.use(
      await Server.start("../src/main.ts", [], environment(transport === "TCP" ? { STEPD_PORT: "0" } : { STEPD_SOCKET: path("stepd.sock") })),
    );
    const echo = round.use(await Server.start("echo-server.ts", [ARENA_MIB, path("echo.sock")], {}));
    const toService = round.use(await RawClient.connect(service.address));
    const toEcho = round.use(await RawClient.connect(echo.address));
    for (const { elements, repetitions } of SIZES) {
      const body = stepBody(elements);
      const stepHead = head("/rpc", body.length);
      const reply = await toService.request(stepHead, body);
      const echoHead = head(`/echo/${reply}`, body.length);
      const contenders: readonly Contender[] = [
        { name: "step", repetitions, run: async () => void (await toService.request(stepHead, body)) },
        { name: "echo", repetitions, run: async () => void (await toEcho.request(echoHead, body)) },
      ];
      bar.begin(`step, ${sizeName(elements)}, ${transport}`, contenders.length * (rounds + 1));
      const figures = await race(contenders, rounds, GAP_MS, bar);
      const [step, floor] = [figures.get("step"), figures.get("echo")];
      if (!step || !floor) throw new Error("a contender is missing");
      rows.push([
        transport,
        sizeName(elements),
        (step.median / floor.median).toFixed(2),
        (step.min / floor.min).toFixed(2),
        ms(step),
        ms(floor),
        `${(body.length / 1e6).toFixed(2)} + ${(reply / 1e6).toFixed(2)}`,
      ]);
    }
  }
  const columns = ["step", "parameters", "step/echo", "of minima", "step ms", "echo ms", "MB up + down"];
  return `A whole AdamW step in MessagePack on one connection: median [min] of ${rounds} rounds\n\n${table(columns, rows)}`;
};

/** What goes on around the update, as fields of a call. */
const AROUND: Readonly<Record<string, Readonly<Record<string, unknown>>>> = {
  "no check (propagate)": { non_finite: "propagate" },
  "check (error, the default)": {},
  "stats global": { stats: "global" },
  "stats tensor": { stats: "tensor" },
  "clip by norm": { clip: { max_norm: 1 } },
  "clip, loss scale and stats": { clip: { max_norm: 1 }, loss_scale: 1024, stats: "tensor" },
};

/** What the check of gradients, statistics, clipping and the loss scale cost, against the step that does none of it. */
export const benchAround = async (rounds: number, bar: Progress): Promise<string> => {
  await using stack = new AsyncDisposableStack();
  const service = stack.use(await Server.start("../src/main.ts", [], { STEPD_ARENA_MIB: ARENA_MIB, STEPD_LOG_LEVEL: "warn", STEPD_PORT: "0" }));
  const client = stack.use(await RawClient.connect(service.address));
  const rows: string[][] = [];
  for (const { elements, repetitions } of SIZES.filter(({ elements }) => elements >= 2 ** 20)) {
    const contenders = Object.entries(AROUND).map(([name, more]): Contender => {
      const body = stepBody(elements, more);
      return { name, repetitions, run: async () => void (await client.request(head("/rpc", body.length), body)) };
    });
    bar.begin(`around the update, ${sizeName(elements)}`, contenders.length * (rounds + 1));
    const figures = await race(contenders, rounds, GAP_MS, bar);
    const base = figures.get(Object.keys(AROUND)[0] ?? "");
    for (const [name, figure] of figures) {
      if (base) rows.push([sizeName(elements), name, (figure.median / base.median).toFixed(2), (figure.min / base.min).toFixed(2), ms(figure)]);
    }
  }
  const columns = ["parameters", "step with", "ratio", "of minima", "ms"];
  return `What surrounds the update, over TCP, against a step without: median [min] of ${rounds} rounds\n\n${table(columns, rows)}`;
};
