/** Calls the server that delivered the page, with the visitor's token. */
import { Client } from "../../clients/typescript/src/index.ts";

/** The server's root URL. It is relative to the page, so a proxy may add a path prefix. */
export const root = new URL(".", location.href).href;

/** The reply to GET / for programs. */
export interface Summary {
  readonly version: string;
  readonly authentication: "bearer" | "none";
  readonly links: Readonly<Record<string, string | undefined>>;
  /** The base URLs of the replicas whose metrics the page shows. */
  readonly replicas?: readonly string[];
}

/** The token is kept only in this variable, so closing or reloading the tab deletes it. */
let token: string | undefined;
let ask: (reason: string) => Promise<string> = () => Promise.reject(new Error("no dialog asks for a token yet"));

/** Sets the function that asks the visitor for a token. */
export const setTokenDialog = (dialog: typeof ask): void => {
  ask = dialog;
};

const UNAUTHENTICATED = 401;

/** Fetches a URL. The error names the server that did not answer, since the browser's own message differs and names nothing. */
const fetchFrom = async (url: URL, init: RequestInit): Promise<Response> => {
  try {
    return await fetch(url, init);
  } catch {
    throw new Error(`${url.host} does not answer. It may have stopped, or the network is down.`);
  }
};

/** Sends a request with the token. As long as the server refuses the token, asks the visitor for another and repeats the request. */
export const request = async (path: string, init: RequestInit = {}): Promise<Response> => {
  for (;;) {
    const headers = new Headers(init.headers);
    const used = token;
    if (used !== undefined) headers.set("Authorization", `Bearer ${used}`);
    const response = await fetchFrom(new URL(path, root), { ...init, headers });
    if (response.status !== UNAUTHENTICATED) return response;
    // Meanwhile, another request may have received a new token.
    if (token !== used) continue;
    await askForToken("The server does not know this token.");
  }
};

/** Reads the metrics of a replica with the visitor's token. Unlike `request`, it never asks for another token. */
export const requestMetrics = (replica: string, milliseconds: number): Promise<Response> => {
  const headers: Record<string, string> = token === undefined ? {} : { Authorization: `Bearer ${token}` };
  return fetchFrom(new URL("metrics", replica), { headers, signal: AbortSignal.timeout(milliseconds) });
};

let asking: Promise<void> | undefined;

/** Asks the visitor for a token. Concurrent requests share one dialog. */
export const askForToken = (reason: string): Promise<void> => {
  asking ??= ask(reason).then((given) => {
    token = given;
    asking = undefined;
  });
  return asking;
};

export const hasToken = (): boolean => token !== undefined;

/** Returns the Authorization header, for libraries that send their own requests. */
export const authorizationHeader = (): string | undefined => (token === undefined ? undefined : `Bearer ${token}`);

/** Sends and receives JSON. Throws an Error with the server's message if the request fails. */
export const requestJson = async <Result>(path: string, body?: unknown): Promise<Result> => {
  const init = body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const response = await request(path, { ...init, headers: { ...init.headers, Accept: "application/json" } });
  // A proxy in front of the server may answer with a page of HTML.
  const value = (await response.json().catch(() => undefined)) as ({ readonly detail?: string } & Result) | undefined;
  if (!response.ok || value === undefined) throw new Error(value?.detail ?? `expected JSON, found a reply with HTTP status ${response.status}`);
  return value;
};

export interface RpcReply<Result> {
  readonly id: number;
  readonly result?: Result;
  readonly error?: { readonly message: string };
}

/** Calls several methods in one JSON-RPC batch. Replies keep the order of the calls. */
export const callBatch = async <Result>(calls: readonly { readonly method: string; readonly params: unknown }[]): Promise<readonly RpcReply<Result>[]> => {
  const body = calls.map(({ method, params }, id) => ({ jsonrpc: "2.0", id, method, params }));
  const replies = await requestJson<readonly RpcReply<Result>[] | RpcReply<Result>>("rpc", body);
  if (!Array.isArray(replies)) throw new Error((replies as RpcReply<Result>).error?.message ?? "expected the replies of a batch");
  return [...(replies as readonly RpcReply<Result>[])].sort((a, b) => a.id - b.id);
};

/** Calls several methods in one batch and returns their results. Throws the first error if a call fails. */
export const batchResults = async <Result>(calls: Parameters<typeof callBatch>[0]): Promise<readonly Result[]> =>
  (await callBatch<Result>(calls)).map(({ result, error }) => {
    if (result === undefined) throw new Error(error?.message ?? "the server gave no reply");
    return result;
  });

/** Creates a TypeScript client, for calls with blobs. Its replies are MessagePack. */
export const createClient = (): Client => new Client(root, { token, retries: 0 });
