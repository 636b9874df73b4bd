/** The environment of Node processes that tests start. */
import { join } from "node:path";
import { root } from "./tree.ts";

/** The search path, and a cache of compiled sources, because many tests start the service. */
export const childEnv = { PATH: process.env["PATH"], NODE_COMPILE_CACHE: join(root, "build/compile-cache") };
