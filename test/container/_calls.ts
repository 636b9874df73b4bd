/** Makes calls that send their body only after the test has changed the container. */
import { once } from "node:events";
import http from "node:http";
import { MSGPACK, pack, unpack } from "../support/service.ts";
import { readTensors, writeTensors } from "../support/tensors.ts";

/** Returns a step of SGD with a known result: parameters 3, gradients 1, lr 1. */
export const stepBody = (elements: number): Buffer => {
  const file = (value: number) => writeTensors({ w: { shape: [elements], data: new Float32Array(elements).fill(value) } });
  return pack({ optimizer: { name: "sgd", lr: 1 }, params: file(3), grads: file(1) });
};

/** Returns the same step as JSON text, with about 8 bytes per element. */
export const jsonBody = (elements: number): Buffer => {
  const map = (value: string): string => `{"w":{"shape":[${elements}],"values":[${new Array(elements).fill(value).join()}]}}`;
  return Buffer.from(`{"optimizer":{"name":"sgd","lr":1},"params":${map("3.0")},"grads":${map("1.0")}}`);
};

/** Returns whether a MessagePack reply has the right parameters, in the form that the call used. */
export const hasRightParams = (body: Buffer, elements: number): boolean => {
  const { params } = unpack(body) as { readonly params: Uint8Array | { readonly w: { readonly values: readonly number[] } } };
  const values = params instanceof Uint8Array ? readTensors(params)["w"]?.data : params.w.values;
  return values?.length === elements && values.every((value) => value === 2);
};

export interface Reply {
  readonly status: number;
  readonly body: Buffer;
}

/** A call that sends its head at once and its body on command. */
export class HeldCall {
  readonly #request: http.ClientRequest;
  readonly #body: Buffer;
  readonly reply: Promise<Reply>;
  /** Resolves to true if the service admitted the body. */
  readonly isAdmitted: Promise<boolean>;

  constructor(url: string, body: Buffer, { type = MSGPACK, length = body.length } = {}) {
    this.#body = body;
    this.#request = http.request(`${url}/v1/step`, {
      method: "POST",
      agent: false,
      headers: { "Content-Type": type, "Content-Length": length, Accept: MSGPACK, Expect: "100-continue" },
    });
    this.reply = new Promise((resolve, reject) => {
      this.#request.on("error", reject).on("response", (response) => {
        const chunks: Buffer[] = [];
        response
          .on("data", (chunk: Buffer) => chunks.push(chunk))
          .on("error", reject)
          .on("end", () => resolve({ status: response.statusCode ?? 0, body: Buffer.concat(chunks) }));
      });
    });
    this.isAdmitted = Promise.race([once(this.#request, "continue").then(() => true), this.reply.then(() => false)]);
    this.#request.flushHeaders();
  }

  send(): Promise<Reply> {
    this.#request.end(this.#body);
    return this.reply;
  }

  /** Sends the body if the service admits it, and returns the reply. */
  async finish(): Promise<Reply> {
    if (await this.isAdmitted) return this.send();
    this.#request.destroy();
    return this.reply;
  }
}
