/** Negotiates the media types of bodies and replies. */
import { type Request, request } from "express";
import { StepdError } from "../errors/errors.ts";

export interface MediaType {
  readonly format: "json" | "msgpack";
  readonly name: string;
}

export const JSON_TYPE: MediaType = { format: "json", name: "application/json" };

/** The supported types. The first type of each format is its default. JSON-RPC clients use the last two types. */
const TYPES: readonly MediaType[] = [
  JSON_TYPE,
  { format: "msgpack", name: "application/vnd.msgpack" },
  { format: "msgpack", name: "application/msgpack" },
  { format: "msgpack", name: "application/x-msgpack" },
  { format: "json", name: "application/json-rpc" },
  { format: "json", name: "application/jsonrequest" },
];

const NAMES = TYPES.map(({ name }) => name).join(", ");

/** The accepted charsets. JSON is UTF-8, ASCII is a subset of it, and "utf8" is a common misspelling. */
const CHARSETS: readonly (string | undefined)[] = [undefined, "utf-8", "utf8", "us-ascii"];

const parseType = (header: string): { readonly type: MediaType | undefined; readonly charset: string | undefined } => {
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

/** Returns the media type of a request's body. Throws UNSUPPORTED_MEDIA_TYPE. */
export const bodyType = (req: Request): MediaType => {
  const header = req.headers["content-type"] ?? "";
  const exact = TYPES.find((known) => known.name === header);
  if (exact) return exact;
  const { type, charset } = parseType(header);
  if (!type) throw StepdError.mismatch("UNSUPPORTED_MEDIA_TYPE", "Content-Type", NAMES, header === "" ? "none" : header);
  if (!CHARSETS.includes(charset)) throw StepdError.mismatch("UNSUPPORTED_MEDIA_TYPE", "Content-Type", "charset utf-8", charset ?? "none");
  return type;
};

/** Matches the parameters of a media range, except its weight q. Such parameters are ignored: JSON has no charset (RFC 8259, section 11). */
const PARAMETERS = /;\s*(?!q\s*=)[\w!#$%&'*+.^`|~-]+\s*=\s*(?:"(?:[^"\\]|\\.)*"|[^\s,;"]*)/gi;

/** Returns the type that an Accept header prefers; the body's own type wins a tie. Returns undefined if no type is acceptable. */
const preferredType = (accept: string, own: MediaType): MediaType | undefined => {
  const offered = [own, ...TYPES.filter((type) => type !== own)];
  const plain = Object.create(request, { headers: { value: { accept: accept.replaceAll(PARAMETERS, "") } } }) as Request;
  const name = plain.accepts(offered.map((type) => type.name));
  return offered.find((type) => type.name === name);
};

/** Returns the media type of the reply: an accepted type, preferably the body's own. Throws NOT_ACCEPTABLE. */
export const replyType = (req: Request, own: MediaType = JSON_TYPE): MediaType => {
  const { accept } = req.headers;
  if (accept === undefined || accept === own.name || accept === "*/*") return own;
  const type = preferredType(accept, own);
  if (!type) throw StepdError.mismatch("NOT_ACCEPTABLE", "Accept", NAMES, accept);
  return type;
};

/** Returns the media type of an error reply: an accepted type, else the type of the body, else JSON. */
export const errorType = ({ headers }: Request): MediaType => {
  const own = parseType(headers["content-type"] ?? "").type ?? JSON_TYPE;
  return headers.accept === undefined ? own : (preferredType(headers.accept, own) ?? own);
};
