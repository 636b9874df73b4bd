/** Calls stepd's methods over MessagePack with `fetch`, so it runs in Node and in browsers alike. */
import { Bin } from "./msgpack.ts";
import { State } from "./state.ts";
import { fileParts, type Tensor, type Tensors, toTensorsLike } from "./tensors.ts";
import { type CallOptions, type ClientOptions, Transport } from "./transport.ts";
import type {
  ConvertParams,
  DescribeResult,
  EvaluateParams,
  EvaluateResult,
  InspectResult,
  ListResult,
  NormsResult,
  PlanParams,
  PlanResult,
  StepParams,
  StepResult as WireResult,
} from "./wire.gen.ts";

/** Everything of a step but its tensors, in the names of the wire. */
export type StepSettings = Omit<StepParams, "params" | "grads" | "state">;

export interface StepInput extends StepSettings {
  readonly params: Tensors;
  readonly grads: Tensors;
  /** The state of the last result, or the bytes of a stored one; none at the first step. */
  readonly state?: State | Uint8Array | null | undefined;
}

export interface StepResult extends Omit<WireResult, "params" | "state"> {
  readonly params: Record<string, Tensor>;
  readonly state: State;
}

export interface NormsInput extends Pick<StepInput, "grads" | "loss_scale"> {
  /** Their dtypes decide the arithmetic where they differ from the gradients'. */
  readonly params?: Tensors | undefined;
}

export interface ConvertInput extends Omit<ConvertParams, "state"> {
  /** A state, or a safetensors file in the convention `from`. */
  readonly state: State | Uint8Array;
}

/** A converted state. */
export interface Conversion {
  /** A safetensors file in the convention `to`; `new State(file)` where that is stepd's. */
  readonly file: Uint8Array<ArrayBuffer>;
  /** Sentences of what the file does not hold of the given state. */
  readonly lost: readonly string[];
}

/** What a server is. */
export interface ServerInfo {
  readonly name: string;
  readonly version: string;
  readonly node: string;
  readonly kernels: readonly string[];
  readonly workers: number;
  /** In bytes. */
  readonly limits: Readonly<Record<string, number>>;
}

export class Client {
  readonly #transport: Transport;

  /** `url` is the server's root, such as http://127.0.0.1:8080. */
  constructor(url: string, options: ClientOptions = {}) {
    this.#transport = new Transport(url, options);
  }

  get url(): string {
    return this.#transport.url;
  }

  /** One update. Throws StepdError and TransportError; then nothing was changed and `params` and `state` are as they were. */
  async step({ params, grads, state, ...settings }: StepInput, options?: CallOptions): Promise<StepResult> {
    const file = fileParts(params);
    const body = { ...settings, params: new Bin(file), grads: new Bin(fileParts(grads)), state: state ? blobOf(state) : null };
    const read = (reply: unknown): StepResult => {
      const { params: stepped, state: next, ...rest } = reply as WireResult;
      return { ...rest, params: toTensorsLike(params, file, bytesIn("params", stepped)), state: new State(bytesIn("state", next)) };
    };
    return this.#transport.call("/v1/step", body, read, options);
  }

  /** The state before the first step. */
  async init({ params, ...settings }: Pick<StepInput, "optimizer" | "groups" | "params" | "master_weights">, options?: CallOptions): Promise<State> {
    const read = (reply: unknown): State => new State(bytesIn("state", (reply as { state: unknown }).state));
    return this.#transport.call("/v1/init", { ...settings, params: new Bin(fileParts(params)) }, read, options);
  }

  /** Sums of squares by tensor: phase one of exact clipping over several calls. */
  async norms({ grads, params, loss_scale }: NormsInput, options?: CallOptions): Promise<NormsResult> {
    const body = { loss_scale, grads: new Bin(fileParts(grads)), params: params && new Bin(fileParts(params)) };
    return this.#transport.call("/v1/norms", body, readWith<NormsResult>("tensors"), options);
  }

  /** What a step would cost, from shapes and dtypes alone. */
  async plan(params: PlanParams, options?: CallOptions): Promise<PlanResult> {
    return this.#transport.call("/v1/plan", params, readWith<PlanResult>("fits"), options);
  }

  /** What a state holds, by the server's reading. */
  async inspect(state: State | Uint8Array, options?: CallOptions): Promise<InspectResult> {
    return this.#transport.call("/v1/state/inspect", { state: blobOf(state) }, readWith<InspectResult>("tensors"), options);
  }

  /** A state to or from the formats of torch, qhoptim and optax, under another optimizer of its family, or with more slots. */
  async convert({ state, ...settings }: ConvertInput, options?: CallOptions): Promise<Conversion> {
    const read = (reply: unknown): Conversion => {
      const { state: file, lost } = readWith<{ state: unknown; lost: string[] }>("lost")(reply);
      return { file: bytesIn("state", file), lost };
    };
    return this.#transport.call("/v1/state/convert", { ...settings, state: blobOf(state) }, read, options);
  }

  /** Learning rates, and momentums where they cycle, for `count` steps of a schedule after the first `from`. */
  async evaluateSchedule(params: EvaluateParams, options?: CallOptions): Promise<EvaluateResult> {
    return this.#transport.call("/v1/schedule", params, readWith<EvaluateResult>("lrs"), options);
  }

  /** The optimizers of the server with their formulas. */
  async optimizers(options?: CallOptions): Promise<ListResult["optimizers"]> {
    return (await this.#transport.call("/v1/optimizers", undefined, readWith<ListResult>("optimizers"), options)).optimizers;
  }

  /** Formula, references, hyperparameters, slots and cost of one optimizer. */
  async describe(name: string, options?: CallOptions): Promise<DescribeResult> {
    return this.#transport.call(`/v1/optimizers/${encodeURIComponent(name)}`, undefined, readWith<DescribeResult>("formula"), options);
  }

  /** Version, kernels, workers and limits of the server. */
  async info(options?: CallOptions): Promise<ServerInfo> {
    return this.#transport.call("/v1", undefined, readWith<ServerInfo>("limits"), options);
  }

  /** Whether the server takes calls; false also where it is not reached. Asks once. */
  isReady(options: CallOptions = {}): Promise<boolean> {
    return this.#transport.isOk("/health/ready", options);
  }
}

const blobOf = (state: State | Uint8Array): Bin => {
  const bytes = state instanceof State ? state.bytes : state;
  if (!(bytes instanceof Uint8Array)) throw new TypeError(`state: expected a State or the bytes of one, found ${typeof bytes}`);
  return new Bin([bytes as Uint8Array<ArrayBuffer>]);
};

const bytesIn = (name: string, value: unknown): Uint8Array<ArrayBuffer> => {
  if (value instanceof Uint8Array) return value as Uint8Array<ArrayBuffer>;
  throw new RangeError(`${name}: expected bytes, found ${typeof value}`);
};

/** Takes a reply for a result where it has the member that tells it from others. */
const readWith =
  <Result>(member: keyof Result & string) =>
  (reply: unknown): Result => {
    if (typeof reply === "object" && reply !== null && Object.hasOwn(reply, member)) return reply as Result;
    throw new RangeError(`expected an object with ${member}`);
  };
