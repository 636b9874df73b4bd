/** Loads the descriptions of the server's optimizers (method optimizer.describe). */
import type { DescribeResult } from "../../clients/typescript/src/index.ts";
import { json, results } from "./session.ts";

let described: Promise<readonly DescribeResult[]> | undefined;

/** Describes all optimizers in one batch. Later callers share the result. */
export const optimizers = (): Promise<readonly DescribeResult[]> => {
  described ??= json<{ optimizers: readonly { name: string }[] }>("v1/optimizers").then(({ optimizers }) =>
    results<DescribeResult>(optimizers.map(({ name }) => ({ method: "optimizer.describe", params: { name } }))),
  );
  return described.catch((error) => {
    described = undefined;
    throw error;
  });
};
