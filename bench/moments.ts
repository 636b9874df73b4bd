/** Measures a whole AdamW step over TCP with moments in F32, BF16 and Q8. Narrow moments save bytes and cost arithmetic. */
import { unpack } from "msgpackr";
import { ARENA_MIB, stepBlobs, stepRequest } from "./bodies.ts";
import { RawClient } from "./client.ts";
import { Server } from "./processes.ts";
import { legend, msText, type Ratio, type Report, race, ratioOf, repeatedContender, type Setup, sizeName } from "./rounds.ts";

const GAP_MS = 100;
const SIZES = [
  { elements: 2 ** 20, repetitions: 15 },
  { elements: 2 ** 24, repetitions: 4 },
];
const FORMATS = ["F32", "BF16", "Q8"] as const;

/** The goal: a step with narrow moments takes at most the time of F32. */
const GOAL = 1;

export const benchMoments = async (setup: Setup): Promise<Report> => {
  await using stack = new AsyncDisposableStack();
  const service = stack.use(await Server.stepd({ STEPD_ARENA_MIB: ARENA_MIB }));
  const client = stack.use(await RawClient.connect(service.address));
  const rows: string[][] = [];
  const ratios: Ratio[] = [];
  for (const { elements, repetitions } of SIZES) {
    const { params, grads } = stepBlobs(elements);
    const contenders = [];
    const bytes = new Map<string, number>();
    for (const format of FORMATS) {
      const call = { optimizer: { name: "adamw", lr: 1e-3, state_dtype: format }, params, grads };
      const first = stepRequest(0, { ...call, state: null });
      const { result } = unpack(await client.read(first.head, first.body)) as { readonly result: { readonly state: Buffer } };
      const { head, body } = stepRequest(0, { ...call, state: result.state });
      bytes.set(format, body.length + (await client.request(head, body)));
      contenders.push(repeatedContender(format, repetitions, () => client.request(head, body)));
    }
    const figuresOf = await race(`moments, ${sizeName(elements)}`, contenders, GAP_MS, setup);
    for (const format of FORMATS) {
      const result = ratioOf(`step of ${sizeName(elements)}, moments in ${format} / F32`, figuresOf(format), figuresOf("F32"), GOAL);
      if (format !== "F32") ratios.push(result);
      rows.push([
        sizeName(elements),
        format,
        ((bytes.get(format) ?? 0) / elements).toFixed(1),
        result.median.toFixed(2),
        result.min.toFixed(2),
        msText(figuresOf(format)),
      ]);
    }
  }
  return {
    title: "Moments in narrow formats: a whole AdamW step over TCP",
    figures: legend(setup.rounds),
    head: ["parameters", "moments", "bytes in + out per parameter", "ratio", "of minima", "ms"],
    rows,
    ratios,
  };
};
