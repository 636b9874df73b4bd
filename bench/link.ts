/**
 * Measures steps of the Python client over a slow network: links of 1 and 10 Gbit/s in both directions, and the loopback device.
 * Both ends share this machine's processors. Times are compared with the time that the bytes take, or with an echo of them.
 */
import { Link } from "./_network.ts";
import { Peer, type Place, Server } from "./processes.ts";
import { type Contender, type Figures, legend, msText, type Ratio, type Report, race, ratioOf, type Setup, sizeName } from "./rounds.ts";

const GAP_MS = 100;
const ARENA_MIB = "2048";
/** The cache has room for two results, and the next one, of each of two runs of the largest size. */
const CACHE_MIB = "1200";
const ECHO_ARENA_MIB = "640";

/** The connections of a client for one server. */
const CONNECTIONS = 2;

/** A contender of peers/link.py, with its name in the table. */
interface Row {
  readonly title: string;
  readonly command: string;
}

const EVERYTHING: Row = { title: "everything sent", command: "sent" };
const RESIDENT: Row = { title: "resident", command: "resident" };
const RESIDENT_ONE: Row = { title: "resident, one connection", command: "resident+one" };
const RESIDENT_BF16: Row = { title: "resident, BF16 both ways", command: "resident+many+bf16" };
const BF16: Row = { title: "everything sent, BF16 moments", command: "sent+BF16" };
const Q8: Row = { title: "everything sent, Q8 moments", command: "sent+Q8" };

const echoOf = ({ title, command }: Row, connections: number): Row => ({
  title: `echo of ${title}, ${connections === 1 ? "one connection" : `${connections} connections`}`,
  command: `echoed+${command.replaceAll("+", "/")}+${connections}`,
});

/** The least time of a contender over another time: a name for both, and the goal. */
interface Comparison {
  readonly row: Row;
  /** Another contender, or "both" or "each" for the time of the bytes: both directions at once, or one after the other. */
  readonly over: Row | "both" | "each";
  readonly goal?: number;
}

interface Case {
  readonly rate?: string;
  readonly gigabits?: number;
  readonly elements: number;
  readonly repetitions: number;
  readonly rows: readonly Row[];
  readonly comparisons: readonly Comparison[];
}

const SLOW: Case = {
  rate: "1gbit",
  gigabits: 1,
  elements: 2 ** 22,
  repetitions: 1,
  rows: [EVERYTHING, BF16, Q8, RESIDENT, RESIDENT_ONE, RESIDENT_BF16],
  comparisons: [
    { row: EVERYTHING, over: "both", goal: 1.08 },
    { row: BF16, over: "both" },
    { row: Q8, over: "both" },
    { row: RESIDENT, over: "both", goal: 1.12 },
    { row: RESIDENT_ONE, over: "each", goal: 1.06 },
    { row: RESIDENT_BF16, over: "both", goal: 1.2 },
  ],
};

const FAST: Case = {
  rate: "10gbit",
  gigabits: 10,
  elements: 2 ** 24,
  repetitions: 1,
  rows: [EVERYTHING, BF16, Q8, RESIDENT, RESIDENT_BF16, echoOf(EVERYTHING, 1), echoOf(EVERYTHING, CONNECTIONS), echoOf(RESIDENT, 1)],
  comparisons: [
    { row: EVERYTHING, over: echoOf(EVERYTHING, 1), goal: 1 },
    { row: EVERYTHING, over: echoOf(EVERYTHING, CONNECTIONS), goal: 1.25 },
    { row: BF16, over: EVERYTHING },
    { row: Q8, over: EVERYTHING },
    { row: RESIDENT, over: EVERYTHING, goal: 0.35 },
    { row: RESIDENT, over: echoOf(RESIDENT, 1), goal: 1.2 },
    { row: RESIDENT_BF16, over: EVERYTHING },
  ],
};

const LOOPBACK: Case = {
  elements: 2 ** 24,
  repetitions: 1,
  rows: [EVERYTHING, RESIDENT],
  comparisons: [{ row: RESIDENT, over: EVERYTHING, goal: 0.4 }],
};

/** The goal for the client's processor time, over that of moving the same bytes. */
const PROCESSOR_GOAL = 1.25;

/** The goal for the share of a step that backward does not hide, where backward takes as long. */
const UNHIDDEN_GOAL = 0.4;

export const benchLink = async (setup: Setup): Promise<Report> => {
  const { python } = setup;
  if (python === undefined) throw new Error("the Python client needs its environment");
  const rows: string[][] = [];
  const ratios: Ratio[] = [];
  for (const [index, one] of [SLOW, FAST, LOOPBACK].entries()) {
    using link = one.rate === undefined ? undefined : new Link(one.rate, index);
    await using ends = await Ends.start(python, link);
    await ends.client.ask(`prepare ${one.elements}`);
    await measure(one, ends.client, setup, rows, ratios);
    if (one === SLOW) await measureOverlap(one, ends.client, setup, rows, ratios);
    if (one === LOOPBACK) await measureProcessorTime(one, ends.client, setup, rows, ratios);
  }
  return {
    title: "The Python client over a link, both directions limited to its rate",
    figures: legend(setup.rounds),
    head: ["link", "parameters", "", "MB up + down", "ms", "compared with", "median", "of minima"],
    rows,
    ratios,
  };
};

/** A stepd, an echo server and a client of both. */
class Ends implements AsyncDisposable {
  readonly client: Peer;
  readonly #stack: AsyncDisposableStack;

  private constructor(client: Peer, stack: AsyncDisposableStack) {
    this.client = client;
    this.#stack = stack;
  }

  static async start(python: string, place: Place | undefined): Promise<Ends> {
    await using stack = new AsyncDisposableStack();
    const server = stack.use(await Server.stepd({ STEPD_ARENA_MIB: ARENA_MIB, STEPD_CACHE_MIB: CACHE_MIB }, place));
    const echo = stack.use(await Server.echo(ECHO_ARENA_MIB, "", place));
    const { hostname, port } = new URL(echo.address);
    const client = stack.use(await Peer.start(python, "link.py", [server.address, hostname, port]));
    return new Ends(client, stack.move());
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#stack.disposeAsync();
  }
}

const contenderOf = (client: Peer, { title, command }: Row, repetitions: number): Contender => ({
  name: title,
  time: () => client.time(`${command} ${repetitions}`),
});

const linkName = ({ gigabits }: Case): string => (gigabits === undefined ? "loopback" : `${gigabits} Gbit/s`);

const measure = async (one: Case, client: Peer, setup: Setup, rows: string[][], ratios: Ratio[]): Promise<void> => {
  const contenders = one.rows.map((row) => contenderOf(client, row, one.repetitions));
  const title = `${linkName(one)}, ${sizeName(one.elements)}`;
  const figuresOf = await race(title, contenders, GAP_MS, setup);
  for (const row of one.rows) {
    const [up, down] = await bytesOf(client, row);
    const found = one.comparisons.filter((comparison) => comparison.row === row);
    const compared = found.map(({ over, goal }): readonly [string, Ratio] => {
      const [name, figures] = typeof over === "string" ? limitOf(up, down, one, over) : [over.title, figuresOf(over.title)];
      return [name, ratioOf(`${title}, ${row.title} / ${name}`, figuresOf(row.title), figures, goal)];
    });
    ratios.push(...compared.map(([, ratio]) => ratio));
    const first = [linkName(one), sizeName(one.elements), row.title, `${megabytes(up)} + ${megabytes(down)}`, msText(figuresOf(row.title))];
    if (compared.length === 0) rows.push([...first, "", "", ""]);
    for (const [at, [name, ratio]] of compared.entries())
      rows.push([...(at === 0 ? first : first.map(() => "")), name, ratio.median.toFixed(2), ratio.min.toFixed(2)]);
  }
};

const bytesOf = async (client: Peer, { command }: Row): Promise<readonly [up: number, down: number]> => {
  const [kind = "", own = ""] = command.split("+");
  const [up = 0, down = 0] = (await client.ask(`bytes ${kind === "echoed" ? own.replaceAll("/", "+") : command}`)).split(" ").map(Number);
  return [up, down];
};

/** The time that bytes take on a link. */
const limitOf = (up: number, down: number, { gigabits = Number.NaN }: Case, over: "both" | "each"): readonly [string, Figures] => {
  const bytes = over === "both" ? Math.max(up, down) : up + down;
  const ms = (bytes * 8) / (gigabits * 1e6);
  const name = `${ms.toFixed(0)} ms, the bytes in both directions${over === "both" ? " at once" : " in turn"}`;
  return [name, { median: ms, min: ms }];
};

const megabytes = (bytes: number): string => (bytes / 1e6).toFixed(1);

/** Measures a resident step that overlaps with a backward of the same length. */
const measureOverlap = async (one: Case, client: Peer, setup: Setup, rows: string[][], ratios: Ratio[]): Promise<void> => {
  const batch = await client.ask("batch");
  const contender = (name: string): Contender => ({ name, time: () => client.time(`trained trained+${name}+${batch} 2`) });
  const title = `${linkName(one)}, ${sizeName(one.elements)}`;
  const figuresOf = await race(`${title}, overlap`, ["backward", "sequence", "overlap"].map(contender), GAP_MS, setup);
  const [backward, sequence, overlap] = [figuresOf("backward"), figuresOf("sequence"), figuresOf("overlap")];
  const difference = (figures: Figures): Figures => ({ median: Math.max(figures.median - backward.median, 0), min: Math.max(figures.min - backward.min, 0) });
  const name = "the step after backward";
  const ratio = ratioOf(`${title}, part of a step that backward of the same length does not hide`, difference(overlap), difference(sequence), UNHIDDEN_GOAL);
  ratios.push(ratio);
  const cells = [linkName(one), sizeName(one.elements)];
  rows.push([...cells, `backward alone, on one thread, batch ${batch}`, "", msText(backward), "", "", ""]);
  rows.push([...cells, "backward, then a resident step", "", msText(sequence), "", "", ""]);
  rows.push([
    ...cells,
    "backward with overlap=True, 8 buckets",
    "",
    msText(overlap),
    `${name}, without backward`,
    ratio.median.toFixed(2),
    ratio.min.toFixed(2),
  ]);
};

/** Measures the client's processor time, compared with that of moving the same bytes. */
const measureProcessorTime = async (one: Case, client: Peer, setup: Setup, rows: string[][], ratios: Ratio[]): Promise<void> => {
  const rowOf = (title: string, command: string): Row => ({ title, command: `cpu ${command}` });
  const [own, bare] = [rowOf("processor time of the client", "sent"), rowOf("processor time of sendmsg and recv_into", "bare")];
  const title = `${linkName(one)}, ${sizeName(one.elements)}`;
  const figuresOf = await race(
    `${title}, processor`,
    [own, bare].map((row) => contenderOf(client, row, 2)),
    GAP_MS,
    setup,
  );
  const ratio = ratioOf(`${title}, ${own.title} / ${bare.title}`, figuresOf(own.title), figuresOf(bare.title), PROCESSOR_GOAL);
  ratios.push(ratio);
  const cells = [linkName(one), sizeName(one.elements)];
  rows.push([...cells, own.title, "", msText(figuresOf(own.title)), bare.title, ratio.median.toFixed(2), ratio.min.toFixed(2)]);
  rows.push([...cells, bare.title, "", msText(figuresOf(bare.title)), "", "", ""]);
};
