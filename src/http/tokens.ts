/**
 * Authenticates bearer tokens (RFC 6750) from a file: one `name token` per line, `#` for comments. A name may have several tokens, so callers can
 * switch to a new one while the old one is valid. Limits of the name may follow, such as `calls=8`; they hold for all its tokens
 * together. The file is read again when it changes. Only digests stay in memory.
 */
import { createHash, timingSafeEqual } from "node:crypto";
import { readFileSync, statSync } from "node:fs";
import { StepdError } from "../errors/errors.ts";
import { watch } from "./_watch.ts";
import { type CallerLimits, type Identity, LIMIT_NAMES } from "./callers.ts";

const LINE = /^([\w.-]{1,32})\s+([A-Za-z0-9._~+/-]+=*)((?:\s+\S+)*)$/;

/** A limit of the file is a whole number from 1 to this. */
const MAX_LIMIT = 2 ** 40;

/** A name of this form is probably a token in the wrong column. It is rejected, because names go into the log. */
const LOOKS_SECRET = /^[0-9a-f]{16,}$/i;

/** Shorter tokens are easy to guess. */
const MIN_TOKEN_LENGTH = 16;

/** The permission of all other users to read a file. */
const OTHERS_READ = 0o004;

interface TokenEntry {
  readonly digest: Buffer;
  readonly identity: Identity;
}

/** Describes the tokens for the log and for `--check`, without secrets. */
export interface TokenFacts {
  readonly tokens: number;
  /** The limits in force, by caller. Callers without limits are absent. */
  readonly limits: Readonly<Record<string, CallerLimits>>;
}

export interface TokenEvents {
  /** Called after the file has changed. An error leaves the old tokens in use. */
  onReload(result: TokenFacts | Error): void;
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

  /** The callers. */
  get identities(): readonly Identity[] {
    return [...new Set(this.#entries.map(({ identity }) => identity))];
  }

  get facts(): TokenFacts {
    const limited = this.identities.filter(({ limits }) => Object.keys(limits).length > 0);
    return { tokens: this.#entries.length, limits: Object.fromEntries(limited.map(({ name, limits }) => [name, limits])) };
  }

  /** Returns a warning if users of the machine other than the owner and the group may read the file. */
  get warning(): string | undefined {
    const mode = statSync(this.#path).mode & 0o777;
    return (mode & OTHERS_READ) === 0
      ? undefined
      : `STEPD_TOKENS_FILE: every user of this machine may read ${this.#path} (mode ${mode.toString(8).padStart(4, "0")}); chmod o-r takes that away`;
  }

  /** Returns the caller of an Authorization header. Throws UNAUTHENTICATED; the error does not contain the header. */
  callerOf(header: string | undefined): Identity {
    const token = /^Bearer +(\S+) *$/i.exec(header ?? "")?.[1];
    if (token === undefined) throw unauthenticated(header === undefined ? "none" : "something else");
    const digest = digestOf(token);
    let identity: Identity | undefined;
    // All entries are compared, so that the time does not reveal the matching one.
    for (const entry of this.#entries) if (timingSafeEqual(entry.digest, digest)) identity = entry.identity;
    if (identity === undefined) throw unauthenticated("a token that is not known here");
    return identity;
  }

  #reload(): TokenFacts | Error {
    try {
      this.#entries = parseTokens(readFileSync(this.#path, "utf8"));
      return this.facts;
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
  const identities = new Map<string, { name: string; limits: Record<string, number> }>();
  const entries = text.split(/\r?\n/).flatMap((line, index): TokenEntry[] => {
    const content = line.trim();
    if (content === "" || content.startsWith("#")) return [];
    const [, name, token, rest = ""] = LINE.exec(content) ?? [];
    if (name === undefined || token === undefined || LOOKS_SECRET.test(name)) {
      throw new Error(
        `line ${index + 1}: expected a name of at most 32 letters, digits and _ . - that is no number, a space and a token of letters, digits and - . _ ~ + / =`,
      );
    }
    if (token.length < MIN_TOKEN_LENGTH) {
      throw new Error(`line ${index + 1}: expected a token of at least ${MIN_TOKEN_LENGTH} characters, found ${token.length}`);
    }
    const identity = identities.get(name) ?? { name, limits: {} };
    identities.set(name, identity);
    addLimits(identity.limits, rest, index + 1);
    return [{ digest: digestOf(token), identity }];
  });
  if (entries.length === 0) throw new Error("expected at least one line with a name and a token, found none");
  return entries;
};

/** Parses `limit=number` fields of a line. A name with several lines has one value of each limit. */
const addLimits = (limits: Record<string, number>, text: string, line: number): void => {
  for (const field of text.split(/\s+/).filter((part) => part !== "")) {
    const [, name = "", digits = ""] = /^(\w+)=(\d+)$/.exec(field) ?? [];
    const value = Number(digits);
    if (!LIMIT_NAMES.some((known) => known === name) || value < 1 || value > MAX_LIMIT) {
      // The field may be a second token, so the error does not repeat it.
      throw new Error(`line ${line}: expected limits such as calls=8, of ${LIMIT_NAMES.join(", ")}, each a whole number from 1 to 2^40, found something else`);
    }
    if (limits[name] !== undefined && limits[name] !== value)
      throw new Error(`line ${line}: expected one value of ${name} for the name, found ${limits[name]} and ${value}`);
    limits[name] = value;
  }
};
