/**
 * Writes cases/: the requests of requests.ts, each with the answer of this tree's server. Read the difference before you commit
 * it: a changed answer is a change for every caller.
 *
 *   node test/conformance/record.ts
 */
import { mkdir, rm, writeFile } from "node:fs/promises";
import { type ErrorName, errors } from "../../src/errors/errors.ts";
import { JSON_TYPE, readReply, type TestService } from "../support/service.ts";
import { withoutHandles } from "./_handles.ts";
import type { Answer, Request } from "./_request.ts";
import { Servers } from "./_servers.ts";
import { requests } from "./requests.ts";

export const CASES = new URL("cases/", import.meta.url);

export interface Case extends Omit<Request, "file">, Answer {
  /** The contents of the files after the call. */
  readonly written?: Readonly<Record<string, string>>;
}

/** Returns the server's answer over JSON. Omits request ids and handles, which vary, and messages, which may change freely. */
export const answerOf = async (service: TestService, method: string, params: unknown): Promise<Answer> => {
  const call = JSON.stringify({ jsonrpc: "2.0", id: 1, method, params });
  const { result, error } = (await readReply(await service.post("/rpc", call, JSON_TYPE))) as {
    result?: Record<string, unknown>;
    error?: { code: number; data: Record<string, unknown> };
  };
  if (!error) return { result: withoutHandles(result ?? {}) };
  const { request_id: _, name, ...data } = error.data;
  return { error: { name, code: error.code, status: errors[name as ErrorName].status, ...data } };
};

/** Yields the cases of requests.ts with new answers. */
export async function* casesOf(servers: Servers): AsyncGenerator<readonly [file: string, recorded: Case]> {
  for await (const { file, ...request } of requests((method, params) => answerOf(servers.bare, method, params))) {
    const { service, params } = await servers.prepare(request);
    const answer = await answerOf(service, request.method, params);
    yield [file, { ...request, ...answer, ...(request.files && { written: servers.written(request) }) }];
  }
}

/** Prints one member per line, so that a diff shows which member changed. */
const print = (recorded: Case): string =>
  `{\n${Object.entries(recorded)
    .map(([key, value]) => `  ${JSON.stringify(key)}: ${JSON.stringify(value)}`)
    .join(",\n")}\n}\n`;

if (import.meta.main) {
  await using servers = await Servers.start();
  await rm(CASES, { recursive: true, force: true });
  await mkdir(CASES);
  for await (const [file, recorded] of casesOf(servers)) await writeFile(new URL(`${file}.json`, CASES), print(recorded));
}
