/** Tests the pinned bits on arm64. The service runs in an emulator for about a minute, so most large tensors are skipped. */
import { arm64Node } from "../support/arm64.ts";
import { TestService } from "../support/service.ts";
import type { Case } from "./_cases.ts";
import { requirePins } from "./_suite.ts";

/** Selects all cases that run on the main thread. Of the cases on workers, selects only sums over blocks. */
const isWanted = ({ isLarge, owner, label }: Case): boolean => !isLarge || (["lamb", "norms"].includes(owner) && label.endsWith("F32"));

// With --no-liftoff, the optimizing compiler compiles each kernel at once.
requirePins("arm64", async () => TestService.start({ STEPD_WORKERS: "2" }, ["--no-liftoff"], await arm64Node(process.versions.node)), isWanted);
