/** The calls that third-party clients make, and the service's own answers. */
import { JSON_TYPE, readReply, type TestService } from "../support/service.ts";

/** The params of each call. `step` passes its tensors by name. */
export const CALLS = {
  describe: { name: "adamw" },
  step: {
    optimizer: { name: "adamw", lr: 0.01 },
    params: { w: { shape: [2, 2], values: [1, -2, 0.5, 3] }, b: { shape: [], values: [0.25] } },
    grads: { w: { shape: [2, 2], values: [0.1, 0.2, -0.3, 0] }, b: { shape: [], values: [1] } },
    stats: "global",
  },
  unknown: { name: "adamv" },
};

export interface Answers {
  readonly list: unknown;
  readonly describe: unknown;
  readonly step: { readonly params: unknown; readonly state: unknown };
  readonly error: { readonly code: number; readonly message: string };
}

/** Returns the service's answers over JSON-RPC. */
export const answers = async (service: TestService): Promise<Answers> => {
  const call = async (method: string, params: unknown): Promise<{ result?: unknown; error?: Answers["error"] }> => {
    const reply = await service.post("/rpc", JSON.stringify({ jsonrpc: "2.0", id: 1, method, params }), JSON_TYPE);
    return (await readReply(reply)) as { result?: unknown; error?: Answers["error"] };
  };
  const { error } = await call("optimizer.describe", CALLS.unknown);
  if (!error) throw new Error("expected an error, found none");
  return {
    list: (await call("optimizer.list", {})).result,
    describe: (await call("optimizer.describe", CALLS.describe)).result,
    step: (await call("optimizer.step", CALLS.step)).result as Answers["step"],
    error: { code: error.code, message: error.message },
  };
};
