/** The pinned bits hold on arm64 as well. The service runs in an emulator for about a minute, so most large tensors are skipped. */
import { arm64Node } from "../support/arm64.ts";
import { TestService } from "../support/service.ts";
import type { Case } from "./_cases.ts";
import { requirePins } from "./_suite.ts";

/** Selects all cases that run inline, and of those on workers the ones that add up blocks. */
const isWanted = ({ isLarge, owner, label }: Case): boolean => !isLarge || (["lamb", "norms"].includes(owner) && label.endsWith("F32"));

// --no-liftoff compiles each kernel at once with the optimizing compiler.
requirePins("arm64", async () => TestService.start({ STEPD_WORKERS: "2" }, ["--no-liftoff"], await arm64Node(process.versions.node)), isWanted);
