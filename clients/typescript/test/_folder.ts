/** Provides a folder that a server and its clients share, in memory if the host allows, and a fetch that records calls. */
import { createHash } from "node:crypto";
import { existsSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import os from "node:os";
import { join } from "node:path";
import { setImmediate } from "node:timers/promises";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { decode } from "@msgpack/msgpack";
import type { Fetch, State, Tensor } from "../src/index.ts";

export class TestFolder implements Disposable {
  readonly path = mkdtempSync(join(existsSync("/dev/shm") ? "/dev/shm" : os.tmpdir(), "stepd-client-"));

  get files(): readonly string[] {
    return readdirSync(this.path);
  }

  [Symbol.dispose](): void {
    rmSync(this.path, { recursive: true, force: true });
  }
}

export type Body = Readonly<Record<string, unknown>>;

/** Returns a fetch that records the request bodies. */
export const recordingFetch = (bodies: Body[], send: Fetch = fetch): Fetch => {
  return async (url, init) => {
    if (init.body) bodies.push(decode(new Uint8Array(await (init.body as Blob).arrayBuffer())) as Body);
    return send(url, init);
  };
};

/** Runs the garbage collector, and waits for the finalizers. */
export const collect = async (): Promise<void> => {
  setFlagsFromString("--expose-gc");
  const gc = runInNewContext("gc") as () => void;
  for (let turn = 0; turn < 5; turn++) {
    gc();
    await setImmediate();
  }
};

/** Returns the digests of a result's parameters and state. */
export const digests = ({ params, state }: { readonly params: Readonly<Record<string, Tensor>>; readonly state: State }): Readonly<Record<string, string>> => ({
  ...Object.fromEntries(Object.entries(params).map(([name, { data, dtype, shape }]) => [name, `${dtype} [${shape}] ${digest(data)}`])),
  state: digest(state.bytes),
});

const digest = ({ buffer, byteOffset, byteLength }: ArrayBufferView): string =>
  createHash("sha256")
    .update(Buffer.from(buffer as ArrayBuffer, byteOffset, byteLength))
    .digest("hex");
