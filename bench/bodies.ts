/** Builds request bodies for the benchmarks: AdamW steps in mid-training with a complete state, as MessagePack. */
import { pack, Unpackr } from "msgpackr";
import { writeHeader } from "../src/codec/safetensors.ts";
import { RawClient } from "./client.ts";

const unpackr = new Unpackr({ useRecords: false });

/** The arena size of the measured servers, in MiB. It has room for one step of 16 Mi parameters. */
export const ARENA_MIB = "640";

/** Returns values with magnitudes from 0.25 to 1, so none is subnormal. */
const randomValues = (elements: number, signed: boolean): Buffer => {
  const data = new Float32Array(elements);
  for (let i = 0; i < elements; i++) {
    const size = 0.25 + ((Math.imul(i, 2654435761) >>> 9) / 2 ** 24) * 1.5;
    data[i] = signed && (i & 1) === 1 ? -size : size;
  }
  return Buffer.from(data.buffer);
};

/**
 * Divides the elements evenly among tensors, sorted by name. stepd writes files in this order, so trainers send them in this
 * order too.
 */
const evenTensors = (elements: number, tensors: number, prefix = ""): { name: string; dtype: string; shape: number[] }[] =>
  Array.from({ length: tensors }, (_, i) => ({ name: `${prefix}w${String(i).padStart(5, "0")}`, dtype: "F32", shape: [elements / tensors] }));

/** Returns a safetensors file. Its header is padded to align the values, which spares the peers a copy. */
const tensorFile = (elements: number, tensors: number): Buffer =>
  Buffer.concat([writeHeader({}, evenTensors(elements, tensors)), randomValues(elements, true)]);

const STEPS = 100;

const stateFile = (elements: number, tensors: number): Buffer => {
  const header = writeHeader({ format: "stepd.state/1", optimizer: "adamw", revision: "1" }, [
    ...evenTensors(elements, tensors, "step/").map(({ name }) => ({ name, dtype: "I64", shape: [] })),
    ...evenTensors(elements, tensors, "exp_avg/"),
    ...evenTensors(elements, tensors, "exp_avg_sq/"),
  ]);
  const steps = new BigInt64Array(tensors).fill(BigInt(STEPS));
  return Buffer.concat([header, Buffer.from(steps.buffer), randomValues(elements, true), randomValues(elements, false)]);
};

/** An HTTP request, ready to be written to a socket. */
export interface Request {
  readonly head: Buffer;
  readonly body: Buffer;
}

export const httpRequest = (path: string, body: Buffer): Request => ({
  head: Buffer.from(`POST ${path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/vnd.msgpack\r\nContent-Length: ${body.length}\r\n\r\n`),
  body,
});

/** Returns the blobs of one AdamW step: parameters, gradients and a complete state. */
export const stepBlobs = (elements: number, tensors = 1): { readonly params: Buffer; readonly grads: Buffer; readonly state: Buffer } => ({
  params: tensorFile(elements, tensors),
  grads: tensorFile(elements, tensors),
  state: stateFile(elements, tensors),
});

/** Returns an AdamW step with a complete state. `more` adds fields to the call or replaces its blobs. */
export const stepRequest = (elements: number, more: Readonly<Record<string, unknown>> = {}, tensors = 1): Request => {
  const call = { optimizer: { name: "adamw", lr: 1e-3 }, ...stepBlobs(elements, tensors), ...more };
  return httpRequest("/rpc", Buffer.from(pack({ jsonrpc: "2.0", id: 1, method: "optimizer.step", params: call })));
};

/** Sends the body of a step to the echo server, which returns `reply` bytes. */
export const echoRequest = ({ body }: Request, reply: number): Request => httpRequest(`/echo/${reply}`, body);

interface StepReply {
  readonly result: { readonly params: Buffer; readonly state: Buffer; readonly step: number };
}

/** The tolerance is relative, because torch fuses multiplications and additions. */
const TOLERANCE = 1e-6;

const floats = (bytes: Buffer): Float32Array => {
  const start = 8 + Number(bytes.readBigUInt64LE(0));
  return new Float32Array(Uint8Array.from(bytes.subarray(start)).buffer);
};

/** Throws unless a peer's reply to a step matches stepd's: equal headers, and values within the tolerance. */
export const checkPeer = async (name: string, service: string, peer: string): Promise<void> => {
  const [expected, found] = await Promise.all(
    [service, peer].map(async (address) => {
      using client = await RawClient.connect(address);
      const { head, body } = stepRequest(1000);
      return (unpackr.unpack(await client.read(head, body)) as StepReply).result;
    }),
  );
  if (!expected || !found) throw new Error("a reply is missing");
  const complain = (field: string): never => {
    throw new Error(`${name}: expected the ${field} that stepd gives, found another`);
  };
  if (found.step !== expected.step) complain("step");
  for (const field of ["params", "state"] as const) {
    const [a, b] = [floats(expected[field]), floats(found[field])];
    if (a.length !== b.length) complain(field);
    // The integer step count at the start of a state is not compared.
    for (let i = field === "state" ? 2 : 0; i < a.length; i++) if (!(Math.abs((a[i] as number) - (b[i] as number)) <= TOLERANCE)) complain(field);
  }
};
