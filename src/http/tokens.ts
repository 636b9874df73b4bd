/**
 * Bearer tokens (RFC 6750) from a file: one `name token` a line, `#` for comments. A name may have several, so that an old one
 * goes on while callers take over a new one. The file is read again when it changes. Tokens are kept as digests only.
 */
import { createHash, timingSafeEqual } from "node:crypto";
import { readFileSync } from "node:fs";
import { StepdError } from "../errors/errors.ts";
import { watch } from "./_watch.ts";

const LINE = /^([\w.-]{1,32})\s+([A-Za-z0-9._~+/-]+=*)$/;

/** A name goes into the log. What looks like a secret is none: the columns are swapped. */
const LOOKS_SECRET = /^[0-9a-f]{16,}$/i;

/** A shorter token is guessed too easily. */
const MIN_TOKEN_LENGTH = 16;

interface Entry {
  readonly name: string;
  readonly digest: Buffer;
}

export interface TokenEvents {
  /** The file changed: how many tokens it has now, or why it is not taken and the old ones stay. */
  onReload(result: number | Error): void;
}

export class Tokens implements Disposable {
  readonly #path: string;
  readonly #watch: Disposable;
  #entries: readonly Entry[];

  /** Reads the file. Throws Error with one sentence where it is not as it should be. */
  constructor(path: string, events: TokenEvents) {
    this.#path = path;
    this.#entries = parseTokens(readFileSync(path, "utf8"));
    this.#watch = watch([path], () => events.onReload(this.#reload()));
  }

  /** The name of the caller whose token an Authorization header carries. Throws UNAUTHENTICATED, which never repeats what came. */
  callerOf(header: string | undefined): string {
    const token = /^Bearer +(\S+) *$/i.exec(header ?? "")?.[1];
    if (token === undefined) throw unauthenticated(header === undefined ? "none" : "something else");
    const digest = digestOf(token);
    let name: string | undefined;
    // Every entry is compared, so that the time says nothing of which one fits.
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

/** The tokens of a file's text. Errors name the line, never what stands there. */
const parseTokens = (text: string): readonly Entry[] => {
  const entries = text.split(/\r?\n/).flatMap((line, index): Entry[] => {
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
