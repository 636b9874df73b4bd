/** Opens everything that the settings name, as a start does, and describes what the service would do. It serves no call and changes nothing. */
import { existsSync } from "node:fs";
import { type Config, ConfigError } from "./config.ts";
import { makeArena, openFolder, readCertificates, readReceiptKey, readTokens, startPool } from "./inputs.ts";
import { isFree, placeOfAdmin, placeOfCalls } from "./listen.ts";
import { PAGE } from "./service.ts";

export interface Check {
  /** The facts by title, for instance "tokens" and "2 tokens of 1 caller". */
  readonly facts: readonly (readonly [title: string, fact: string])[];
  readonly warnings: readonly string[];
  /** The errors that would prevent a start, one line each. */
  readonly problems: readonly string[];
}

const plural = (count: number, noun: string): string => `${count} ${noun}${count === 1 ? "" : "s"}`;

export const check = async (config: Config): Promise<Check> => {
  const warnings: string[] = [];
  const problems: string[] = [];
  const facts: (readonly [string, string])[] = [];
  /** Adds the fact that a function returns, or the problem that it throws. A part that is broken does not hide the others. */
  const add = async (title: string, read: () => string | Promise<string>): Promise<void> => {
    try {
      facts.push([title, await read()]);
    } catch (error) {
      if (!(error instanceof ConfigError)) throw error;
      problems.push(error.message);
    }
  };
  await add("calls", async () => {
    const scheme = config.tlsCertFile === "" ? "http" : "https";
    const address = config.socket === "" ? `${scheme}://${hostText(config.host)}:${config.port}` : `unix:${config.socket}`;
    return `${address}${inUse(await isFree(placeOfCalls(config)))}`;
  });
  await add("admin", async () => {
    const place = placeOfAdmin(config);
    if (!place) return "none; the port of the calls has /metrics";
    return `http://${hostText(config.adminHost)}:${config.adminPort}${inUse(await isFree(place))}`;
  });
  await add("memory", async () => {
    const arena = makeArena(config);
    await using pool = await startPool(config, arena, () => {});
    return `arena of ${config.arenaMib} MiB, ${plural(pool.workers, "worker")}, ${pool.kernelNames.length} kernels, up to ${config.maxJsonMib} MiB of JSON`;
  });
  await add("cache", () => (config.cacheMib === 0 ? "off" : `${Math.min(config.cacheMib, config.arenaMib)} MiB of the arena`));
  await add("tokens", () => {
    using tokens = readTokens(config, () => {});
    if (!tokens) return "none; every caller is served";
    if (tokens.warning) warnings.push(tokens.warning);
    const { tokens: count, limits } = tokens.facts;
    const limited = Object.entries(limits).map(
      ([name, values]) =>
        `${name} ${Object.entries(values)
          .map(([limit, value]) => `${limit}=${value}`)
          .join(" ")}`,
    );
    return [`${plural(count, "token")} of ${plural(tokens.identities.length, "caller")}`, ...limited].join("; ");
  });
  await add("TLS", () => {
    const tls = readCertificates(config);
    if (!tls) return "off";
    for (const { file, subject, validFrom, validTo } of tls.certificates) {
      const name = `${file} ${JSON.stringify(subject)}`;
      if (validTo.getTime() <= Date.now()) warnings.push(`the ${name} has expired, on ${validTo.toISOString()}`);
      else if (validFrom.getTime() > Date.now()) warnings.push(`the ${name} is not valid before ${validFrom.toISOString()}`);
    }
    const [{ subject, validTo } = { subject: "", validTo: new Date(0) }] = tls.certificates;
    const authorities = tls.certificates.filter(({ file }) => file === "client_ca").length;
    const clients =
      authorities === 0 ? "callers need no certificate" : `callers need a certificate of ${authorities === 1 ? "an authority" : `${authorities} authorities`}`;
    return `${JSON.stringify(subject)}, valid until ${validTo.toISOString()}; ${clients}`;
  });
  await add("traces", () => (config.otlpUrl === "" ? "off" : `to ${config.otlpUrl}v1/traces`));
  await add("receipts", () => {
    const key = readReceiptKey(config);
    return key ? `signed with the key ${key.name}` : "not signed";
  });
  await add("shared folder", () => (openFolder(config) ? config.sharedDir : "none"));
  await add("page", () => (config.page === "on" && existsSync(PAGE) ? "at /" : "none"));
  return { facts, warnings, problems };
};

const hostText = (host: string): string => (host.includes(":") ? `[${host}]` : host);

const inUse = (isFree: boolean): string => (isFree ? "" : ", in use now");
