/** A network link between this machine and a network namespace on it. Token buckets limit both directions to a rate. */
import { execFileSync } from "node:child_process";
import { leftovers } from "./processes.ts";

/** The addresses are from 198.18.0.0/15, which RFC 2544 reserves for benchmarks. */
const addressOf = (index: number, end: "host" | "namespace"): string => `198.18.${index}.${end === "host" ? 1 : 2}`;

/** The bytes that a bucket passes at once, and the longest wait in it. */
const BURST = "1mb";
const LATENCY = "20ms";

const LONGEST_NAME = 200;

const run = (command: string, ...args: readonly string[]): void => void execFileSync(command, args, { stdio: ["ignore", "ignore", "pipe"] });

/** Explains why this machine cannot make a link; undefined if it can. */
export const linkFault = (): string | undefined => {
  const name = `stepd-bench-${process.pid}-try`;
  try {
    run("ip", "netns", "add", name);
    run("ip", "netns", "del", name);
    run("tc", "-V");
    return undefined;
  } catch (error) {
    const said = (error as { stderr?: Buffer }).stderr?.toString().trim() || (error as Error).message;
    return `network namespaces need Linux, root and the commands ip and tc (iproute2): ${said.slice(0, LONGEST_NAME)}`;
  }
};

export class Link implements Disposable {
  /** The address of a server in the namespace. */
  readonly address: string;
  /** The words that start a command in the namespace. */
  readonly prefix: readonly string[];
  readonly #remove: () => void;

  /** Makes a link. `rate` is in tc's units, such as 1gbit. `index` tells the links of a process apart. */
  constructor(rate: string, index: number) {
    const name = `stepd-bench-${process.pid}-${index}`;
    const [host, inner] = [`sb${process.pid}h${index}`, `sb${process.pid}n${index}`];
    const network = ((process.pid * 8 + index) % 254) + 1;
    this.address = addressOf(network, "namespace");
    this.prefix = ["ip", "netns", "exec", name];
    this.#remove = () => {
      leftovers.delete(this.#remove);
      // The devices of a namespace go with it.
      for (const args of [
        ["link", "del", host],
        ["netns", "del", name],
      ])
        try {
          run("ip", ...args);
        } catch {
          // It does not exist: the constructor has failed before.
        }
    };
    leftovers.add(this.#remove);
    const inside = (command: string, ...args: readonly string[]): void => run("ip", "netns", "exec", name, command, ...args);
    const limit = (device: string) => ["qdisc", "add", "dev", device, "root", "tbf", "rate", rate, "burst", BURST, "latency", LATENCY];
    run("ip", "netns", "add", name);
    run("ip", "link", "add", host, "type", "veth", "peer", "name", inner);
    run("ip", "link", "set", inner, "netns", name);
    run("ip", "addr", "add", `${addressOf(network, "host")}/24`, "dev", host);
    run("ip", "link", "set", host, "up");
    inside("ip", "addr", "add", `${this.address}/24`, "dev", inner);
    inside("ip", "link", "set", inner, "up");
    inside("ip", "link", "set", "lo", "up");
    run("tc", ...limit(host));
    inside("tc", ...limit(inner));
  }

  [Symbol.dispose](): void {
    this.#remove();
  }
}
