/**
 * Runs the real service on a Unix socket, with outputs that the test provides. The test knows the address without reading the
 * log.
 */
import { type ChildProcess, type StdioOptions, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import http from "node:http";
import os from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { childEnv } from "../support/env.ts";
import { root } from "../support/tree.ts";

export type Env = Readonly<Record<string, string>>;

export interface Answer {
  readonly status: number;
  readonly text: string;
}

const SMALL = { STEPD_ARENA_MIB: "16", STEPD_WORKERS: "1" };

/** A JSON-RPC call that every server answers. */
export const LIST = JSON.stringify({ jsonrpc: "2.0", id: 1, method: "optimizer.list" });

export class SocketService implements AsyncDisposable {
  readonly folder = mkdtempSync(join(os.tmpdir(), "stepd-process-"));
  readonly socket = join(this.folder, "s");
  readonly child: ChildProcess;
  readonly ended: Promise<unknown[]>;

  constructor(stdio: StdioOptions, env: Env = {}, command: readonly string[] = [process.execPath, join(root, "src/main.ts")]) {
    const [file = "", ...args] = command;
    this.child = spawn(file, args, { cwd: root, env: { ...childEnv, ...SMALL, STEPD_SOCKET: this.socket, ...env }, stdio });
    this.ended = once(this.child, "exit");
  }

  write(name: string, text: string): string {
    const path = join(this.folder, name);
    writeFileSync(path, text);
    return path;
  }

  /** Waits until the service accepts calls. */
  async ready(): Promise<void> {
    let isOver = false;
    void this.ended.then(() => {
      isOver = true;
    });
    while ((await this.ask("/health/ready").catch(() => undefined))?.status !== 200) {
      if (isOver) throw new Error("the service ended");
      await delay(20);
    }
  }

  /** Opens a request. If the request has a body, the caller sends the body later. */
  open(path: string, length?: number, headers: Env = {}): http.ClientRequest {
    const body = length === undefined ? {} : { "Content-Type": "application/json", "Content-Length": length };
    return http.request({ socketPath: this.socket, path, agent: false, method: length === undefined ? "GET" : "POST", headers: { ...body, ...headers } });
  }

  ask(path: string, body?: string, headers: Env = {}): Promise<Answer> {
    const request = this.open(path, body === undefined ? undefined : Buffer.byteLength(body), headers);
    const answer = answerOf(request);
    request.end(body);
    return answer;
  }

  /** Returns the value of a metric. */
  async metric(name: string): Promise<number> {
    return Number(new RegExp(`^${name} (.*)$`, "m").exec((await this.ask("/metrics")).text)?.[1]);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.child.exitCode === null && this.child.signalCode === null) this.child.kill("SIGKILL");
    await this.ended;
    rmSync(this.folder, { recursive: true });
  }
}

export const answerOf = (request: http.ClientRequest): Promise<Answer> =>
  new Promise((resolve, reject) => {
    request.on("error", reject);
    request.on("response", (response) => {
      let text = "";
      response.on("data", (chunk: Buffer) => {
        text += chunk.toString();
      });
      response.on("error", reject);
      response.on("end", () => resolve({ status: response.statusCode ?? 0, text }));
    });
  });
