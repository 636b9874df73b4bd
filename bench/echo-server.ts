/**
 * Measures the lower bound for the time of a step. The same stack (Express, request chunks copied into shared memory, a reply
 * written from shared views) moves the same number of bytes, without decoding or kernels. Endpoint: POST /echo/<bytes of the
 * reply>.
 */
import { createServer } from "node:http";
import express from "express";
import { Arena } from "../src/arena/arena.ts";
import { freeChunk } from "../src/http/body.ts";

const arena = new Arena(Number(process.argv[2] ?? "640"), 0);
const socket = process.argv[3] ?? "";
const host = process.argv[4] || "127.0.0.1";

/** The number of views in a reply. The reply to a step has three large views too. */
const PIECES = 3;

const app = express();
app.disable("x-powered-by");
app.disable("etag");
app.post("/echo/:bytes", (req, res) => {
  const length = Number(req.headers["content-length"]);
  const bytes = Number(req.params.bytes);
  const lease = arena.lease(Math.max(length, bytes));
  let received = 0;
  req.on("data", (chunk: Buffer) => {
    lease.bytes.fill(chunk, lease.start + received, lease.start + received + chunk.length);
    received += chunk.length;
    freeChunk(chunk);
  });
  res.once("close", () => lease.release());
  req.once("end", () => {
    res.writeHead(200, { "Content-Type": "application/vnd.msgpack", "Content-Length": bytes });
    res.cork();
    for (let piece = 0; piece < PIECES; piece++) {
      const start = Math.floor((bytes * piece) / PIECES);
      res.write(lease.view(lease.start + start, Math.floor((bytes * (piece + 1)) / PIECES) - start));
    }
    res.end();
    res.uncork();
  });
});

const server = createServer({ requestTimeout: 0 }, app);
server.keepAliveTimeout = 600_000;
const announce = (): void => {
  const address = server.address();
  console.log(`echo listens on ${typeof address === "object" && address ? `http://${host}:${address.port}` : `unix:${socket}`}`);
};
if (socket === "") server.listen(0, host, announce);
else server.listen(socket, announce);
