/**
 * Authenticates bearer tokens (RFC 6750) from a file: one `name token` per line, `#` for comments. A name may have several tokens, so callers can
 * switch to a new one while the old one is valid. The file is read again when it changes. Only digests stay in memory.
 */
import { createHash, timingSafeEqual } from "node:crypto";
import { readFileSync } from "node:fs";
import { StepdError } from "../errors/errors.ts";
import { watch } from "./_watch.ts";

const LINE = /^([\w.-]{1,32})\s+([A-Za-z0-9._~+/-]+=*)$/;

/** A name of this form is probably a token in the wrong column. It is rejected, because names go into the log. */
const LOOKS_SECRET = /^[0-9a-f]{16,}$/i;

/** Shorter tokens are easy to guess. */
const MIN_TOKEN_LENGTH = 16;

interface TokenEntry {
  readonly name: string;
  readonly digest: Buffer;
}

export interface TokenEvents {
  /** Called after the file has changed, with the number of tokens. An error leaves the old tokens in use. */
  onReload(result: number | Error): void;
}

export class Tokens implements Disposable {
  readonly #path: string;
  readonly #watch: Disposable;
  #entries: readonly TokenEntry[];

  /** Reads the file. Throws an Error if it is invalid. */
  constructor(path: string, events: TokenEvents) {
    this.#path = path;
    this.#entries = parseTokens(readFileSync(path, "utf8"));
    this.#watch = watch([path], () => events.onReload(this.#reload()));
  }

  /** Returns the name of the token in an Authorization header. Throws UNAUTHENTICATED; the error does not contain the header. */
  callerOf(header: string | undefined): string {
    const token = /^Bearer +(\S+) *$/i.exec(header ?? "")?.[1];
    if (token === undefined) throw unauthenticated(header === undefined ? "none" : "something else");
    const digest = digestOf(token);
    let name: string | undefined;
    // All entries are compared, so that the time does not reveal the matching one.
    for (const entry of this.#entries) if (timingSafeEqual(entry.digest, digest)) name = entry.name;
    if (name === undefined) throw unauthenticated("a token that is not known here");
    return name;
  }

  #reload(): number | Error {
    try {
      this.#entries = parseTokens(readFileSync(this.#path, "utf8"));
      return this.#entries.length;
    } catch (error) {
      return error as Error;
    }
  }

  [Symbol.dispose](): void {
    this.#watch[Symbol.dispose]();
  }
}

const digestOf = (token: string): Buffer => createHash("sha256").update(token).digest();

const unauthenticated = (found: string): StepdError =>
  StepdError.mismatch("UNAUTHENTICATED", "Authorization", "Bearer and a token that this server knows", found);

/** Parses the tokens file. Errors give the line's number but not its content. */
const parseTokens = (text: string): readonly TokenEntry[] => {
  const entries = text.split(/\r?\n/).flatMap((line, index): TokenEntry[] => {
    const content = line.trim();
    if (content === "" || content.startsWith("#")) return [];
    const [, name, token] = LINE.exec(content) ?? [];
    if (name === undefined || token === undefined || LOOKS_SECRET.test(name)) {
      throw new Error(
        `line ${index + 1}: expected a name of at most 32 letters, digits and _ . - that is no number, a space and a token of letters, digits and - . _ ~ + / =`,
      );
    }
    if (token.length < MIN_TOKEN_LENGTH) {
      throw new Error(`line ${index + 1}: expected a token of at least ${MIN_TOKEN_LENGTH} characters, found ${token.length}`);
    }
    return [{ name, digest: digestOf(token) }];
  });
  if (entries.length === 0) throw new Error("expected at least one line with a name and a token, found none");
  return entries;
};
