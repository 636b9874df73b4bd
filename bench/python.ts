/** Measures the Python client's own time per step, compared with a bare socket that sends and receives the same bytes. */
import { ARENA_MIB } from "./bodies.ts";
import { Peer, Server } from "./processes.ts";
import { legend, msText, type Ratio, type Report, race, ratioOf, type Setup, sizeName } from "./rounds.ts";

/** The goal for the client's own share of the step's time. */
const SHARE_GOAL = 0.15;

const SIZES = [
  { elements: 2 ** 20, repetitions: 5 },
  { elements: 2 ** 24, repetitions: 2, goal: 1 / (1 - SHARE_GOAL) },
];
const GAP_MS = 100;

export const benchPython = async (setup: Setup): Promise<Report> => {
  const { python } = setup;
  if (python === undefined) throw new Error("the Python client needs its environment");
  await using stack = new AsyncDisposableStack();
  const server = stack.use(await Server.stepd({ STEPD_ARENA_MIB: ARENA_MIB }));
  const client = stack.use(await Peer.start(python, "client.py", [server.address]));
  const rows: string[][] = [];
  const ratios: Ratio[] = [];
  for (const { elements, repetitions, goal } of SIZES) {
    await client.ask(`prepare ${elements}`);
    const contenders = ["bare", "Client", "AsyncClient"].map((name) => ({ name, time: () => client.time(`${name} ${repetitions}`) }));
    const figuresOf = await race(`Python client, ${sizeName(elements)}`, contenders, GAP_MS, setup);
    const bare = figuresOf("bare");
    rows.push([sizeName(elements), "bare socket", msText(bare), ""]);
    for (const name of ["Client", "AsyncClient"]) {
      const result = ratioOf(`${name} of Python, step of ${sizeName(elements)} / bare socket`, figuresOf(name), bare, name === "Client" ? goal : undefined);
      ratios.push(result);
      rows.push([sizeName(elements), name, msText(figuresOf(name)), (1 - 1 / result.median).toFixed(2)]);
    }
  }
  return { title: "The Python client, over TCP", figures: legend(setup.rounds), head: ["parameters", "", "ms", "own share"], rows, ratios };
};
