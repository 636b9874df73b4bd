/** Reads /metrics, and waits for expected values, because the service counts a call shortly after it has sent the last byte. */
import assert from "node:assert/strict";
import { setTimeout as delay } from "node:timers/promises";
import type { TestService } from "../support/service.ts";

const WAIT_MS = 30_000;

export const exposition = async (service: Pick<TestService, "url" | "admin">): Promise<string> =>
  (await fetch(`${service.admin ?? service.url}/metrics`, { headers: { Connection: "close" } })).text();

/** Returns the values by series, named as in the exposition: name{label="value",...}. */
export const seriesOf = (text: string): ReadonlyMap<string, number> =>
  new Map(
    text
      .split("\n")
      .filter((line) => line !== "" && !line.startsWith("#"))
      .map((line) => [line.slice(0, line.lastIndexOf(" ")), Number(line.slice(line.lastIndexOf(" ") + 1))]),
  );

/** The changes of metrics since a point in time. */
export class Changes {
  readonly #service: Pick<TestService, "url" | "admin">;
  #before: ReadonlyMap<string, number>;

  private constructor(service: Pick<TestService, "url" | "admin">, before: ReadonlyMap<string, number>) {
    this.#service = service;
    this.#before = before;
  }

  static async from(service: Pick<TestService, "url" | "admin">): Promise<Changes> {
    return new Changes(service, seriesOf(await exposition(service)));
  }

  /** Returns the change of each series. Omits unchanged series. */
  async now(): Promise<Readonly<Record<string, number>>> {
    const now = seriesOf(await exposition(this.#service));
    return Object.fromEntries([...now].map(([series, value]) => [series, value - (this.#before.get(series) ?? 0)] as const).filter(([, by]) => by !== 0));
  }

  /**
   * Waits until each series has changed by exactly the given amount (0: not at all), and then counts from there. Returns all
   * changes.
   */
  async become(expected: Readonly<Record<string, number>>): Promise<Readonly<Record<string, number>>> {
    const deadline = performance.now() + WAIT_MS;
    for (;;) {
      const all = await this.now();
      const found = Object.fromEntries(Object.keys(expected).map((series) => [series, all[series] ?? 0]));
      const isThere = Object.entries(expected).every(([series, by]) => found[series] === by);
      if (isThere || performance.now() > deadline) {
        assert.deepEqual(found, expected);
        this.#before = seriesOf(await exposition(this.#service));
        return all;
      }
      await delay(10);
    }
  }
}

// These functions return names of series in the exposition.
export const requestSeries = (method: string, outcome: string): string => `stepd_request_seconds_count{method="${method}",outcome="${outcome}"}`;
export const phaseSeries = (phase: string): string => `stepd_phase_seconds_count{phase="${phase}"}`;
export const phaseSecondsSeries = (phase: string): string => `stepd_phase_seconds_sum{phase="${phase}"}`;
export const byteSeries = (direction: "in" | "out"): string => `stepd_bytes_total{direction="${direction}"}`;
export const elementSeries = (optimizer: string, dtype: string): string => `stepd_elements_total{optimizer="${optimizer}",dtype="${dtype}"}`;
export const refusalSeries = (reason: string, limit = "server"): string =>
  `stepd_refusals_total{reason="${reason}"${["OVERLOADED", "PAYLOAD_TOO_LARGE"].includes(reason) ? `,limit="${limit}"` : ""}}`;
