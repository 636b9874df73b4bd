/** Defines the endpoints of calls: JSON-RPC and the REST routes of the methods. */
import type { Request } from "express";
import type { Decoded } from "../codec/msgpack.ts";
import { Parts } from "../codec/parts.ts";
import { asStepdError, errors, StepdError } from "../errors/errors.ts";
import { type Lease, type Method, type Observer, errorReply as rpcErrorReply } from "../rpc/rpc.ts";
import { secondsSince } from "./_clock.ts";
import type { ServerContext } from "./_context.ts";
import type { HeapShare } from "./heap.ts";
import type { MediaType } from "./negotiate.ts";
import { errorHeaders, joinEncoded, type Reply, retryHeader } from "./reply.ts";

/** Handles the calls of one route: from a received body to an encoded reply. */
export interface Endpoint {
  /** True if requests to this endpoint have a body. */
  readonly hasBody: boolean;
  run(call: {
    readonly service: ServerContext;
    readonly req: Request;
    readonly lease: Lease;
    readonly heap: HeapShare;
    readonly body: () => Promise<Decoded>;
    readonly type: MediaType;
    readonly id: string;
    readonly caller: string | undefined;
    readonly observe: Observer;
  }): Promise<Reply>;
  /** Creates the reply for an error before or during `run`. */
  errorReply(service: ServerContext, error: StepdError, type: MediaType, id: string): Reply;
}

const restError = ({ replies }: ServerContext, error: StepdError, type: MediaType, id: string): Reply => replies.problem(error, id, type);

export const rpcCall: Endpoint = {
  hasBody: true,
  async run({ service, lease, heap, body, type, id, caller, observe }) {
    let decoded: Decoded;
    try {
      decoded = await body();
    } catch (error) {
      observe("unknown", asStepdError(error).code, error);
      return { status: 200, type: type.name, body: service.replies.encodeError(rpcErrorReply(null, asStepdError(error), id), type) };
    }
    let encoded = 0;
    const finish = async (result: unknown): Promise<Parts> => {
      const parts = await timedEncode(service, result, type, (bytes) => heap.growToReply(encoded + bytes));
      encoded += type.format === "json" ? parts.length : heapBytes(parts, lease);
      return parts;
    };
    const { status, value: reply, retryAfter } = await service.rpc.handle(decoded.value, { lease, caller, template: decoded.template }, id, observe, finish);
    if (reply === undefined) return { status, type: type.name, body: new Parts([]) };
    const parts = Array.isArray(reply) ? joinEncoded(reply as Parts[], type) : await finish(reply);
    return { status, type: type.name, body: parts, headers: retryHeader(retryAfter) };
  },
  errorReply: ({ replies }, error, type, id) => ({
    status: errors[error.code].status,
    type: type.name,
    body: replies.encodeError(rpcErrorReply(null, error, id), type),
    headers: errorHeaders(error),
  }),
};

export const restPost = ({ name }: Method): Endpoint => ({
  hasBody: true,
  async run({ service, lease, heap, body, type, caller, observe }) {
    let decoded: Decoded;
    try {
      decoded = await body();
    } catch (error) {
      observe(name, asStepdError(error).code, error);
      throw error;
    }
    const result = await service.rpc.call(name, decoded.value, { lease, caller, template: decoded.template }, observe);
    return { status: 200, type: type.name, body: await timedEncode(service, service.rpc.toWire(name, result), type, (bytes) => heap.growToReply(bytes)) };
  },
  errorReply: restError,
});

export const restGet = ({ name }: Method): Endpoint => ({
  hasBody: false,
  async run({ service, req, lease, heap, type, caller, observe }) {
    const result = await service.rpc.call(name, { ...req.params }, { lease, caller, template: undefined }, observe).catch((error) => {
      throw asPathError(error);
    });
    return { status: 200, type: type.name, body: await timedEncode(service, service.rpc.toWire(name, result), type, (bytes) => heap.growToReply(bytes)) };
  },
  errorReply: restError,
});

/** Converts INVALID_PARAMS to NOT_FOUND, because all parameters of a GET are parts of its path. */
const asPathError = (error: unknown): unknown =>
  error instanceof StepdError && error.code === "INVALID_PARAMS" ? new StepdError("NOT_FOUND", error.message, error.detail) : error;

/** Counts the bytes of a reply that are not views of the arena. */
const heapBytes = ({ pieces }: Parts, lease: Lease): number =>
  pieces.reduce((sum, piece) => (piece.buffer === lease.bytes.buffer ? sum : sum + piece.length), 0);

const timedEncode = async ({ telemetry, replies }: ServerContext, value: unknown, type: MediaType, onBytes: (bytes: number) => void): Promise<Parts> => {
  const start = performance.now();
  const parts = await replies.encode(value, type, onBytes);
  telemetry.recordPhase("encode", secondsSince(start));
  return parts;
};
