/** A raw HTTP/1.1 connection. The test decides when the connection sends and when it stops reading. */
import assert from "node:assert/strict";
import { once } from "node:events";
import net from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import { MSGPACK, pack, TestService, unpack } from "../support/service.ts";
import { readTensors, writeTensors } from "../support/tensors.ts";

export interface RawReply {
  readonly status: number;
  readonly headers: ReadonlyMap<string, string>;
  readonly body: Buffer;
}

export class RawClient implements Disposable {
  readonly socket: net.Socket;
  #received = Buffer.alloc(0);
  readonly #closed: Promise<unknown>;

  private constructor(socket: net.Socket) {
    this.socket = socket;
    socket.on("data", (chunk) => {
      this.#received = Buffer.concat([this.#received, chunk]);
    });
    socket.on("error", () => {}); // A reset is a valid result of some tests, so it is no error here.
    // events.once() would reject on a reset, so this promise waits for "close" alone.
    this.#closed = new Promise((resolve) => socket.once("close", resolve));
  }

  static async connect({ url }: Pick<TestService, "url">): Promise<RawClient> {
    const socket = url.startsWith("unix:") ? net.connect(url.slice("unix:".length)) : net.connect(Number(new URL(url).port), new URL(url).hostname);
    await once(socket, "connect");
    return new RawClient(socket);
  }

  send(data: string | Uint8Array): void {
    this.socket.write(data);
  }

  /** Sends the head of a POST request. */
  head(path: string, headers: Readonly<Record<string, string | number>>): void {
    const lines = Object.entries({ Host: "test", "Content-Type": MSGPACK, ...headers }).map(([name, value]) => `${name}: ${value}\r\n`);
    this.send(`POST ${path} HTTP/1.1\r\n${lines.join("")}\r\n`);
  }

  /** Sends one chunk of a body without a length. An empty chunk ends the body. */
  chunk(data: Uint8Array): void {
    this.send(Buffer.concat([Buffer.from(`${data.length.toString(16)}\r\n`), data, Buffer.from("\r\n")]));
  }

  /** Returns the next reply, or null if the connection ends first. */
  async reply(): Promise<RawReply | null> {
    for (;;) {
      const end = this.#received.indexOf("\r\n\r\n");
      if (end >= 0) {
        const [first = "", ...lines] = this.#received.toString("latin1", 0, end).split("\r\n");
        const headers = new Map(lines.map((line) => [line.slice(0, line.indexOf(":")).toLowerCase(), line.slice(line.indexOf(":") + 1).trim()]));
        const length = Number(headers.get("content-length") ?? 0);
        if (this.#received.length >= end + 4 + length) {
          const body = this.#received.subarray(end + 4, end + 4 + length);
          this.#received = this.#received.subarray(end + 4 + length);
          return { status: Number(first.split(" ")[1]), headers, body };
        }
      }
      const more = new Promise<boolean>((resolve) => this.socket.once("data", () => resolve(true)));
      const isOpen = await Promise.race([more, this.#closed.then(() => false)]);
      if (!isOpen && !this.#received.includes("\r\n\r\n")) return null;
    }
  }

  /** Waits until the server has closed the connection. */
  async closed(): Promise<void> {
    await this.#closed;
  }

  /** Sends a request head with Expect: 100-continue, and waits until the service has admitted the request. */
  async hold(length: number, path = "/v1/step", headers: Readonly<Record<string, string>> = {}): Promise<void> {
    this.head(path, { "Content-Length": length, Expect: "100-continue", ...headers });
    const reply = await this.reply();
    assert.equal(reply?.status, 100, reply?.body.toString("latin1"));
  }

  /** Calls hold(), then sends until the connection ends. The rate is high enough for the service to keep the body's memory. */
  async keep(length: number, path = "/v1/step", headers: Readonly<Record<string, string>> = {}): Promise<void> {
    await this.hold(length, path, headers);
    // The rate is four times the rate that the default request timeout of 300 s demands. The body stays incomplete.
    const piece = Buffer.alloc(Math.ceil(length / 1500));
    let left = length - 1;
    const timer = setInterval(() => {
      const part = piece.subarray(0, Math.min(left, piece.length));
      left -= part.length;
      if (part.length > 0) this.send(part);
    }, 50);
    this.socket.once("close", () => clearInterval(timer));
  }

  [Symbol.dispose](): void {
    this.socket.destroy();
  }
}

/** Polls a metric every 10 ms until `accepts` returns true for its value. Each poll is one HTTP call. */
export const untilMetric = async (service: TestService, metric: string, accepts: (value: number) => boolean): Promise<void> => {
  const deadline = performance.now() + 30_000;
  for (;;) {
    const value = await service.metric(metric);
    if (accepts(value)) return;
    assert.ok(performance.now() < deadline, `${metric} is still ${value}`);
    await delay(10);
  }
};

/** Waits until all leases are released and no call is in progress. */
export const untilEmpty = async (service: TestService): Promise<void> => {
  await untilMetric(service, "stepd_arena_used_bytes", (bytes) => bytes === 0);
  await untilMetric(service, "stepd_in_flight_requests", (calls) => calls === 0);
  await untilMetric(service, "stepd_in_flight_bytes", (bytes) => bytes === 0);
};

/** Returns a step of SGD with a known result: parameters `value`, gradients 1, lr 1. */
export const sgdParams = (elements: number, value: number, optimizer: object = { name: "sgd", lr: 1 }) => ({
  optimizer,
  params: writeTensors({ w: { shape: [elements], data: new Float32Array(elements).fill(value) } }),
  grads: writeTensors({ w: { shape: [elements], data: new Float32Array(elements).fill(1) } }),
});

export const sgdBody = (elements: number, value: number, optimizer?: object): Buffer => pack(sgdParams(elements, value, optimizer));

/** Starts a service with little memory. */
export const serveSmall = (env: Readonly<Record<string, string>> = {}) => TestService.start({ STEPD_ARENA_MIB: "16", STEPD_WORKERS: "2", ...env });

/** Asserts that the reply to a step of sgdParams has the expected number of elements and value. */
export const requireResult = (body: Uint8Array, elements: number, expected: number): void => {
  const data = readTensors((unpack(body) as { params: Uint8Array }).params)["w"]?.data;
  assert.deepEqual([data?.length, data?.every((value) => value === expected)], [elements, true]);
};

/** Asserts that the service holds no memory for calls, and that a step has the right result. */
export const requireHealthy = async (service: TestService): Promise<void> => {
  await untilEmpty(service);
  const { params } = await service.call<{ params: Uint8Array }>("optimizer.step", sgdParams(3, 5));
  requireResult(pack({ params }), 3, 4);
  await untilEmpty(service);
};
