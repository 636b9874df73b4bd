/**
 * Compares a step that names its tensors, in the shared folder or in the cache, with a step that sends its tensors over TCP.
 */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { Unpackr } from "msgpackr";
import { type Request, stepBlobs, stepRequest } from "./bodies.ts";
import { RawClient } from "./client.ts";
import { Folder, Server } from "./processes.ts";
import { type Contender, legend, msText, type Ratio, type Report, race, ratioOf, repeatedContender, type Setup, sizeName } from "./rounds.ts";

const GAP_MS = 100;

const SIZES = [
  { elements: 2 ** 20, repetitions: 5 },
  { elements: 2 ** 24, repetitions: 2, sharedGoal: 0.5 },
];

/** The cache has room for the results of more than two steps of the largest size, and the arena has room for a step besides. */
const CACHE_MIB = "512";
const ARENA_MIB = "1280";

const SHARED_MEMORY = "/dev/shm";

interface Cached {
  readonly result: { readonly cached: Readonly<Record<"params" | "state", { readonly handle: string }>> };
}

export const benchTransport = async (setup: Setup): Promise<Report> => {
  using folder = new Folder(SHARED_MEMORY);
  await using stack = new AsyncDisposableStack();
  const server = stack.use(await Server.stepd({ STEPD_ARENA_MIB: ARENA_MIB, STEPD_SHARED_DIR: folder.path, STEPD_CACHE_MIB: CACHE_MIB }));
  const client = stack.use(await RawClient.connect(server.address));
  const rows: string[][] = [];
  const ratios: Ratio[] = [];
  for (const { elements, repetitions, sharedGoal } of SIZES) {
    const requests: Readonly<Record<string, Request>> = {
      TCP: stepRequest(elements),
      "shared memory": stepRequest(elements, shareStep(folder.path, elements)),
      "cache, state stays": stepRequest(elements, { ...(await cacheResults(client, elements)), reply: { state: "none", cache: true } }),
    };
    const contenders: readonly Contender[] = Object.entries(requests).map(([name, { head, body }]) =>
      repeatedContender(name, repetitions, () => client.request(head, body)),
    );
    const figuresOf = await race(`transport, ${sizeName(elements)}`, contenders, GAP_MS, setup);
    for (const [name, { head, body }] of Object.entries(requests)) {
      const bytes = `${megabytes(body.length)} + ${megabytes(await client.request(head, body))}`;
      if (name === "TCP") {
        rows.push([sizeName(elements), name, "", "", msText(figuresOf(name)), bytes]);
        continue;
      }
      const result = ratioOf(
        `step of ${sizeName(elements)}, ${name} / TCP`,
        figuresOf(name),
        figuresOf("TCP"),
        name === "shared memory" ? sharedGoal : undefined,
      );
      ratios.push(result);
      rows.push([sizeName(elements), name, result.median.toFixed(2), result.min.toFixed(2), msText(figuresOf(name)), bytes]);
    }
  }
  return {
    title: "Tensors in the shared folder or the cache",
    figures: legend(setup.rounds),
    head: ["parameters", "", "/ TCP", "of minima", "ms", "MB up + down"],
    rows,
    ratios,
  };
};

const megabytes = (bytes: number): string => (bytes / 1e6).toFixed(bytes < 1e5 ? 4 : 2);

/**
 * Writes a step's blobs to files. Returns the call's fields, which name these files and other files for the results. So every run
 * starts from the same bytes.
 */
const shareStep = (folder: string, elements: number): Readonly<Record<string, unknown>> => {
  const { params, grads, state } = stepBlobs(elements);
  let files = 0;
  const place = (blob: Buffer) => {
    const file = `step-${elements}-${files++}`;
    writeFileSync(join(folder, file), blob);
    return { file, offset: 0, length: blob.length };
  };
  return { params: place(params), grads: place(grads), state: place(state), reply: { into: { params: place(params), state: place(state) } } };
};

/**
 * Makes the service cache the results of a step, and returns the handles that name them. Each step from these results releases the
 * step before, so the cache holds two results.
 */
const cacheResults = async (client: RawClient, elements: number): Promise<Readonly<Record<string, unknown>>> => {
  const { head, body } = stepRequest(elements, { reply: { params: "none", state: "none", cache: true } });
  const { result } = new Unpackr({ useRecords: false }).unpack(await client.read(head, body)) as Cached;
  return result.cached;
};
