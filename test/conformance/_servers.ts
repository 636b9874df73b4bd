/** Runs the two servers of the conformance cases, and prepares a server for a case. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { JSON_TYPE, readReply, TestService } from "../support/service.ts";
import { withHandles } from "./_handles.ts";
import type { Request } from "./_request.ts";

export type Setting = Pick<Request, "server" | "files" | "before" | "params">;

/** A server that is ready for a case, and the params of the case with this server's handles. */
interface Prepared {
  readonly service: TestService;
  readonly params: Request["params"];
}

export class Servers implements AsyncDisposable {
  /** The shared folder of the server `storing`. */
  readonly #folder: string;
  readonly bare: TestService;
  readonly storing: TestService;

  private constructor(folder: string, bare: TestService, storing: TestService) {
    this.#folder = folder;
    this.bare = bare;
    this.storing = storing;
  }

  static async start(): Promise<Servers> {
    const folder = mkdtempSync(join(tmpdir(), "stepd-conformance-"));
    const storing = { STEPD_CACHE_MIB: "1", STEPD_SHARED_DIR: folder };
    return new Servers(folder, await TestService.start(), await TestService.start(storing));
  }

  /** Writes the files of a case, and makes the calls that precede the case. */
  async prepare({ server, files = {}, before = [], params }: Setting): Promise<Prepared> {
    const service = server === "storing" ? this.storing : this.bare;
    for (const [file, content] of Object.entries(files)) writeFileSync(join(this.#folder, file), content, "base64");
    const results: Record<string, unknown>[] = [];
    for (const call of before) {
      const request = { jsonrpc: "2.0", id: 1, ...call, params: withHandles(call.params, results) };
      const reply = await readReply(await service.post("/rpc", JSON.stringify(request), JSON_TYPE));
      const { result } = reply as { result?: Record<string, unknown> };
      if (!result) throw new Error(`a call that comes first was refused: ${JSON.stringify(reply)}`);
      results.push(result);
    }
    return { service, params: withHandles(params, results) };
  }

  /** Returns the current contents of a case's files. */
  written({ files = {} }: Pick<Setting, "files">): Record<string, string> {
    return Object.fromEntries(Object.keys(files).map((file) => [file, readFileSync(join(this.#folder, file), "base64")]));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([this.bare, this.storing].map((service) => service[Symbol.asyncDispose]()));
    rmSync(this.#folder, { recursive: true });
  }
}
