/** Misbehaves as one caller: `node _attacker.ts KIND URL TOKEN`. Prints a line once it has begun, and runs until it is killed. */
import net from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import { zstdCompressSync } from "node:zlib";
import { sgdBody } from "../http/_client.ts";

const [kind = "", url = "", token = ""] = process.argv.slice(2);
const port = Number(new URL(url).port);

const head = (type: string, length: number, more = ""): string =>
  `POST /v1/step HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${token}\r\nContent-Type: ${type}\r\nContent-Length: ${length}\r\n${more}\r\n`;

/** Keeps one connection open for good. `use` begins with each new connection. */
const connect = async (use: (socket: net.Socket) => void): Promise<never> => {
  for (;;) {
    const socket = net.connect(port, "127.0.0.1");
    socket.on("error", () => {});
    use(socket);
    await new Promise((resolve) => socket.once("close", resolve));
    await delay(10);
  }
};

/** Announces 8 MiB and sends them just fast enough for the request timeout of 300 s. */
const trickle = (socket: net.Socket): void => {
  const length = 8 * 2 ** 20;
  socket.write(head("application/vnd.msgpack", length));
  const timer = setInterval(() => socket.write(Buffer.alloc(Math.ceil(length / 1000))), 250);
  socket.on("data", () => socket.destroy());
  socket.once("close", () => clearInterval(timer));
};

/** Sends the next request as soon as anything is answered. */
const repeat =
  (request: Buffer) =>
  (socket: net.Socket): void => {
    socket.write(request);
    socket.on("data", () => socket.write(request));
  };

const step = sgdBody(1000, 2);
const bomb = zstdCompressSync(Buffer.from(`{"optimizer":{"name":"sgd"},"params":{"w":{"shape":[1],"values":[${"1,".repeat(4 * 2 ** 20)}1]}}}`));

const attacks: Readonly<Record<string, { readonly connections: number; use(socket: net.Socket): void }>> = {
  trickle: { connections: 40, use: trickle },
  flood: { connections: 100, use: repeat(Buffer.concat([Buffer.from(head("application/vnd.msgpack", step.length)), step])) },
  bombs: { connections: 20, use: repeat(Buffer.concat([Buffer.from(head("application/json", bomb.length, "Content-Encoding: zstd\r\n")), bomb])) },
};

const attack = attacks[kind];
if (!attack) throw new Error(`expected ${Object.keys(attacks).join(", ")}, found ${kind}`);
console.log("begun");
await Promise.all(Array.from({ length: attack.connections }, () => connect(attack.use)));
