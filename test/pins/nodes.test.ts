/** Tests the pinned bits under every major version of Node that can run the service. */
import { nodeBinary, OTHER_NODES } from "../support/nodes.ts";
import { TestService } from "../support/service.ts";
import { requirePins } from "./_suite.ts";

for (const version of OTHER_NODES) {
  requirePins(
    `Node ${version}`,
    async () => TestService.start({ STEPD_WORKERS: "2" }, ["--no-liftoff"], [await nodeBinary(version)]),
    ({ isLarge }) => !isLarge,
  );
}
