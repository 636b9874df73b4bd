/**
 * Takes two steps through the client that @hey-api/openapi-ts generated from /openapi.json into ./client: generated.js URL.
 *
 * Prints the results as JSON: list, describe, step, the following step, and the error of a describe that fails.
 */
import { createClient } from "./client/client/index.js";
import { optimizerDescribe, optimizerList, optimizerStep } from "./client/sdk.gen.js";
import type { StepParams } from "./client/types.gen.js";

const [, , baseUrl = ""] = process.argv;
const client = createClient({ baseUrl });
const call: StepParams = {
  optimizer: { name: "adamw", lr: 0.01 },
  params: { w: { shape: [2, 2], values: [1, -2, 0.5, 3] }, b: { shape: [], values: [0.25] } },
  grads: { w: { shape: [2, 2], values: [0.1, 0.2, -0.3, 0] }, b: { shape: [], values: [1] } },
  stats: "global",
};
const { data: step } = await optimizerStep({ client, body: call, throwOnError: true });
if (!step.params || step.state === undefined) throw new Error("expected params and state, found none");
const results = {
  list: (await optimizerList({ client, throwOnError: true })).data,
  describe: (await optimizerDescribe({ client, path: { name: "adamw" }, throwOnError: true })).data,
  step,
  next: (await optimizerStep({ client, body: { ...call, params: step.params, state: step.state }, throwOnError: true })).data,
  error: (await optimizerDescribe({ client, path: { name: "adamv" } })).error,
};
process.stdout.write(JSON.stringify(results));
