/** The pinned bits come out under every major version of Node that can run the service, beside the pinned one. */
import { nodeBinary } from "../support/nodes.ts";
import { TestService } from "../support/service.ts";
import { requirePins } from "./_suite.ts";

const VERSIONS = ["24.0.0", "26.12.1"];

for (const version of VERSIONS) {
  requirePins(
    `Node ${version}`,
    async () => TestService.start({ STEPD_WORKERS: "2" }, ["--no-liftoff"], [await nodeBinary(version)]),
    ({ isLarge }) => !isLarge,
  );
}
