/** The pinned bits come out on arm64 too: the service runs in an emulator, which takes about a minute, so most large tensors are left out. */
import { arm64Node } from "../support/arm64.ts";
import { TestService } from "../support/service.ts";
import type { Case } from "./_cases.ts";
import { requirePins } from "./_suite.ts";

/** All that runs inline, and on workers what adds up blocks. */
const isWanted = ({ isLarge, owner, label }: Case): boolean => !isLarge || (["lamb", "norms"].includes(owner) && label.endsWith("F32"));

// --no-liftoff compiles each kernel at once with the optimizing compiler.
requirePins("arm64", async () => TestService.start({ STEPD_WORKERS: "2" }, ["--no-liftoff"], await arm64Node(process.versions.node)), isWanted);
