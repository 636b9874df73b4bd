/**
 * Runs trainers in Python and Go with the real clients, installed as users install them, and computes the results that the
 * trainers must reach.
 */
import { type ChildProcess, execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { promisify } from "node:util";
import { containerTrainer } from "../support/go.ts";
import { TestService } from "../support/service.ts";
import { random, readTensors, writeTensors } from "../support/tensors.ts";
import "../support/python.ts";
import { root } from "../support/tree.ts";

const execute = promisify(execFile);

const here = import.meta.dirname;

/** The sizes of two tensors: one worker computes the small one, and all workers share the large one. */
const SIZES = { b: 7, w: 150_000 } as const;

type Values = Readonly<Record<string, Float32Array<ArrayBuffer>>>;

const startValues = (): Values => Object.fromEntries(Object.entries(SIZES).map(([name, size]) => [name, Float32Array.from({ length: size }, random(size))]));

/** Returns the same gradients as step.py and main.go. */
const gradient = (step: number, size: number): Float32Array<ArrayBuffer> =>
  Float32Array.from({ length: size }, (_, i) => (((i * 7 + step * 3) % 16) - 7.5) / 8);

const tensors = (values: Values): Buffer =>
  writeTensors(Object.fromEntries(Object.entries(values).map(([name, data]) => [name, { shape: [data.length], data }])));

/** The final parameters and state: bytes by file name. */
export type Outcome = ReadonlyMap<string, Buffer>;

/** A training run. Its files stay in a folder, from which each trainer continues. */
export class Run {
  readonly folder: string;

  constructor(parent: string, name: string) {
    this.folder = join(parent, name);
    mkdirSync(this.folder);
    for (const [tensor, data] of Object.entries(startValues())) writeFileSync(join(this.folder, `${tensor}.f32`), data);
  }

  get outcome(): Outcome {
    const files = [...Object.keys(SIZES).map((name) => `${name}.f32`), "state.safetensors"];
    return new Map(files.map((file) => [file, readFileSync(join(this.folder, file))]));
  }
}

/** Returns the expected outcome after `steps` steps, from a server of this tree, without a container or client library. */
export const outcomeHere = async (steps: number): Promise<Outcome> => {
  await using service = await TestService.start();
  let params: Uint8Array = tensors(startValues());
  let state: Uint8Array | null = null;
  for (let step = 0; step < steps; step++) {
    const grads = tensors(Object.fromEntries(Object.entries(SIZES).map(([name, size]) => [name, gradient(step, size)])));
    const call: unknown = { optimizer: { name: "adamw", lr: 0.01 }, params, grads, state };
    const reply = await service.call<{ readonly params: Uint8Array; readonly state: Uint8Array }>("optimizer.step", call);
    params = reply.params;
    state = reply.state;
  }
  const files = Object.entries(readTensors(params)).map(([name, { data }]) => [`${name}.f32`, Buffer.from(data.buffer)] as const);
  return new Map([...files, ["state.safetensors", Buffer.from(state ?? [])]]);
};

export interface Trainer {
  readonly language: string;
  readonly command: readonly string[];
}

/** Installs the Python client into a virtual environment, with its dependencies in the tested versions. */
const installPython = async (folder: string): Promise<Trainer> => {
  const home = join(folder, "python");
  await execute(process.env["PYTHON"] ?? "python3", ["-m", "venv", home]);
  const client = join(root, "clients/python");
  const python = join(home, "bin/python");
  await execute(python, ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--constraint", join(client, "requirements.txt"), client]);
  return { language: "Python", command: [python, join(here, "step.py")] };
};

const goTrainer = async (): Promise<Trainer> => ({ language: "Go", command: [await containerTrainer()] });

export const installTrainers = (folder: string): Promise<readonly [Trainer, Trainer]> => Promise.all([installPython(folder), goTrainer()]);

/** A running trainer process. */
export class Training {
  readonly #child: ChildProcess;
  /** The lines that the trainer prints: the number of each finished step. */
  readonly #steps: AsyncIterator<string>;
  readonly #exit: Promise<unknown[]>;
  readonly #errors: string[] = [];

  constructor({ command: [file = "", ...start] }: Trainer, url: string, [from, to]: readonly [number, number], run: Run) {
    const child = spawn(file, [...start, url, String(from), String(to), run.folder], { stdio: ["ignore", "pipe", "pipe"] });
    child.stderr.on("data", (chunk: Buffer) => this.#errors.push(chunk.toString()));
    this.#child = child;
    this.#steps = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
    this.#exit = once(child, "close");
  }

  /** Waits until the trainer has finished a step. */
  async reach(step: number): Promise<void> {
    for (;;) {
      const { value, done } = await this.#steps.next();
      if (done) return void (await this.finish());
      if (Number(value) >= step) return;
    }
  }

  get isOver(): boolean {
    return this.#child.exitCode !== null || this.#child.signalCode !== null;
  }

  /** Waits for the trainer's end and returns its last step. Throws if the trainer failed. */
  async finish(): Promise<number> {
    let last = 0;
    for (let line = await this.#steps.next(); !line.done; line = await this.#steps.next()) last = Number(line.value);
    const [code] = await this.#exit;
    if (code !== 0) throw new Error(`the trainer ended with ${code}: ${this.#errors.join("")}`);
    return last;
  }
}
