/** Lists all methods in the order of the documentation. */
import { average } from "./average.ts";
import { convert } from "./convert.ts";
import { describe } from "./describe.ts";
import { distances } from "./distances.ts";
import { evaluate } from "./evaluate.ts";
import { init } from "./init.ts";
import { inspect } from "./inspect.ts";
import { list } from "./list.ts";
import type { Method } from "./method.ts";
import { norms } from "./norms.ts";
import { plan } from "./plan.ts";
import { reduce } from "./reduce.ts";
import { step } from "./step.ts";

const discover: Method = {
  name: "rpc.discover",
  summary: "Returns the OpenRPC document of this server",
  params: "discover.schema.json",
  result: "discover-result.schema.json",
  rest: { verb: "GET", path: "/openrpc.json" },
  handle: (_, { openRpc }) => openRpc,
};

export const methods: readonly Method[] = [
  step as Method,
  init as Method,
  average as Method,
  norms as Method,
  reduce as Method,
  distances as Method,
  plan as Method,
  list,
  describe as Method,
  inspect as Method,
  convert as Method,
  evaluate as Method,
  discover,
];
