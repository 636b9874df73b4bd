/** Tests the coordinator in Go: workers send deltas, the process is killed, and Go and Python go on to the same bytes. */
import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { goCoordinator } from "../support/go.ts";
import { runPython } from "../support/python.ts";
import { TestService } from "../support/service.ts";
import { randomTensors, readFile, writeTensors } from "../support/tensors.ts";

const SHAPES = { "layer.weight": [30, 40], "layer.bias": [30] };
const WORKERS = ["a", "b", "c"];

const folder = mkdtempSync(join(os.tmpdir(), "stepd-go-coordinator-"));
const at = (name: string): string => join(folder, name);

let service: TestService;
let program = "";
before(async () => {
  [service, program] = await Promise.all([TestService.start(), goCoordinator()]);
  writeFileSync(at("start.safetensors"), writeTensors(randomTensors(SHAPES, 1)));
});
after(async () => {
  await service[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true });
});

/** A running coordinator. */
class Coordinator implements AsyncDisposable {
  readonly #child: ChildProcess;
  readonly url: string;

  private constructor(child: ChildProcess, url: string) {
    this.#child = child;
    this.url = url;
  }

  static async start(run: string): Promise<Coordinator> {
    const settings = ["-url", service.url, "-listen", "127.0.0.1:0", "-folder", at(run), "-start", at("start.safetensors"), "-workers", `${WORKERS.length}`];
    const child = spawn(program, settings, { stdio: ["ignore", "ignore", "pipe"] });
    let log = "";
    for (;;) {
      const [chunk] = (await Promise.race([once(child.stderr, "data"), once(child, "exit")])) as [Buffer | number | null];
      if (!(chunk instanceof Buffer)) throw new Error(`the coordinator ended: ${log}`);
      log += chunk.toString();
      const url = /listening on (\S+)/.exec(log)?.[1];
      if (url !== undefined) return new Coordinator(child, url);
    }
  }

  async params(): Promise<{ readonly round: number; readonly file: Buffer }> {
    const response = await fetch(`${this.url}/params`);
    return { round: Number(response.headers.get("round")), file: Buffer.from(await response.arrayBuffer()) };
  }

  send(worker: string, round: number): Promise<Response> {
    const query = new URLSearchParams({ worker, round: `${round}`, weight: `${1 + WORKERS.indexOf(worker)}` });
    return fetch(`${this.url}/updates?${query}`, { method: "POST", body: new Uint8Array(deltasOf(worker, round)) });
  }

  /** Sends the updates of a round in the given order. */
  async round(round: number, workers: readonly string[]): Promise<void> {
    const replies = await Promise.all(workers.map((worker) => this.send(worker, round)));
    for (const reply of replies) assert.equal(reply.status, 200, await reply.text());
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#child.exitCode !== null) return;
    this.#child.kill("SIGKILL");
    await once(this.#child, "exit");
  }
}

const deltasOf = (worker: string, round: number): Buffer => writeTensors(randomTensors(SHAPES, 100 * (round + 1) + WORKERS.indexOf(worker)));

const bytesOf = (file: Uint8Array): Record<string, string> =>
  Object.fromEntries([...readFile(file).entries].map(([name, { bytes }]) => [name, bytes.toString("hex")]));

test("a killed run goes on in Go and in Python to the bytes of a run in one piece", async () => {
  {
    await using whole = await Coordinator.start("whole");
    for (const round of [0, 1, 2]) await whole.round(round, WORKERS);
    assert.equal((await whole.params()).round, 3);
  }
  {
    await using first = await Coordinator.start("cut");
    assert.equal((await first.params()).round, 0);
    // The order of arrival has no influence.
    for (const round of [0, 1]) await first.round(round, [...WORKERS].reverse());
    assert.equal((await first.send("a", 0)).status, 409);
  }
  cpSync(at("cut"), at("python"), { recursive: true });
  {
    await using second = await Coordinator.start("cut");
    assert.equal((await second.params()).round, 2);
    await second.round(2, ["b", "a", "c"]);
  }
  const read = (run: string, name: string): Buffer => readFileSync(at(`${run}/round-3.${name}.safetensors`));
  assert.deepEqual(bytesOf(read("cut", "params")), bytesOf(read("whole", "params")));
  assert.deepEqual(read("cut", "state"), read("whole", "state"));

  for (const worker of WORKERS) writeFileSync(at(`${worker}.safetensors`), deltasOf(worker, 2));
  await runPython("test/python/resume_coordinator.py", service.url, at("python"), ...WORKERS.map((worker) => at(`${worker}.safetensors`)));
  assert.deepEqual(bytesOf(read("python", "params")), bytesOf(read("whole", "params")));
  assert.deepEqual(read("python", "state"), read("whole", "state"));
});

test("an update that cannot be used is refused, and the round goes on", async () => {
  await using coordinator = await Coordinator.start("refused");
  const post = (query: string, body: Buffer | string): Promise<Response> =>
    fetch(`${coordinator.url}/updates?${query}`, { method: "POST", body: body as BodyInit });
  const spoilt = { ...randomTensors(SHAPES, 1), "layer.bias": { shape: [30], data: new Float32Array(30).fill(Number.NaN) } };
  const refusals: readonly (readonly [query: string, body: Buffer | string, status: number, text: RegExp])[] = [
    ["worker=a&round=0", "", 400, /expected worker, round and weight/],
    ["worker=a&round=0&weight=1", "nonsense", 400, /./],
    ["worker=a&round=1&weight=1", deltasOf("a", 0), 409, /expected an update of round 0, found round "1"/],
    ["worker=a&round=0&weight=NaN", deltasOf("a", 0), 422, /updates\/0\/weight/],
    ["worker=a&round=0&weight=-1", deltasOf("a", 0), 422, /updates\/0\/weight/],
    ["worker=a&round=0&weight=1", writeTensors(spoilt), 422, /NaN or infinity in "layer.bias"/],
    ["worker=a&round=0&weight=1", writeTensors(randomTensors({ ...SHAPES, "layer.bias": [31] }, 1)), 422, /expected shape \[30\]/],
  ];
  for (const [query, body, status, text] of refusals) {
    const reply = await post(query, body);
    assert.deepEqual([query, reply.status], [query, status]);
    assert.match(await reply.text(), text);
  }
  await coordinator.round(0, WORKERS);
  assert.equal((await coordinator.params()).round, 1);
});

test("a round of weight 0 leaves the parameters as they are", async () => {
  await using coordinator = await Coordinator.start("weightless");
  const before = await coordinator.params();
  const send = async (worker: string): Promise<void> => {
    const body = new Uint8Array(deltasOf(worker, 0));
    assert.equal((await fetch(`${coordinator.url}/updates?worker=${worker}&round=0&weight=0`, { method: "POST", body })).status, 200);
  };
  await Promise.all(WORKERS.map(send));
  assert.deepEqual(await coordinator.params(), { ...before, round: 1 });
});
