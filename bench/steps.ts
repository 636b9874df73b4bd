/**
 * Measures the time of a whole AdamW step, from the first byte of the request to the last byte of the reply, over TCP and a
 * Unix socket. Compares it with an echo of the same bytes by the same stack, and with a FastAPI service that steps with torch.
 */
import { join } from "node:path";
import { ARENA_MIB, checkPeer, echoRequest, type Request, stepRequest } from "./bodies.ts";
import { RawClient } from "./client.ts";
import { Folder, Server } from "./processes.ts";
import { type Contender, legend, msText, type Ratio, type Report, race, ratioOf, repeatedContender, type Setup, sizeName } from "./rounds.ts";

const GAP_MS = 100;

/**
 * The sizes in the order of the table. The goal for small steps is in rate.ts. The entry with many tensors is a LoRA adapter:
 * 32 layers of 14 tensors.
 */
const SIZES = [
  { elements: 1000, repetitions: 100 },
  { elements: 2 ** 16, repetitions: 20 },
  { elements: 448 * 2000, tensors: 448, repetitions: 10 },
  { elements: 2 ** 20, repetitions: 15, fastapiGoal: 0.4, echoGoal: 1.15 },
  { elements: 2 ** 24, repetitions: 4, fastapiGoal: 0.25, echoGoal: 1.15, socketGoal: 0.85 },
];

const THREADS = 2;

const sender =
  (client: RawClient, { head, body }: Request) =>
  (): Promise<number> =>
    client.request(head, body);

export const benchSteps = async (setup: Setup): Promise<Report> => {
  const { python } = setup;
  using folder = new Folder();
  await using stack = new AsyncDisposableStack();
  const socket = (name: string): string => join(folder.path, name);
  const connect = async (server: Promise<Server>): Promise<RawClient> => stack.use(await RawClient.connect(stack.use(await server).address));
  const stepd = stack.use(await Server.stepd({ STEPD_ARENA_MIB: ARENA_MIB }));
  const tcp = stack.use(await RawClient.connect(stepd.address));
  const unix = await connect(Server.stepd({ STEPD_ARENA_MIB: ARENA_MIB, STEPD_SOCKET: socket("stepd.sock") }));
  const echoTcp = await connect(Server.echo(ARENA_MIB));
  const echoUnix = await connect(Server.echo(ARENA_MIB, socket("echo.sock")));
  const peers: { readonly name: string; readonly client: RawClient }[] = [];
  for (const form of python === undefined ? [] : (["functional", "object"] as const)) {
    const server = stack.use(await Server.fastapi(python as string, form, THREADS));
    await checkPeer(`FastAPI, ${form}`, stepd.address, server.address);
    peers.push({ name: `FastAPI, ${form}`, client: stack.use(await RawClient.connect(server.address)) });
  }
  const rows: string[][] = [];
  const ratios: Ratio[] = [];
  for (const { elements, tensors, repetitions, fastapiGoal, echoGoal, socketGoal } of SIZES) {
    const size = tensors === undefined ? sizeName(elements) : `${tensors} x ${sizeName(elements / tensors)}`;
    const step = stepRequest(elements, {}, tensors);
    const reply = await sender(tcp, step)();
    const echo = echoRequest(step, reply);
    const contenders: readonly Contender[] = [
      repeatedContender("TCP", repetitions, sender(tcp, step)),
      repeatedContender("echo, TCP", repetitions, sender(echoTcp, echo)),
      repeatedContender("Unix socket", repetitions, sender(unix, step)),
      repeatedContender("echo, Unix socket", repetitions, sender(echoUnix, echo)),
      ...peers.map(({ name, client }) => repeatedContender(name, repetitions, sender(client, step))),
    ];
    const figuresOf = await race(`step, ${size}`, contenders, GAP_MS, setup);
    const name = (transport: string, other: string): string => `step of ${size}, ${transport} / ${other}`;
    ratios.push(
      ratioOf(name("TCP", "echo"), figuresOf("TCP"), figuresOf("echo, TCP"), echoGoal),
      ratioOf(name("Unix socket", "echo"), figuresOf("Unix socket"), figuresOf("echo, Unix socket")),
      ratioOf(name("Unix socket", "TCP"), figuresOf("Unix socket"), figuresOf("TCP"), socketGoal),
      ...peers.map((peer) => ratioOf(name("TCP", peer.name), figuresOf("TCP"), figuresOf(peer.name), fastapiGoal)),
    );
    const bytes = `${(step.body.length / 1e6).toFixed(2)} + ${(reply / 1e6).toFixed(2)}`;
    const against = (transport: string): string => ((figuresOf("TCP").median / figuresOf(transport).median) as number).toFixed(2);
    for (const contender of contenders.map((each) => each.name))
      rows.push([size, contender, msText(figuresOf(contender)), contender === "TCP" ? "" : against(contender), contender === "TCP" ? bytes : ""]);
  }
  return {
    title: "A whole AdamW step in MessagePack on one connection",
    figures: legend(setup.rounds),
    head: ["parameters", "", "ms", "stepd over TCP / this", "MB up + down"],
    rows,
    ratios,
  };
};

/** The gradient check, statistics, clipping and the loss scale as fields of a call. The first entry is the baseline. */
const GRADIENT_OPTIONS = {
  "no check (propagate)": { non_finite: "propagate" },
  "check (error, the default)": {},
  "stats global": { stats: "global" },
  "stats tensor": { stats: "tensor" },
  "clip by norm": { clip: { max_norm: 1 } },
  "clip, loss scale and stats": { clip: { max_norm: 1 }, loss_scale: 1024, stats: "tensor" },
};

/** The cases that must meet the goal: the gradient check and statistics. */
const OPTIONS_WITH_GOAL = ["check (error, the default)", "stats global", "stats tensor"];
const CHECK_GOAL = 1.1;

/** Measures the cost of the gradient check, statistics, clipping and the loss scale, compared with a plain step. */
export const benchGradientOptions = async (setup: Setup): Promise<Report> => {
  await using stack = new AsyncDisposableStack();
  const service = stack.use(await Server.stepd({ STEPD_ARENA_MIB: ARENA_MIB }));
  const client = stack.use(await RawClient.connect(service.address));
  const rows: string[][] = [];
  const ratios: Ratio[] = [];
  for (const { elements, repetitions } of SIZES.filter((size) => size.elements >= 2 ** 20)) {
    const contenders = Object.entries(GRADIENT_OPTIONS).map(([name, more]) =>
      repeatedContender(name, repetitions, sender(client, stepRequest(elements, more))),
    );
    const figuresOf = await race(`gradient options, ${sizeName(elements)}`, contenders, GAP_MS, setup);
    const [base = "", ...others] = Object.keys(GRADIENT_OPTIONS);
    rows.push([sizeName(elements), base, "", "", msText(figuresOf(base))]);
    for (const name of others) {
      const result = ratioOf(
        `step of ${sizeName(elements)}, ${name} / no check`,
        figuresOf(name),
        figuresOf(base),
        OPTIONS_WITH_GOAL.includes(name) ? CHECK_GOAL : undefined,
      );
      ratios.push(result);
      rows.push([sizeName(elements), name, result.median.toFixed(2), result.min.toFixed(2), msText(figuresOf(name))]);
    }
  }
  return {
    title: "Gradient checks, statistics, clipping and loss scale, over TCP",
    figures: legend(setup.rounds),
    head: ["parameters", "step with", "ratio", "of minima", "ms"],
    rows,
    ratios,
  };
};
