/** `stepd bench`: measures a running server with real steps on several connections at once. */
import { readFileSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import { bytesOf, COMPUTED, writeElement } from "../codec/dtype.ts";
import { decodeMsgpack, MsgpackWriter } from "../codec/msgpack.ts";
import { Parts } from "../codec/parts.ts";
import { writeHeader } from "../codec/safetensors.ts";
import { atOnce } from "../codec/turns.ts";
import { CommandError, defineCommand, parseChoice, parseWholeNumber, UsageError } from "./_command.ts";
import { Connection, type Outcome, type Target } from "./_load.ts";
import { optimizerOf, optimizerOptions } from "./_optimizer.ts";
import { countText, formatTable, Progress } from "./terminal.ts";

const MAX_ELEMENTS = 2 ** 27;
const MAX_CONNECTIONS = 1024;
const MAX_SECONDS = 86400;

/** The progress bar is updated at this interval. */
const TICK_MS = 100;

/** A connection waits at least this long after a failed call. */
const MIN_PAUSE_MS = 100;

/** After one of these errors, the same call may succeed later. */
const RETRYABLE_ERRORS = ["OVERLOADED", "DRAINING", "WORKER_LOST"];

export const bench = defineCommand({
  name: "bench",
  summary: "Measures steps on the server at URL (http://, https:// or unix:PATH). Each connection sends one call after the other.",
  args: ["URL"],
  options: {
    ...optimizerOptions,
    elements: { value: "N,...", help: "number of parameters; the sizes of a list are measured one after the other", initial: "1048576" },
    dtype: { value: "DTYPE", help: "dtype of parameters and gradients", initial: "F32" },
    connections: { value: "N", help: "connections at once", initial: "1" },
    seconds: { value: "S", help: "time for each size", initial: "10" },
    check: { help: "compare every reply with the first, byte for byte" },
    "token-file": { value: "FILE", help: "file with the bearer token alone" },
    ca: { value: "FILE", help: "trusted certificate authorities instead of the system's, in PEM" },
    cert: { value: "FILE", help: "client certificate in PEM, for servers that require one" },
    key: { value: "FILE", help: "key of the client certificate in PEM" },
    json: { help: "print JSON" },
  },
  notes: [
    "The data are the same in every run. The first step creates the state. It is not counted, nor is one warm-up step on each connection.",
    "A refused call is repeated after its Retry-After. Ctrl-C ends the run early and prints the results so far.",
  ],

  async run(values, [address = ""]) {
    const sizes = (values.elements ?? "1048576").split(",").map((text) => parseWholeNumber(text, "elements", 1, MAX_ELEMENTS));
    const dtype = parseChoice(values.dtype ?? "F32", "dtype", COMPUTED);
    const connections = parseWholeNumber(values.connections ?? "1", "connections", 1, MAX_CONNECTIONS);
    const seconds = parseWholeNumber(values.seconds ?? "10", "seconds", 1, MAX_SECONDS);
    const token = readOption(values["token-file"], "token-file")?.toString().trim();
    if (token !== undefined && !/^[\x21-\x7e]+$/.test(token))
      throw new UsageError("--token-file: expected one token of visible ASCII characters, found others");
    const target = { address, token, ca: readOption(values.ca, "ca"), cert: readOption(values.cert, "cert"), key: readOption(values.key, "key") };
    const optimizer = optimizerOf(values);

    const stop = new AbortController();
    // Ctrl-C arrives twice, from the terminal and from bin/stepd.js. The handlers stay until exit, so the second signal does not suppress the table.
    for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => stop.abort());
    const rows: Row[] = [];
    using bar = new Progress();
    for (const elements of sizes) {
      if (stop.signal.aborted) break;
      const run = await measure({ target, optimizer, elements, dtype, connections, seconds, isChecked: values.check, signal: stop.signal, bar });
      if (run) rows.push(run);
    }
    bar[Symbol.dispose]();
    if (rows.length === 0) throw new CommandError("stopped before the first step was measured");
    console.log(values.json ? JSON.stringify(rows, null, 2) : textOf(rows, optimizer.name, dtype));
    const code = rows.every(({ steps, errors }) => steps > 0 && Object.keys(errors).length === 0) ? 0 : 1;
    // A normal exit removes the signal handlers 8 ms before the process ends (measured). A second Ctrl-C would then kill it, so this exits explicitly.
    process.stdout.write("", () => process.exit(code));
    return code;
  },
});

const readOption = (path: string | undefined, option: string): Buffer | undefined => {
  if (path === undefined) return undefined;
  try {
    return readFileSync(path);
  } catch (error) {
    throw new CommandError(`--${option}: expected a file that can be read, found ${(error as Error).message}`);
  }
};

interface MeasureOptions {
  readonly target: Target;
  readonly optimizer: unknown;
  readonly elements: number;
  readonly dtype: string;
  readonly connections: number;
  readonly seconds: number;
  readonly isChecked: boolean;
  readonly signal: AbortSignal;
  readonly bar: Progress;
}

interface Row {
  readonly elements: number;
  readonly connections: number;
  readonly seconds: number;
  readonly steps: number;
  readonly steps_per_second: number;
  /** The request bytes of all successful steps, per second. */
  readonly bytes_in_per_second: number;
  readonly bytes_out_per_second: number;
  readonly p50_ms: number | null;
  readonly p90_ms: number | null;
  readonly p99_ms: number | null;
  readonly refusals: number;
  /** The number of failed steps for each error name, without refusals. */
  readonly errors: Readonly<Record<string, number>>;
}

/** Measures steps of one size. Returns undefined if stopped before the first step. */
const measure = async (settings: MeasureOptions): Promise<Row | undefined> => {
  const { target, connections, elements, seconds, signal, bar } = settings;
  using stack = new DisposableStack();
  const sockets = Array.from({ length: connections }, () => stack.use(new Connection(target)));
  let prepared: Prepared;
  try {
    prepared = await prepare(sockets, settings);
  } catch (error) {
    if (signal.aborted) return undefined;
    throw error;
  }
  const ticks = Math.round((seconds * 1000) / TICK_MS);
  bar.begin(`${countText(elements)} elements`, ticks);
  using timer = new Timer(() => bar.tick());
  const tally = new Tally();
  const start = performance.now();
  const deadline = start + seconds * 1000;
  await Promise.all(sockets.map((connection) => repeat(connection, prepared, tally, deadline, settings)));
  timer[Symbol.dispose]();
  return tally.row(elements, connections, (performance.now() - start) / 1000, prepared.body.length);
};

class Timer implements Disposable {
  readonly #timer: ReturnType<typeof setInterval>;

  constructor(tick: () => void) {
    this.#timer = setInterval(tick, TICK_MS);
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer);
  }
}

interface Prepared {
  readonly body: Buffer;
  /** Every step must return this reply. */
  readonly reply: Buffer;
}

/** Creates the state by a first step. Then runs one step with this state on each connection. */
const prepare = async (connections: readonly Connection[], { optimizer, elements, dtype, signal }: MeasureOptions): Promise<Prepared> => {
  const params = tensorFile(elements, dtype, 0);
  const grads = tensorFile(elements, dtype, 1);
  const bodyOf = (state: Uint8Array | null): Buffer => {
    const { pieces } = atOnce(new MsgpackWriter().encode({ optimizer, params, grads, state: state && new Parts([state]) }));
    return Buffer.concat(pieces);
  };
  const [connection] = connections;
  if (!connection) throw new Error("there is no connection");
  const first = atOnce(decodeMsgpack(await warmUp(connection, bodyOf(null), signal))) as { state: Uint8Array };
  const body = bodyOf(first.state);
  const replies = await Promise.all(connections.map((each) => warmUp(each, body, signal)));
  return { body, reply: replies[0] as Buffer };
};

/** A warm-up step is sent at most this many times to an overloaded server. */
const MAX_WARM_UP_ATTEMPTS = 20;

const warmUp = async (connection: Connection, body: Buffer, signal: AbortSignal): Promise<Buffer> => {
  for (let attempt = 1; ; attempt++) {
    const chunks: Buffer[] = [];
    const { error, detail, retryAfter = 0 } = await connection.step(body, signal, (chunk) => chunks.push(chunk));
    if (error === undefined) return Buffer.concat(chunks);
    if (!RETRYABLE_ERRORS.includes(error) || attempt === MAX_WARM_UP_ATTEMPTS) throw new CommandError(`the first step did not go well: ${error}: ${detail}`);
    await delay(Math.max(retryAfter * 1000, MIN_PAUSE_MS), undefined, { signal });
  }
};

/** Sends steps on one connection until the deadline or until the signal is aborted. */
const repeat = async (
  connection: Connection,
  { body, reply }: Prepared,
  tally: Tally,
  deadline: number,
  { isChecked, signal }: MeasureOptions,
): Promise<void> => {
  while (performance.now() < deadline && !signal.aborted) {
    let isSame = true;
    const compare = (chunk: Buffer, at: number): void => {
      if (isChecked && reply.compare(chunk, 0, chunk.length, at, Math.min(at + chunk.length, reply.length)) !== 0) isSame = false;
    };
    try {
      const outcome = await connection.step(body, signal, compare);
      const isWhole = outcome.error !== undefined || (isSame && outcome.bytes === reply.length);
      tally.add(isWhole ? outcome : { ...outcome, error: "OTHER_REPLY" });
      const { error, retryAfter = 0 } = outcome;
      if (error === undefined) continue;
      await delay(Math.min(Math.max(retryAfter * 1000, MIN_PAUSE_MS), Math.max(deadline - performance.now(), 0)), undefined, { signal });
    } catch (error) {
      if (!signal.aborted) throw error;
    }
  }
};

/** Counts the outcomes of calls. */
class Tally {
  readonly #times: number[] = [];
  readonly #errors = new Map<string, number>();
  #bytes = 0;
  #refusals = 0;

  add({ ms, bytes, error }: Outcome): void {
    if (error === undefined) {
      this.#times.push(ms);
      this.#bytes += bytes;
    } else if (RETRYABLE_ERRORS.includes(error)) this.#refusals++;
    else this.#errors.set(error, (this.#errors.get(error) ?? 0) + 1);
  }

  row(elements: number, connections: number, seconds: number, bodyBytes: number): Row {
    const sorted = Float64Array.from(this.#times).sort();
    /** Returns a percentile by the nearest-rank method, so the result is the time of an actual step. */
    const percentile = (percent: number): number | null => sorted[Math.max(Math.ceil((sorted.length * percent) / 100) - 1, 0)] ?? null;
    const steps = sorted.length;
    return {
      elements,
      connections,
      seconds,
      steps,
      steps_per_second: steps / seconds,
      bytes_in_per_second: (steps * bodyBytes) / seconds,
      bytes_out_per_second: this.#bytes / seconds,
      p50_ms: percentile(50),
      p90_ms: percentile(90),
      p99_ms: percentile(99),
      refusals: this.#refusals,
      errors: Object.fromEntries(this.#errors),
    };
  }
}

const textOf = (rows: readonly Row[], optimizer: string, dtype: string): string => {
  const fixed = (value: number | null): string => (value === null ? "-" : value.toFixed(value < 10 ? 3 : 1));
  const head = ["elements", "connections", "steps", "steps/s", "MB/s in", "MB/s out", "p50 ms", "p90 ms", "p99 ms", "refused", "errors"];
  const cells = rows.map((row) => [
    countText(row.elements),
    String(row.connections),
    countText(row.steps),
    fixed(row.steps_per_second),
    fixed(row.bytes_in_per_second / 1e6),
    fixed(row.bytes_out_per_second / 1e6),
    ...[row.p50_ms, row.p90_ms, row.p99_ms].map(fixed),
    countText(row.refusals),
    countText(Object.values(row.errors).reduce((sum, count) => sum + count, 0)),
  ]);
  const errors = rows.flatMap(({ elements, errors }) =>
    Object.entries(errors).map(([name, count]) => `${countText(elements)} elements: ${name} ${countText(count)} times`),
  );
  return [`${optimizer}, ${dtype}`, "", formatTable(head, cells), ...(errors.length > 0 ? ["", ...errors] : [])].join("\n");
};

/** Creates a safetensors file of one tensor. Its values are the same in every run. Their magnitudes are 0.25 to 1, so none is subnormal. */
const tensorFile = (elements: number, dtype: string, seed: number): Parts => {
  const size = bytesOf(dtype) as number;
  const data = Buffer.allocUnsafeSlow(elements * size);
  for (let i = 0; i < elements; i++) {
    const bits = Math.imul(i + seed, 2654435761) >>> 9;
    writeElement(data, i * size, dtype, (0.25 + (bits / 2 ** 23) * 0.75) * ((bits & 1) === 1 ? -1 : 1));
  }
  return new Parts([writeHeader({}, [{ name: "w", dtype, shape: [elements] }]), data]);
};
