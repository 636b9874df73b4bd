/** Requests whose `reply` omits or rounds results, and requests that name a blob by handle or place instead of sending it. */
import { rawTensors } from "../support/tensors.ts";
import { type Ask, adamw, type Call, grads, nonFiniteGrads, params, type Request, recast, secondGrads } from "./_request.ts";

/** Tensors of three dtypes, wide dtypes first. All clients write tensors in this order. */
const mixed = Object.fromEntries(Object.entries(params).map(([name, tensor], index) => [name, { ...tensor, dtype: ["F32", "F16", "BF16"][index] }]));

/** First steps with a `reply`, on tensors by name. */
const replies: readonly (readonly [file: string, about: string, settings: Request["params"], server?: Request["server"]])[] = [
  ["reply-same", "all parts of the reply, requested explicitly", { reply: { params: "same", state: "same", cache: false } }],
  ["reply-bf16", "new parameters of each dtype rounded to BF16, with an unrounded state", { params: mixed, reply: { params: "bf16" } }],
  [
    "reply-bf16-ties",
    "rounding to nearest even: ties, subnormals, values beyond BF16's range, and non-finite values",
    {
      params: {
        w: {
          shape: [14],
          dtype: "F32",
          // The values are ties that round down to even and up to even, values beside a tie, the largest BF16, a tie with
          // infinity, the largest F32, and subnormals.
          values: [
            1 + 2 ** -8,
            1 + 3 * 2 ** -8,
            -1 - 2 ** -8,
            -1 - 3 * 2 ** -8,
            1 + 2 ** -8 + 2 ** -23,
            1 + 2 ** -8 - 2 ** -23,
            2 ** 128 - 2 ** 120,
            2 ** 128 - 2 ** 119,
            2 ** 104 - 2 ** 128,
            2 ** -134,
            3 * 2 ** -134,
            "Infinity",
            "-Infinity",
            "NaN",
          ],
        },
      },
      grads: {},
      reply: { params: "bf16" },
    },
  ],
  [
    "reply-bf16-master-weights",
    "F16 parameters rounded to BF16, beside their float32 copies",
    { params: recast(params, "F16"), master_weights: true, reply: { params: "bf16" } },
  ],
  [
    "reply-bf16-skip",
    "a skipped step also rounds its parameters",
    { params: { ...params, größe: { ...params.größe, values: [1.01171875] } }, grads: nonFiniteGrads, non_finite: "skip", reply: { params: "bf16" } },
  ],
  ["reply-none", "a reply without parameters, but with statistics", { stats: "global", reply: { params: "none" } }],
  ["reply-cache-bare", "a server without a cache keeps nothing, and reports no handles", { reply: { cache: true } }, "bare"],
  [
    "reply-none-bare",
    "parameters may be left out if the state has their float32 copies",
    { params: recast(params, "BF16"), master_weights: true, reply: { params: "none", cache: true } },
    "bare",
  ],
  // The server refuses these requests.
  ["error-reply-form", "an unknown form of parameters", { reply: { params: "f16" } }],
  ["error-reply-bf16-f64", "F64 parameters rounded to BF16", { params: { ...params, größe: { ...params.größe, dtype: "F64" } }, reply: { params: "bf16" } }],
  ["error-reply-state", "a state that would be lost", { reply: { state: "none" } }],
  ["error-reply-state-bare", "caching a state on a server without a cache", { reply: { state: "none", cache: true } }, "bare"],
  ["error-reply-params-bare", "caching parameters on a server without a cache", { reply: { params: "none", cache: true } }, "bare"],
  ["error-handle", "a handle that is too long", { params: { handle: "h".repeat(65) } }],
  ["error-missing-params", "parameters that the server does not have", { params: { handle: "nobody.params" } }],
  ["error-missing-state", "a state that the server does not have", { state: { handle: "nobody.state" } }],
];

type Tensors = Readonly<Record<string, { readonly dtype: string; readonly shape: readonly number[]; readonly values: readonly (number | string)[] }>>;

interface Place {
  readonly file: string;
  readonly offset: number;
  readonly length: number;
}

/** The initial content of the room for results. Bytes that no result uses keep this value. */
const FILLER = 0xa5;

/**
 * Lays out a file: its content in base64, and the places of its parts. A number reserves that many bytes. An unused byte
 * separates parts.
 */
const layOutFile = (
  file: string,
  ...parts: readonly (Uint8Array | number)[]
): { readonly files: Record<string, string>; readonly places: readonly Place[] } => {
  const gap = Buffer.alloc(1, FILLER);
  const bytes = parts.map((part) => (typeof part === "number" ? Buffer.alloc(part, FILLER) : part));
  let offset = 0;
  const places = bytes.map(({ length }) => {
    const place = { file, offset: offset + 1, length };
    offset += 1 + length;
    return place;
  });
  return { files: { [file]: Buffer.concat(bytes.flatMap((part) => [gap, part])).toString("base64") }, places };
};

/** Writes a file of F32 tensors as all clients do: sorted by name, with the header padded like a state's header. */
const fileOf = (tensors: Tensors): Buffer => {
  const inOrder = Object.entries(tensors).sort(([a], [b]) => Buffer.compare(Buffer.from(a), Buffer.from(b)));
  let end = 0;
  const entries = inOrder.map(([name, { dtype, shape, values }]) => {
    const start = end;
    end += 4 * values.length;
    return [name, { dtype, shape, data_offsets: [start, end] }];
  });
  const header = JSON.stringify(Object.fromEntries(entries));
  const padding = -Buffer.byteLength(header) & 7;
  const values = inOrder.flatMap(([, tensor]) => tensor.values.map(Number));
  return rawTensors(header + " ".repeat(padding), new Uint8Array(Float32Array.from(values).buffer));
};

const text = (bytes: Uint8Array): string => Buffer.from(bytes).toString("base64");

export async function* blobs(ask: Ask): AsyncGenerator<Request> {
  for (const [file, about, settings, server] of replies)
    yield {
      file: `step.${file}`,
      about,
      ...(server && { server }),
      method: "optimizer.step",
      params: { params, grads, optimizer: adamw, ...settings },
    };

  const call = (settings: Request["params"]): Call => ({ method: "optimizer.step", params: { optimizer: adamw, ...settings } });
  const bytesOf = async (settings: Request["params"]): Promise<{ readonly params: Buffer; readonly state: Buffer }> => {
    const { result } = await ask("optimizer.step", call(settings).params);
    return { params: Buffer.from(result?.["params"] as string, "base64"), state: Buffer.from(result?.["state"] as string, "base64") };
  };
  /** Names the result of a call of `before`; see _handles.ts. */
  const resultOf = (count: number): Request["params"] => ({ params: { handle: `$${count}.params` }, state: { handle: `$${count}.state` } });

  const start = { params: text(fileOf(params)), grads: text(fileOf(grads)) };
  const one = await bytesOf(start);
  const gradients = { grads: text(fileOf(secondGrads)) };
  const storing = { server: "storing" } as const;

  // The server caches results, and later calls name the results by handle.
  const first = call({ ...start, reply: { cache: true } });
  yield { file: "step.cached.1", about: "a step whose result is cached: its handles", ...storing, ...first };
  const cached = { ...storing, before: [first] };
  yield { file: "step.cached.2", about: "the second step, with parameters and state by handle", ...cached, ...call({ ...resultOf(1), ...gradients }) };
  yield {
    file: "step.cached-params",
    about: "parameters by handle, the state sent",
    ...cached,
    ...call({ ...resultOf(1), ...gradients, state: text(one.state) }),
  };
  yield {
    file: "step.cached-state",
    about: "the state by handle, parameters sent",
    ...cached,
    ...call({ ...resultOf(1), ...gradients, params: text(one.params) }),
  };
  yield {
    file: "step.cached-bf16",
    about: "a step by handle with a rounded reply: the cache keeps the unrounded parameters",
    ...cached,
    ...call({ ...resultOf(1), ...gradients, reply: { params: "bf16", cache: true } }),
  };
  const kept = call({ ...start, reply: { params: "bf16", state: "none", cache: true } });
  yield { file: "step.kept.1", about: "a state that stays on the server", ...storing, ...kept };
  const keptTwice = call({ ...resultOf(1), ...gradients, reply: { params: "none", state: "none", cache: true } });
  yield { file: "step.kept.2", about: "a step that returns only handles", ...storing, before: [kept], ...keptTwice };
  yield {
    file: "step.kept.3",
    about: "the third step of a cached run, with a full reply",
    ...storing,
    before: [kept, keptTwice],
    ...call({ ...resultOf(2), grads: start.grads }),
  };
  yield {
    file: "step.error-cached-kind",
    about: "the handle of a state in place of parameters",
    ...cached,
    ...call({ ...gradients, params: { handle: "$1.state" } }),
  };

  // The inputs are in files of the shared folder. A result overwrites an input, or goes to another place.
  const inPlace = layOutFile("run", one.params, fileOf(secondGrads), one.state);
  const [runParams, runGrads, runState] = inPlace.places;
  yield {
    file: "step.shared",
    about: "the second step in shared memory, which overwrites parameters and state in place",
    ...storing,
    files: inPlace.files,
    ...call({ params: runParams, grads: runGrads, state: runState }),
  };
  yield {
    file: "step.shared-gradients",
    about: "only gradients in shared memory",
    ...storing,
    files: inPlace.files,
    ...call({ params: text(one.params), grads: runGrads, state: text(one.state) }),
  };
  const source = layOutFile("run", fileOf(params), fileOf(grads));
  const target = layOutFile("next", one.params.length, one.state.length + 100);
  yield {
    file: "step.shared-into",
    about: "the first step from one file into another, with room for a state",
    ...storing,
    files: { ...source.files, ...target.files },
    ...call({ params: source.places[0], grads: source.places[1], reply: { into: { params: target.places[0], state: target.places[1] } } }),
  };
  const rounded = layOutFile("rounded", one.params.length + 64);
  yield {
    file: "step.shared-bf16",
    about: "rounded parameters in a separate place, unrounded ones unchanged, the state in place",
    ...storing,
    files: { ...inPlace.files, ...rounded.files },
    ...call({ params: runParams, grads: runGrads, state: runState, reply: { params: "bf16", into: { params: rounded.places[0] } } }),
  };
  yield {
    file: "step.shared-cached",
    about: "gradients in shared memory, parameters and state by handle, results into another file",
    ...cached,
    files: { ...inPlace.files, ...target.files },
    ...call({
      ...resultOf(1),
      grads: runGrads,
      reply: { cache: true, into: { params: target.places[0], state: target.places[1] } },
    }),
  };
  const nonFinite = layOutFile("run", fileOf(params), fileOf(nonFiniteGrads));
  yield {
    file: "step.error-shared",
    about: "a refused step in shared memory leaves the file unchanged",
    ...storing,
    files: nonFinite.files,
    ...call({ params: nonFinite.places[0], grads: nonFinite.places[1] }),
  };
  yield {
    file: "step.error-shared-bare",
    about: "shared memory on a server without a shared folder",
    server: "bare",
    files: { ...source.files, ...target.files },
    ...call({ params: source.places[0], grads: source.places[1], reply: { into: { params: target.places[0] } } }),
  };
  yield {
    file: "step.cached-unchanged",
    about: "a step without gradients returns a cached result",
    ...cached,
    ...call({ ...resultOf(1), grads: {} }),
  };
  const other = (method: string, file: string, about: string, params: Request["params"]): Request => ({
    file,
    about,
    ...storing,
    files: inPlace.files,
    method,
    params,
  });
  yield other("optimizer.init", "init.shared", "parameters in shared memory", { optimizer: adamw, params: runParams });
  yield other("optimizer.norms", "norms.shared", "gradients and parameters in shared memory", { grads: runGrads, params: runParams });
  yield other("state.inspect", "inspect.shared", "a state in shared memory", { state: runState });
  yield other("state.convert", "convert.shared", "a state in shared memory under another optimizer", { state: runState, optimizer: "adam" });
  yield {
    ...other("optimizer.init", "init.error-shared-bare", "shared memory on a server without a shared folder", { optimizer: adamw, params: runParams }),
    server: "bare",
  };
}
