/** Starts a stepd container, hardened as in production: read-only root file system, no capabilities, no new privileges. */
import { GenericContainer, Wait } from "testcontainers";
import type { Engine } from "./_engine.ts";

const PORT = 8080;
const START_MS = 60_000;

export class ServiceContainer extends GenericContainer {
  constructor(engine: Engine, image: string, network: string) {
    super(image);
    const [name = "", value = ""] = engine.label.split("=");
    this.withLabels({ [name]: value });
    this.withNetworkMode(network);
    this.withExposedPorts(PORT);
    this.withWaitStrategy(Wait.forHttp("/health/ready", PORT));
    this.withStartupTimeout(START_MS);
    this.withDroppedCapabilities("ALL");
    this.withSecurityOpt("no-new-privileges");
    this.hostConfig.ReadonlyRootfs = true;
  }

  /** Publishes the service on a fixed port of the host. The port stays the same across restarts. */
  withHostPort(host: number): this {
    this.exposedPorts = [];
    return this.withExposedPorts({ container: PORT, host });
  }
}
