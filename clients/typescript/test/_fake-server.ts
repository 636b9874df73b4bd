/** Runs a server whose replies stepd would never send. */
import { once } from "node:events";
import { createServer, type RequestListener } from "node:http";
import type { AddressInfo } from "node:net";

export const MSGPACK = "application/vnd.msgpack";

export class FakeServer implements AsyncDisposable {
  /** The number of calls received. */
  calls = 0;
  readonly #server = createServer((req, res) => {
    this.calls++;
    this.#answer(req, res);
  });
  readonly #answer: RequestListener;

  private constructor(answer: RequestListener) {
    this.#answer = answer;
  }

  static async start(answer: RequestListener): Promise<FakeServer> {
    const fake = new FakeServer(answer);
    fake.#server.listen(0, "127.0.0.1");
    await once(fake.#server, "listening");
    return fake;
  }

  static replying(body: Uint8Array | string, status = 200, headers: Readonly<Record<string, string>> = { "Content-Type": MSGPACK }): Promise<FakeServer> {
    return FakeServer.start((_, res) => void res.writeHead(status, headers).end(body));
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections();
    this.#server.close();
    await once(this.#server, "close");
  }
}
