/** Loads the descriptions of the server's optimizers (method optimizer.describe). */
import type { DescribeResult } from "../../clients/typescript/src/index.ts";
import { batchResults, requestJson } from "./session.ts";

let described: Promise<readonly DescribeResult[]> | undefined;

/** Describes all optimizers in one batch. Later callers share the result. */
export const describeOptimizers = (): Promise<readonly DescribeResult[]> => {
  described ??= requestJson<{ optimizers: readonly { name: string }[] }>("v1/optimizers").then(({ optimizers }) =>
    batchResults<DescribeResult>(optimizers.map(({ name }) => ({ method: "optimizer.describe", params: { name } }))),
  );
  return described.catch((error) => {
    described = undefined;
    throw error;
  });
};
