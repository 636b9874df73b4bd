/** A minimal HTTP client: a raw socket that sends a prepared request and reads every reply into the same buffer. */
import net from "node:net";

/** The size of the read buffer. The operating system returns at most about this many bytes at once. */
const READ_BYTES = 2 ** 20;

/** A request fails if its reply is not complete after this time. */
const DEADLINE_MS = 60_000;

export class RawClient implements Disposable {
  readonly #socket: net.Socket;
  #onChunk: (chunk: Buffer) => void = () => {};
  #onError: (error: Error) => void = () => {};

  private constructor(target: net.NetConnectOpts) {
    const buffer = Buffer.allocUnsafeSlow(READ_BYTES);
    const onread: net.OnReadOpts = {
      buffer,
      callback: (bytes) => {
        this.#onChunk(buffer.subarray(0, bytes));
        return true;
      },
    };
    this.#socket = net.connect({ ...target, onread });
    this.#socket.setNoDelay(true);
    this.#socket.on("error", (error) => this.#onError(error));
    this.#socket.setTimeout(DEADLINE_MS, () => this.#onError(new Error(`no byte in either direction for ${DEADLINE_MS} ms`)));
    this.#socket.on("close", () => this.#onError(new Error("the server closed the connection")));
  }

  /** Connects to the address that a server printed. */
  static async connect(address: string): Promise<RawClient> {
    const target = address.startsWith("unix:") ? { path: address.slice("unix:".length) } : { host: "127.0.0.1", port: Number(new URL(address).port) };
    const client = new RawClient(target);
    await new Promise<void>((resolve, reject) => {
      client.#socket.once("connect", resolve);
      client.#socket.once("error", reject);
    });
    return client;
  }

  /** Sends a request as request() does, and returns the reply's body. */
  async read(head: Buffer, body: Buffer): Promise<Buffer> {
    const chunks: Buffer[] = [];
    const length = await this.request(head, body, (chunk) => chunks.push(Buffer.from(chunk)));
    return Buffer.concat(chunks).subarray(-length);
  }

  /** Sends a head and a body. Resolves with the length of the reply's body once the reply is complete. */
  request(head: Buffer, body: Buffer, onChunk: (chunk: Buffer) => void = () => {}): Promise<number> {
    return new Promise((resolve, reject) => {
      let header = "";
      let expected = -1;
      let received = 0;
      this.#onError = reject;
      this.#onChunk = (chunk) => {
        onChunk(chunk);
        received += chunk.length;
        if (expected < 0) {
          header += chunk.toString("latin1", 0, Math.min(chunk.length, 65536));
          const end = header.indexOf("\r\n\r\n");
          if (end < 0) return;
          if (!header.startsWith("HTTP/1.1 200 ")) reject(new Error(`the server said ${header.slice(0, 500)}`));
          expected = Number(/\r\ncontent-length: (\d+)/i.exec(header)?.[1]);
          received -= end + 4;
        }
        if (received === expected) resolve(expected);
        else if (received > expected) reject(new Error(`${received} bytes came, not ${expected}`));
      };
      this.#socket.cork();
      this.#socket.write(head);
      this.#socket.write(body);
      this.#socket.uncork();
    });
  }

  [Symbol.dispose](): void {
    this.#onError = () => {};
    this.#socket.destroy();
  }
}
