/** Calls stepd over MessagePack with `fetch`, so it runs in Node and in browsers alike. */
import { Packr, Unpackr } from "msgpackr";
import { StepdError, TransportError } from "./errors.ts";
import { State } from "./state.ts";
import { fileParts, type Tensor, type Tensors, toTensors } from "./tensors.ts";
import type {
  DescribeResult,
  ErrorData,
  InspectResult,
  ListResult,
  NormsResult,
  PlanParams,
  PlanResult,
  StepParams,
  StepResult as WireResult,
} from "./wire.gen.ts";

const MEDIA_TYPE = "application/vnd.msgpack";

export interface ClientOptions {
  /** Bearer token. */
  readonly token?: string;
  /** Milliseconds for a call with its reply. */
  readonly timeoutMs?: number;
  /** How often a call is sent again after 429, 503 or a lost connection. Steps are pure: sending again is safe. */
  readonly retries?: number;
  /** A fetch of one's own. */
  readonly fetch?: typeof fetch;
}

/** Everything of a step but its tensors, in the names of the wire. */
export type StepSettings = Omit<StepParams, "params" | "grads" | "state">;

export interface StepInput extends StepSettings {
  readonly params: Tensors;
  readonly grads: Tensors;
  /** The state of the last result; none at the first step. */
  readonly state?: State | null;
}

export interface StepResult extends Omit<WireResult, "params" | "state"> {
  readonly params: Record<string, Tensor>;
  readonly state: State;
}

const DEFAULT_TIMEOUT_MS = 60_000;
const DEFAULT_RETRIES = 4;
const FIRST_BACKOFF_MS = 50;
const MAX_BACKOFF_MS = 5_000;
const RETRIED = [429, 503];

const packr = new Packr({ useRecords: false });
const unpackr = new Unpackr({ useRecords: false, mapsAsObjects: true });

/** Bytes in parts that stand for one bin value. */
class Bin {
  readonly parts: readonly Uint8Array<ArrayBuffer>[];
  constructor(parts: readonly Uint8Array<ArrayBuffer>[]) {
    this.parts = parts;
  }
}

export class Client {
  readonly #url: string;
  readonly #options: ClientOptions;

  /** `url` is the server's root, such as http://127.0.0.1:8080. */
  constructor(url: string, options: ClientOptions = {}) {
    this.#url = url.replace(/\/$/, "");
    this.#options = options;
  }

  /** One update. Throws StepdError and TransportError; then nothing was changed and `params` and `state` are as they were. */
  async step({ params, grads, state = null, ...settings }: StepInput): Promise<StepResult> {
    const {
      params: stepped,
      state: bytes,
      ...rest
    } = await this.#call<WireResult>("/v1/step", {
      ...settings,
      params: new Bin(fileParts(params)),
      grads: new Bin(fileParts(grads)),
      state: state && new Bin([state.bytes as Uint8Array<ArrayBuffer>]),
    });
    return { ...rest, params: toTensors(stepped as Uint8Array), state: new State(bytes as Uint8Array) };
  }

  /** The state before the first step. */
  async init({ optimizer, groups, params, master_weights }: Pick<StepInput, "optimizer" | "groups" | "params" | "master_weights">): Promise<State> {
    const { state } = await this.#call<{ state: Uint8Array }>("/v1/init", { optimizer, groups, master_weights, params: new Bin(fileParts(params)) });
    return new State(state);
  }

  /** Sums of squares by tensor: phase one of exact clipping over several calls. */
  norms({ grads, params, loss_scale }: Pick<StepInput, "grads" | "loss_scale"> & { readonly params?: Tensors }): Promise<NormsResult> {
    return this.#call("/v1/norms", { loss_scale, grads: new Bin(fileParts(grads)), ...(params && { params: new Bin(fileParts(params)) }) });
  }

  /** What a step would cost. */
  plan(params: PlanParams): Promise<PlanResult> {
    return this.#call("/v1/plan", params);
  }

  /** What a state holds, by the server's reading. */
  inspect(state: State): Promise<InspectResult> {
    return this.#call("/v1/state/inspect", { state: new Bin([state.bytes as Uint8Array<ArrayBuffer>]) });
  }

  optimizers(): Promise<ListResult> {
    return this.#call("/v1/optimizers");
  }

  describe(name: string): Promise<DescribeResult> {
    return this.#call(`/v1/optimizers/${encodeURIComponent(name)}`);
  }

  /** Whether the server takes calls. */
  async isReady(): Promise<boolean> {
    try {
      const { fetch: send = fetch } = this.#options;
      return (await send(`${this.#url}/health/ready`)).ok;
    } catch {
      return false;
    }
  }

  async #call<Result>(path: string, params?: object): Promise<Result> {
    const body = params && new Blob([...encode(params)]);
    const { retries = DEFAULT_RETRIES } = this.#options;
    for (let attempt = 0; ; attempt++) {
      try {
        return await this.#send<Result>(path, body);
      } catch (error) {
        const isPassing = error instanceof TransportError || (error instanceof StepdError && RETRIED.includes(error.status));
        if (!isPassing || attempt >= retries) throw error;
        await pause(attempt, error instanceof StepdError ? error.retryAfter : undefined);
      }
    }
  }

  async #send<Result>(path: string, body: Blob | undefined): Promise<Result> {
    const { token, timeoutMs = DEFAULT_TIMEOUT_MS, fetch: send = fetch } = this.#options;
    let response: Response;
    let bytes: Uint8Array;
    try {
      response = await send(`${this.#url}${path}`, {
        method: body ? "POST" : "GET",
        headers: { Accept: MEDIA_TYPE, ...(body && { "Content-Type": MEDIA_TYPE }), ...(token !== undefined && { Authorization: `Bearer ${token}` }) },
        ...(body && { body }),
        signal: AbortSignal.timeout(timeoutMs),
      });
      bytes = new Uint8Array(await response.arrayBuffer());
    } catch (error) {
      throw new TransportError(`stepd at ${this.#url} was not reached: ${(error as Error).message}`, { cause: error });
    }
    if (response.ok) return unpackr.unpack(bytes) as Result;
    throw problemOf(response, bytes);
  }
}

/** The error of a problem body (RFC 9457); a proxy's own reply has none. */
const problemOf = (response: Response, bytes: Uint8Array): Error => {
  try {
    const { detail, code, ...data } = JSON.parse(new TextDecoder().decode(bytes)) as ErrorData & { detail: string; code: number };
    return new StepdError(detail, code, response.status, data);
  } catch {
    return new TransportError(`the reply is none of stepd: HTTP ${response.status}`);
  }
};

/** Waits longer each time, with jitter, or as long as the server says. */
const pause = (attempt: number, retryAfter: number | undefined): Promise<void> => {
  const backoff = Math.min(FIRST_BACKOFF_MS * 2 ** attempt, MAX_BACKOFF_MS) * (0.5 + Math.random() / 2);
  return new Promise((resolve) => setTimeout(resolve, retryAfter === undefined ? backoff : retryAfter * 1000));
};

/** The MessagePack bytes of a map in parts, blobs as they are. */
function* encode(params: object): Generator<Uint8Array<ArrayBuffer>> {
  const entries = Object.entries(params).filter(([, value]) => value !== undefined);
  yield header(0xdf, entries.length);
  for (const [key, value] of entries) {
    yield Uint8Array.from(packr.pack(key));
    if (value instanceof Bin) {
      yield header(
        0xc6,
        value.parts.reduce((sum, { length }) => sum + length, 0),
      );
      yield* value.parts;
    } else yield Uint8Array.from(packr.pack(value));
  }
}

/** A type byte and a length of four bytes. */
const header = (type: number, length: number): Uint8Array<ArrayBuffer> => {
  const bytes = new Uint8Array(5);
  bytes[0] = type;
  new DataView(bytes.buffer).setUint32(1, length);
  return bytes;
};
