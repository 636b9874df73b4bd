/**
 * A machine that runs the pool's own code one access to shared memory at a time: a main thread with its event loop, worker threads that
 * can die at any access, and Atomics that let the test choose who continues. Plain code between two accesses runs at once.
 */
import { hash } from "node:crypto";
import { StepdError } from "../../src/errors/errors.ts";
import { coroutines, type Fault, type Steps } from "./_coroutines.ts";

/** What the main thread does: jobs one after the other. */
export interface Scenario {
  readonly workers: number;
  readonly jobs: readonly { readonly shards: number; readonly isRepeatable: boolean }[];
  /** The number of workers that may die, each at any access. */
  readonly deaths: number;
}

interface Worker {
  steps: Steps;
  /** The results of the accesses since the worker last slept. Its local variables follow from them. */
  history: unknown[];
  /** The place in shared memory that wakes the worker. */
  sleepsAt?: string | undefined;
  onExit: () => Steps;
}

/** What a task of the main thread waits for. */
interface Wait {
  readonly at: string;
  isDone: boolean;
}

interface WorkerData {
  readonly control: Int32Array;
  readonly index: number;
}

interface PoolSteps {
  begin(index: number): Steps;
  work(job: number, states: Int32Array, units: readonly unknown[]): Steps;
}

type Atomic = (array: Int32Array, index: number, value?: number) => unknown;

/** A job's words take its first half, and the states of its shards the second. */
const JOB_BYTES = 64;

const IMPORTS = ["Atomics", "Worker", "pause", "runShard", "StepdError", "unitOf"] as const;

/** The pool's code, for machines that run one after the other. */
export interface Program {
  readonly pool: new (arena: unknown, module: undefined, workers: number, options: unknown) => PoolSteps;
  worker(data: unknown): Steps;
  /** The machine that the code runs on. */
  machine: Machine;
}

/** Compiles the pool's sources, with faults if a test plants some. */
export const compile = (...faults: readonly Fault[]): Program => {
  const open = "class Pool { *begin(index) { return yield* this.#spawn(index); } *work(...job) { yield* this.#runOnWorkers(...job); }";
  const unused =
    "const supportsWideVectors = 0, THREAD_SCRATCH_BYTES = 0, kernelNames = () => [], instantiate = () => [], scratchIn = () => undefined, parentPort = undefined;";
  const body = [
    `"use strict"; ${unused} class JobQueue {}`,
    coroutines("_control.ts", faults),
    coroutines("pool.ts", faults).replace(/class Pool\s*\{/, open),
    `return { pool: Pool, *worker(workerData) { ${coroutines("worker.ts", faults)} } };`,
  ].join("\n");
  class ThreadOfTest {
    readonly #index: number;
    constructor(_: URL, { workerData }: { workerData: WorkerData }) {
      this.#index = workerData.index;
      program.machine.addWorker(workerData, program.worker(workerData));
    }
    once(event: string, listener: () => Steps): void {
      if (event === "exit") program.machine.onExit(this.#index, listener);
    }
    on(): void {}
    unref(): void {}
  }
  const imports: Readonly<Record<(typeof IMPORTS)[number], unknown>> = {
    Atomics: atomicsOf(() => program.machine),
    Worker: ThreadOfTest,
    *pause(value: unknown): Steps {
      yield value;
      program.machine.remember("awaited");
      return value;
    },
    runShard: (words: Float64Array, shard: number) => program.machine.runShard(words.byteOffset / JOB_BYTES, shard),
    StepdError,
    unitOf: (units: readonly unknown[]) => units[0],
  };
  const program = new Function(...IMPORTS, body)(...IMPORTS.map((name) => imports[name])) as Program;
  return program;
};

/** Atomics whose every access waits for its turn. */
const atomicsOf = (machineOf: () => Machine): Readonly<Record<string, (...of: Parameters<Atomic>) => Steps>> => {
  const access = (run: Atomic) =>
    function* (array: Int32Array, index: number, value?: number): Steps {
      yield undefined;
      const machine = machineOf();
      machine.checkAccess(array);
      const result = run(array, index, value);
      machine.remember(result);
      return result;
    };
  return {
    load: access((array, index) => array[index]),
    store: access((array, index, value) => {
      array[index] = value as number;
    }),
    add: access((array, index, value) => {
      const before = array[index] as number;
      array[index] = before + (value as number);
      return before;
    }),
    notify: access((array, index) => machineOf().wake(array, index)),
    waitAsync: access((array, index, value) => ({ value: array[index] === value ? machineOf().waitAt(array, index) : "not-equal" })),
    *wait(array, index, value) {
      yield undefined;
      if (!machineOf().sleep(array, index, value)) return "not-equal";
      yield undefined;
      return "ok";
    },
  };
};

/** One run of a scenario. `choices` says who can continue; `take` lets one continue to its next access. */
export class Machine {
  readonly #scenario: Scenario;
  readonly #memory = { buffer: new SharedArrayBuffer(4 * JOB_BYTES) };
  readonly #workers: (Worker | undefined)[] = [];
  readonly #pool: PoolSteps;
  #control: Int32Array = new Int32Array(0);
  /** The task that the main thread runs. Others wait in `#parked`. */
  #active: Steps | undefined;
  #parked: { readonly steps: Steps; readonly wait: Wait | undefined }[] = [];
  #events: { readonly name: string; readonly run: () => Steps }[] = [];
  #history: unknown[] = [];
  #deaths: number;
  /** The thread whose access runs: a worker's index, or "main". */
  #running: number | "main" = "main";
  /** The jobs whose lease lives, and how often each of their shards began and ended. */
  readonly #live = new Set<number>();
  readonly #began: number[][];
  readonly #ended: number[][];
  /** What is wrong with the run so far. */
  violation: string | undefined;
  outcomes: string[] = [];

  constructor(scenario: Scenario, program: Program) {
    this.#scenario = scenario;
    this.#deaths = scenario.deaths;
    this.#began = scenario.jobs.map(({ shards }) => new Array(shards).fill(0));
    this.#ended = scenario.jobs.map(({ shards }) => new Array(shards).fill(0));
    program.machine = this;
    this.#pool = new program.pool({ memory: this.#memory, reserved: 0 }, undefined, scenario.workers, { onWorkerLost: () => {} });
    for (let index = 0; index < scenario.workers; index++) for (const start = this.#pool.begin(index); !start.next().done; );
    this.#history = [];
    this.#active = this.#runJobs();
    this.#advanceMain();
  }

  /** Adds a worker, which runs to its first access. */
  addWorker({ control, index }: WorkerData, steps: Steps): void {
    this.#control = control;
    this.#workers[index] = { steps, history: [], onExit: function* () {} };
    this.#advance(steps, index);
  }

  onExit(index: number, listener: () => Steps): void {
    (this.#workers[index] as Worker).onExit = listener;
  }

  /** The main thread's work. A job's lease ends with it. */
  *#runJobs(): Steps<void> {
    for (const [job, { shards, isRepeatable }] of this.#scenario.jobs.entries()) {
      const states = new Int32Array(this.#memory.buffer, job * JOB_BYTES + JOB_BYTES / 2, shards);
      this.#live.add(job);
      let outcome = "done";
      try {
        yield* this.#pool.work((job * JOB_BYTES) / Float64Array.BYTES_PER_ELEMENT, states, [{ isRepeatable }]);
        this.#requireComplete(job, isRepeatable);
      } catch (error) {
        if (!(error instanceof StepdError)) throw error;
        outcome = error.code;
        if (this.#deaths === this.#scenario.deaths || isRepeatable) this.#fail(`job ${job} ended with ${outcome} for no reason`);
      }
      this.outcomes.push(outcome);
      this.#live.delete(job);
      this.#history = [job, outcome];
    }
  }

  #requireComplete(job: number, isRepeatable: boolean): void {
    const ended = this.#ended[job] as number[];
    const began = this.#began[job] as number[];
    for (const [shard, times] of ended.entries()) {
      if (times === 0) this.#fail(`job ${job} succeeded without shard ${shard}`);
      if (began[shard] !== 1 && !(isRepeatable && (began[shard] as number) <= 1 + this.#scenario.deaths - this.#deaths))
        this.#fail(`shard ${shard} of job ${job} ran ${began[shard]} times`);
    }
  }

  #fail(sentence: string): void {
    this.violation ??= sentence;
  }

  *runShard(job: number, shard: number): Steps<void> {
    yield undefined;
    this.#count(this.#began, job, shard);
    this.remember("began");
    yield undefined;
    this.#count(this.#ended, job, shard);
    this.remember("ended");
  }

  #count(counts: readonly number[][], job: number, shard: number): void {
    this.#requireLive(job);
    const times = counts[job]?.[shard];
    if (times === undefined) this.#fail(`a worker runs shard ${shard}, which is outside of job ${job}`);
    else (counts[job] as number[])[shard] = times + 1;
  }

  #requireLive(job: number): void {
    if (!this.#live.has(job)) this.#fail(`a worker uses the lease of job ${job} after its end`);
  }

  remember(result: unknown): void {
    (this.#running === "main" ? this.#history : (this.#workers[this.#running] as Worker).history).push(result);
  }

  #placeOf(array: Int32Array, index: number): string {
    return `${array.buffer === this.#memory.buffer ? "arena" : "control"} ${array.byteOffset + 4 * index}`;
  }

  /** Fails the run if a worker accesses the memory of a job that has ended. */
  checkAccess(array: Int32Array): void {
    if (array.buffer === this.#memory.buffer && this.#running !== "main") this.#requireLive(Math.floor(array.byteOffset / JOB_BYTES));
  }

  wake(array: Int32Array, index: number): void {
    const place = this.#placeOf(array, index);
    for (const worker of this.#workers) if (worker?.sleepsAt === place) worker.sleepsAt = undefined;
    for (const { wait } of this.#parked) if (wait?.at === place) wait.isDone = true;
  }

  waitAt(array: Int32Array, index: number): Wait {
    return { at: this.#placeOf(array, index), isDone: false };
  }

  /** Lets the running worker sleep if the value has not changed. */
  sleep(array: Int32Array, index: number, value: number | undefined): boolean {
    const worker = this.#workers[this.#running as number] as Worker;
    worker.history = [value];
    if (array[index] !== value) return false;
    worker.sleepsAt = this.#placeOf(array, index);
    return true;
  }

  /** Runs a thread to its next access, and returns what it yields there; undefined too at its end. */
  #advance(steps: Steps, thread: number | "main"): IteratorResult<unknown, unknown> {
    const before = this.#running;
    this.#running = thread;
    try {
      return steps.next();
    } finally {
      this.#running = before;
    }
  }

  #advanceMain(): void {
    const steps = this.#active as Steps;
    const { done, value } = this.#advance(steps, "main");
    if (done) this.#active = undefined;
    else if (value !== undefined) {
      // The task waits, and the event loop runs others.
      this.#active = undefined;
      this.#parked.push({ steps, wait: typeof value === "object" && value !== null && "at" in value ? (value as Wait) : undefined });
    }
  }

  /** Returns the threads and events that can continue. Workers that only could die are no progress. */
  get choices(): readonly string[] {
    const choices: string[] = [];
    if (this.#active) choices.push("main");
    else {
      for (const [at, { wait }] of this.#parked.entries()) if (wait?.isDone !== false) choices.push(`resume ${at}`);
      for (const at of this.#events.keys()) choices.push(`event ${at}`);
    }
    for (const [index, worker] of this.#workers.entries()) if (worker && worker.sleepsAt === undefined) choices.push(`worker ${index}`);
    if (choices.length === 0) {
      if (this.outcomes.length < this.#scenario.jobs.length) this.#fail(`everyone sleeps during job ${this.outcomes.length}`);
      return [];
    }
    if (this.#deaths > 0) for (const [index, worker] of this.#workers.entries()) if (worker) choices.push(`death ${index}`);
    return choices;
  }

  take(choice: string): void {
    const [kind, at] = choice.split(" ");
    const index = Number(at);
    if (kind === "worker") this.#advance((this.#workers[index] as Worker).steps, index);
    else if (kind === "death") {
      const { onExit } = this.#workers[index] as Worker;
      this.#workers[index] = undefined;
      this.#deaths--;
      this.#events.push({ name: choice, run: onExit });
    } else {
      if (kind === "resume") this.#active = this.#parked.splice(index, 1)[0]?.steps;
      if (kind === "event") this.#active = this.#events.splice(index, 1)[0]?.run();
      if (kind !== "main") this.#history.push(choice);
      this.#advanceMain();
    }
  }

  /** A digest of everything that decides how the run can continue, and whether it is right. */
  get state(): string {
    const workers = this.#workers.map((worker) => worker && [worker.sleepsAt, worker.history]);
    const main = [this.#active !== undefined, this.#parked.map(({ wait }) => wait), this.#events.map(({ name }) => name), this.#history];
    const memory = [Array.from(this.#control), Array.from(new Int32Array(this.#memory.buffer))];
    return hash("md5", JSON.stringify([memory, workers, main, this.#deaths, [...this.#live], this.#began, this.#ended]), "base64");
  }
}

/** The outcome of an exploration. */
export interface Found {
  readonly states: number;
  /** The jobs' outcomes at the ends of runs. */
  readonly outcomes: ReadonlySet<string>;
  readonly violation?: { readonly sentence: string; readonly choices: readonly string[] };
}

/** Takes every choice in every state, until a violation or until no new state is left. */
export const explore = (scenario: Scenario, program: Program): Found => {
  const seen = new Set<string>();
  const outcomes = new Set<string>();
  const path: { readonly choices: readonly string[]; at: number }[] = [];
  do {
    const machine = new Machine(scenario, program);
    for (const { choices, at } of path) machine.take(choices[at] as string);
    while (machine.violation === undefined) {
      const { state } = machine;
      if (seen.has(state)) break;
      seen.add(state);
      const { choices } = machine;
      if (choices.length === 0) {
        if (machine.violation === undefined) outcomes.add(machine.outcomes.join(", "));
        break;
      }
      path.push({ choices, at: 0 });
      machine.take(choices[0] as string);
    }
    if (machine.violation !== undefined)
      return { states: seen.size, outcomes, violation: { sentence: machine.violation, choices: path.map(({ choices, at }) => choices[at] as string) } };
    for (let last = path.at(-1); last && ++last.at === last.choices.length; last = path.at(-1)) path.pop();
  } while (path.length > 0);
  return { states: seen.size, outcomes };
};
