/** Measures many connections at once: small steps per second, and 16 clients with steps of 1 Mi parameters. */
import { checkPeer, echoRequest, type Request, stepRequest } from "./bodies.ts";
import { RawClient } from "./client.ts";
import { Server } from "./processes.ts";
import { type Contender, type Figures, legend, msText, type Ratio, type Report, race, ratioOf, type Setup } from "./rounds.ts";

const CONNECTIONS = 16;
const GAP_MS = 100;

/**
 * Sends `count` requests. Each connection sends its next request after the reply to the last one. `onReply` receives the
 * connection's index and the latency in milliseconds.
 */
const send = async (
  clients: readonly RawClient[],
  { head, body }: Request,
  count: number,
  onReply: (client: number, elapsed: number) => void = () => {},
): Promise<void> => {
  let left = count;
  await Promise.all(
    clients.map(async (client, index) => {
      while (left-- > 0) {
        const start = performance.now();
        await client.request(head, body);
        onReply(index, performance.now() - start);
      }
    }),
  );
};

const connect = (stack: AsyncDisposableStack, server: Server): Promise<readonly RawClient[]> =>
  Promise.all(Array.from({ length: CONNECTIONS }, async () => stack.use(await RawClient.connect(server.address))));

const SMALL = 1000;
/**
 * The number of requests in a round. A warm-up round of this length is enough for V8 to optimize the server's code, as it does in
 * a long-running server.
 */
const SMALL_REQUESTS = 8000;
const GOALS = { functional: 1 / 3, object: 1 / 4 };

/** Measures small steps on 16 connections, and the server's processor time for each step. */
export const benchRate = async (setup: Setup): Promise<Report> => {
  const { python } = setup;
  await using stack = new AsyncDisposableStack();
  const step = stepRequest(SMALL);
  const stepd = stack.use(await Server.stepd({ STEPD_ARENA_MIB: "64" }));
  const [first] = await connect(stack, stepd);
  const reply = (await first?.request(step.head, step.body)) ?? 0;
  const rivals: { name: string; server: Server; request: Request; goal?: number }[] = [
    { name: "stepd", server: stepd, request: step },
    { name: "echo", server: stack.use(await Server.echo("64")), request: echoRequest(step, reply) },
  ];
  for (const form of python === undefined ? [] : (["functional", "object"] as const)) {
    const server = stack.use(await Server.fastapi(python as string, form, 1));
    await checkPeer(`FastAPI, ${form}`, stepd.address, server.address);
    rivals.push({ name: `FastAPI, ${form}`, server, request: step, goal: GOALS[form] });
  }
  const contenders: Contender[] = [];
  const processor = new Map<string, { ms: number; requests: number }>();
  for (const { name, server, request } of rivals) {
    const clients = await connect(stack, server);
    const used = { ms: 0, requests: 0 };
    processor.set(name, used);
    contenders.push({
      name,
      async time() {
        const before = server.processorMs();
        const start = performance.now();
        await send(clients, request, SMALL_REQUESTS);
        const elapsed = performance.now() - start;
        used.ms += server.processorMs() - before;
        used.requests += SMALL_REQUESTS;
        return elapsed / SMALL_REQUESTS;
      },
    });
  }
  const figuresOf = await race("small steps, 16 connections", contenders, GAP_MS, setup);
  const ratios: Ratio[] = [];
  const rows = rivals.map(({ name, goal }) => {
    if (name !== "stepd") ratios.push(ratioOf(`small steps, ${CONNECTIONS} connections, time / ${name}`, figuresOf("stepd"), figuresOf(name), goal));
    const bySecond = (milliseconds: number): string => Math.round(1000 / milliseconds).toLocaleString("en-US");
    const { ms: total, requests } = processor.get(name) ?? { ms: 0, requests: 1 };
    return [
      name,
      bySecond(figuresOf(name).median),
      bySecond(figuresOf(name).min),
      (figuresOf(name).median / figuresOf("stepd").median).toFixed(2),
      (total / requests).toFixed(3),
    ];
  });
  return {
    title: `Steps of ${SMALL.toLocaleString("en-US")} parameters, ${CONNECTIONS} connections`,
    figures: legend(setup.rounds),
    head: ["server", "requests/s", "best round", "stepd is faster by", "processor ms a request"],
    rows,
    ratios,
  };
};

const LARGE = 2 ** 20;
const LARGE_REQUESTS = 3 * CONNECTIONS;
/** The throughput must reach 0.9 of one client's throughput. The ratio divides times, so the goal is the inverse. */
const CONCURRENCY_GOAL = 1 / 0.9;

/** Measures 16 clients with steps of 1 Mi parameters at once, compared with one client alone. */
export const benchConcurrency = async (setup: Setup): Promise<Report> => {
  await using stack = new AsyncDisposableStack();
  const step = stepRequest(LARGE);
  const server = stack.use(await Server.stepd({ STEPD_ARENA_MIB: "1024" }));
  const clients = await connect(stack, server);
  const counts = clients.map(() => 0);
  const waits = { all: [] as number[], one: [] as number[] };
  const contender = (name: string, some: readonly RawClient[], onReply: (client: number, elapsed: number) => void): Contender => ({
    name,
    async time() {
      const start = performance.now();
      await send(some, step, LARGE_REQUESTS, onReply);
      return (performance.now() - start) / LARGE_REQUESTS;
    },
  });
  const contenders = [
    contender("one", clients.slice(0, 1), (_, elapsed) => waits.one.push(elapsed)),
    contender("all", clients, (client, elapsed) => {
      counts[client] = (counts[client] ?? 0) + 1;
      waits.all.push(elapsed);
    }),
  ];
  const figuresOf = await race("16 clients of 1 Mi", contenders, GAP_MS, setup);
  const [one, all] = [figuresOf("one"), figuresOf("all")];
  const best: Figures = { median: one.min, min: one.min };
  const name = `${CONNECTIONS} clients of 1 Mi, time of a step`;
  const ratios = [ratioOf(`${name} / one client's best`, all, best, CONCURRENCY_GOAL), ratioOf(`${name} / one client`, all, one)];
  const row = (title: string, figures: Figures, waited: readonly number[], steps: string): string[] => {
    const sorted = waited.toSorted((a, b) => a - b);
    const at = (part: number): string => (sorted[Math.floor(part * (sorted.length - 1))] as number).toFixed(0);
    return [title, msText(figures), (1000 / figures.median).toFixed(1), at(0.5), at(0.99), at(1), steps];
  };
  return {
    title: `${CONNECTIONS} clients with steps of 1 Mi parameters at once`,
    figures: legend(setup.rounds),
    head: ["clients", "ms a step", "steps/s", "wait p50, ms", "p99", "longest", "steps of a client"],
    rows: [row("1", one, waits.one, ""), row(String(CONNECTIONS), all, waits.all, `${Math.min(...counts)} to ${Math.max(...counts)}`)],
    ratios,
  };
};
