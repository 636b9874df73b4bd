/** Measures the peak resident memory of a server that steps 16 Mi parameters, and compares it with the size of a request. */
import { ARENA_MIB, stepRequest } from "./bodies.ts";
import { RawClient } from "./client.ts";
import { Server } from "./processes.ts";
import type { Ratio, Report, Setup } from "./rounds.ts";

const ELEMENTS = 2 ** 24;
const REQUESTS = 6;
const MIB = 2 ** 20;

/** The goal for the peak: idle memory + GOAL_TIMES * request size + GOAL_MIB. */
const GOAL_MIB = 110;
const GOAL_TIMES = 1.1;

const RUNS = 3;

export const benchMemory = async ({ bar, python }: Setup): Promise<Report> => {
  const large = stepRequest(ELEMENTS);
  const small = stepRequest(1000);
  const requestMib = large.body.length / MIB;
  const kinds: { name: string; start: () => Promise<Server> }[] = [{ name: "stepd", start: () => Server.stepd({ STEPD_ARENA_MIB: ARENA_MIB }) }];
  if (python !== undefined) {
    for (const form of ["functional", "object"] as const) kinds.push({ name: `FastAPI, ${form}`, start: () => Server.fastapi(python, form, 2) });
  }
  bar.begin("memory", kinds.length * RUNS * REQUESTS);
  const rows: string[][] = [];
  const ratios: Ratio[] = [];
  for (const { name, start } of kinds) {
    const runs: { idle: number; first: number; peak: number }[] = [];
    for (let run = 0; run < RUNS; run++) {
      await using server = await start();
      using client = await RawClient.connect(server.address);
      await client.request(small.head, small.body);
      const idle = server.memory("VmRSS") / MIB;
      let first = 0;
      for (let i = 0; i < REQUESTS; i++) {
        await client.request(large.head, large.body);
        if (i === 0) first = server.memory("VmHWM") / MIB;
        bar.tick();
      }
      runs.push({ idle, first, peak: server.memory("VmHWM") / MIB });
    }
    const worst = runs.reduce((a, b) => (a.peak - a.idle >= b.peak - b.idle ? a : b));
    const least = runs.reduce((a, b) => (a.peak - a.idle <= b.peak - b.idle ? a : b));
    const times = ({ idle, peak }: { idle: number; peak: number }): number => Number(((peak - idle) / requestMib).toFixed(3));
    rows.push([
      name,
      ...[worst.idle, worst.first, worst.peak].map((value) => value.toFixed(0)),
      times(worst).toFixed(2),
      (worst.peak - worst.idle - GOAL_TIMES * requestMib).toFixed(0),
    ]);
    const ratioName = `memory of ${name} above idle / request`;
    ratios.push({
      name: ratioName,
      median: times(worst),
      min: times(least),
      ...(name === "stepd" ? { goal: Number((GOAL_TIMES + GOAL_MIB / requestMib).toFixed(3)) } : {}),
    });
  }
  return {
    title: `Resident memory in MiB, ${REQUESTS} requests of ${requestMib.toFixed(0)} MiB in a row`,
    figures: `the worst of ${RUNS} runs`,
    head: ["server", "idle", "peak after 1", "peak", "above idle / request", "above idle + 1.1 requests"],
    rows,
    ratios,
  };
};
