/** A connection to the measured server. It sends a prepared request and returns its time and outcome. */
import http from "node:http";
import https from "node:https";
import { decodeMsgpack } from "../codec/msgpack.ts";
import { atOnce } from "../codec/turns.ts";
import { UsageError } from "./_command.ts";

/** The outcome of one call. */
export interface Outcome {
  readonly ms: number;
  readonly bytes: number;
  /** The name of the server's error, the HTTP status, or the code of a connection failure. Absent on success. */
  readonly error?: string;
  readonly detail?: string;
  /** The reply's Retry-After header, in seconds. */
  readonly retryAfter?: number;
}

export interface Target {
  /** The server's root URL, or unix:PATH. */
  readonly address: string;
  readonly token: string | undefined;
  /** The trusted certificate authorities in PEM. */
  readonly ca: Buffer | undefined;
  readonly cert: Buffer | undefined;
  readonly key: Buffer | undefined;
}

const UNIX = "unix:";
const PATH = "/v1/step";
const MSGPACK = "application/vnd.msgpack";

/** At most this many bytes of an error's body are kept. */
const MAX_ERROR_BYTES = 65536;

/** A call fails if no byte arrives for this time. */
const IDLE_TIMEOUT_MS = 300_000;

export class Connection implements Disposable {
  readonly #agent: http.Agent;
  readonly #request: typeof http.request;
  readonly #options: http.RequestOptions;

  /** Throws UsageError for an invalid address. */
  constructor({ address, token, ca, cert, key }: Target) {
    const isUnix = address.startsWith(UNIX);
    const url = URL.canParse(address) ? new URL(address) : undefined;
    if (!isUnix && url?.protocol !== "http:" && url?.protocol !== "https:")
      throw new UsageError(`URL: expected the server's root, such as http://127.0.0.1:8080 or unix:/run/stepd.sock, found ${JSON.stringify(address)}`);
    const isTls = url?.protocol === "https:";
    const agentOptions = { keepAlive: true, maxSockets: 1 };
    this.#agent = isTls ? new https.Agent({ ...agentOptions, ...(ca && { ca }), ...(cert && { cert }), ...(key && { key }) }) : new http.Agent(agentOptions);
    this.#request = isTls ? https.request : http.request;
    this.#options = {
      ...(isUnix ? { socketPath: address.slice(UNIX.length), host: "localhost" } : { host: url?.hostname.replace(/^\[|\]$/g, ""), port: url?.port }),
      path: isUnix ? PATH : `${url?.pathname.replace(/\/+$/, "")}${PATH}`,
      method: "POST",
      agent: this.#agent,
      timeout: IDLE_TIMEOUT_MS,
      headers: { "Content-Type": MSGPACK, Accept: MSGPACK, ...(token !== undefined && { Authorization: `Bearer ${token}` }) },
    };
  }

  /** Sends one step. Calls `onChunk` for each chunk of the reply. If aborted, throws the signal's reason. */
  step(body: Buffer, signal: AbortSignal, onChunk: (chunk: Buffer, at: number) => void): Promise<Outcome> {
    const start = performance.now();
    return new Promise((resolve, reject) => {
      const failed = (error: NodeJS.ErrnoException): void => {
        if (signal.aborted) reject(signal.reason);
        else resolve({ ms: performance.now() - start, bytes: 0, error: error.code ?? error.name, detail: error.message });
      };
      const request = this.#request({ ...this.#options, headers: { ...this.#options.headers, "Content-Length": body.length }, signal }, (response) => {
        const isOk = response.statusCode === 200;
        let bytes = 0;
        const problem: Buffer[] = [];
        response.on("data", (chunk: Buffer) => {
          if (isOk) onChunk(chunk, bytes);
          else if (bytes < MAX_ERROR_BYTES) problem.push(chunk);
          bytes += chunk.length;
        });
        response.on("error", failed);
        response.on("end", () => resolve({ ms: performance.now() - start, bytes, ...(!isOk && problemOf(response, Buffer.concat(problem))) }));
      });
      request.on("timeout", () => request.destroy(new Error(`no byte for ${IDLE_TIMEOUT_MS} ms`)));
      request.on("error", failed);
      request.end(body);
    });
  }

  [Symbol.dispose](): void {
    this.#agent.destroy();
  }
}

/** Reads the error of a problem body (RFC 9457) in MessagePack or JSON. If the reply comes from a proxy, returns only the HTTP status. */
const problemOf = ({ statusCode, headers }: http.IncomingMessage, body: Buffer): Pick<Outcome, "error" | "detail" | "retryAfter"> => {
  const asked = Number(headers["retry-after"] ?? Number.NaN);
  const retry = Number.isFinite(asked) ? { retryAfter: asked } : {};
  try {
    const isText = body[0] === 0x7b;
    const { name, detail } = (isText ? JSON.parse(body.toString()) : atOnce(decodeMsgpack(body))) as { name?: unknown; detail?: unknown };
    if (typeof name === "string" && typeof detail === "string") return { error: name, detail, ...retry };
  } catch {
    // The body is neither JSON nor MessagePack, so it is not a reply of stepd.
  }
  return { error: `HTTP ${statusCode}`, detail: "the reply is none of stepd", ...retry };
};
