/** Media types: what a body is in, and what its reply shall be in. */
import { type Request, request } from "express";
import { StepdError } from "../errors/errors.ts";

export interface MediaType {
  readonly format: "json" | "msgpack";
  readonly name: string;
}

export const JSON_TYPE: MediaType = { format: "json", name: "application/json" };

/** The first of a format is the one that is named when the caller does not. The other names of JSON are those of JSON-RPC clients. */
const TYPES: readonly MediaType[] = [
  JSON_TYPE,
  { format: "msgpack", name: "application/vnd.msgpack" },
  { format: "msgpack", name: "application/msgpack" },
  { format: "msgpack", name: "application/x-msgpack" },
  { format: "json", name: "application/json-rpc" },
  { format: "json", name: "application/jsonrequest" },
];

const NAMES = TYPES.map(({ name }) => name).join(", ");

/** JSON is UTF-8. ASCII is a part of it, and utf8 a common misspelling. */
const CHARSETS: readonly (string | undefined)[] = [undefined, "utf-8", "utf8", "us-ascii"];

const namesOf = (header: string): { readonly type: MediaType | undefined; readonly charset: string | undefined } => {
  const [name = "", ...parameters] = header
    .toLowerCase()
    .split(";")
    .map((part) => part.trim());
  const charset = parameters
    .find((parameter) => parameter.startsWith("charset="))
    ?.slice("charset=".length)
    .replaceAll('"', "");
  return { type: TYPES.find((known) => known.name === name), charset };
};

/** The media type of a request's body. Throws UNSUPPORTED_MEDIA_TYPE. */
export const bodyType = (req: Request): MediaType => {
  const header = req.headers["content-type"] ?? "";
  const exact = TYPES.find((known) => known.name === header);
  if (exact) return exact;
  const { type, charset } = namesOf(header);
  if (!type) throw StepdError.mismatch("UNSUPPORTED_MEDIA_TYPE", "Content-Type", NAMES, header === "" ? "none" : header);
  if (!CHARSETS.includes(charset)) throw StepdError.mismatch("UNSUPPORTED_MEDIA_TYPE", "Content-Type", "charset utf-8", charset ?? "none");
  return type;
};

/** Parameters of a media range but its weight: a charset says nothing of JSON (RFC 8259, 11), and no type here has others. */
const PARAMETERS = /;\s*(?!q\s*=)[\w!#$%&'*+.^`|~-]+\s*=\s*(?:"(?:[^"\\]|\\.)*"|[^\s,;"]*)/gi;

/** The type that an Accept header prefers, the body's own first; undefined if it names none of them. */
const accepted = (accept: string, own: MediaType): MediaType | undefined => {
  const offered = [own, ...TYPES.filter((type) => type !== own)];
  const plain = Object.create(request, { headers: { value: { accept: accept.replaceAll(PARAMETERS, "") } } }) as Request;
  const name = plain.accepts(offered.map((type) => type.name));
  return offered.find((type) => type.name === name);
};

/** The media type of the reply: what the caller accepts, its own body's first. Throws NOT_ACCEPTABLE. */
export const replyType = (req: Request, own: MediaType = JSON_TYPE): MediaType => {
  const { accept } = req.headers;
  if (accept === undefined || accept === own.name || accept === "*/*") return own;
  const type = accepted(accept, own);
  if (!type) throw StepdError.mismatch("NOT_ACCEPTABLE", "Accept", NAMES, accept);
  return type;
};

/** The media type of a refusal: what the caller accepts, else what it sent, else JSON. */
export const refusalType = ({ headers }: Request): MediaType => {
  const own = namesOf(headers["content-type"] ?? "").type ?? JSON_TYPE;
  return headers.accept === undefined ? own : (accepted(headers.accept, own) ?? own);
};
