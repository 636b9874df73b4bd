import { registry } from "../optimizers/registry.ts";
import type { Method } from "./method.ts";

/** Method optimizer.list: returns the names, titles and formulas of all optimizers. */
export const list: Method = {
  name: "optimizer.list",
  summary: "Lists the optimizers of this server with their formulas",
  params: "list.schema.json",
  result: "list-result.schema.json",
  rest: { verb: "GET", path: "/v1/optimizers" },

  handle: () => ({ optimizers: [...registry.values()].map(({ name, title, formula }) => ({ name, title, formula })) }),
};
