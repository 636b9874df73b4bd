/** Media types: what a body is in, and what its reply shall be in. */
import type { Request } from "express";
import { StepdError } from "../errors/errors.ts";

export interface MediaType {
  readonly format: "json" | "msgpack";
  readonly name: string;
}

const JSON_TYPE: MediaType = { format: "json", name: "application/json" };

/** The first of a format is the one that is named when the caller does not. */
const TYPES: readonly MediaType[] = [
  JSON_TYPE,
  { format: "msgpack", name: "application/vnd.msgpack" },
  { format: "msgpack", name: "application/msgpack" },
  { format: "msgpack", name: "application/x-msgpack" },
];

const NAMES = TYPES.map(({ name }) => name).join(", ");

/** The media type of a request's body. Throws UNSUPPORTED_MEDIA_TYPE. */
export const bodyType = (req: Request): MediaType => {
  const header = req.headers["content-type"] ?? "";
  const exact = TYPES.find((known) => known.name === header);
  if (exact) return exact;
  const [name = "", ...parameters] = header
    .toLowerCase()
    .split(";")
    .map((part) => part.trim());
  const type = TYPES.find((known) => known.name === name);
  const charset = parameters
    .find((parameter) => parameter.startsWith("charset="))
    ?.slice("charset=".length)
    .replaceAll('"', "");
  if (!type) throw StepdError.mismatch("UNSUPPORTED_MEDIA_TYPE", "Content-Type", NAMES, header === "" ? "none" : header);
  if (charset !== undefined && charset !== "utf-8") throw StepdError.mismatch("UNSUPPORTED_MEDIA_TYPE", "Content-Type", "charset utf-8", charset);
  return type;
};

/** The media type of the reply: what the caller accepts, its own body's first. Throws NOT_ACCEPTABLE. */
export const replyType = (req: Request, own: MediaType = JSON_TYPE): MediaType => {
  const { accept } = req.headers;
  if (accept === undefined || accept === own.name || accept === "*/*") return own;
  const offered = [own, ...TYPES.filter((type) => type !== own)];
  const accepted = req.accepts(offered.map(({ name }) => name));
  const type = offered.find(({ name }) => name === accepted);
  if (!type) throw StepdError.mismatch("NOT_ACCEPTABLE", "Accept", NAMES, accept);
  return type;
};
