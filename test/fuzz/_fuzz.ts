/** Runs a target on inputs that change at random, and keeps the inputs that reach new code: coverage-guided fuzzing. */
import { mutate, Random } from "./_mutate.ts";
import type { Target } from "./targets.ts";

/** Inputs have at most this many bytes. */
const MOST_BYTES = 2048;
/** An input takes at most this long. */
const MOST_MS = 25;
/** An input that takes this much longer than all before runs again, because other programs may have held the processor. */
const SLOWER = 1.2;
const REPEATS = 3;

export interface Options {
  readonly corpus: readonly Uint8Array[];
  /** The run ends after this time, in ms. */
  readonly ms: number;
  readonly seed: number;
}

export interface Outcome {
  readonly executions: number;
  /** The inputs that together reach all the code that was reached. */
  readonly corpus: readonly Uint8Array[];
  /** The number of branches that were reached. */
  readonly branches: number;
  readonly slowestMs: number;
  /** The input that failed, with the error. */
  readonly failure?: { readonly input: Uint8Array; readonly error: unknown };
}

/** Counts fall into classes, so that a loop with one round more is not new code: 1, 2, 3, 4 to 7, 8 to 15, 16 to 31, 32 to 127, more. */
const CLASSES = Uint8Array.from({ length: 256 }, (_, count) => {
  if (count < 4) return [0, 1, 2, 4][count] as number;
  return count < 8 ? 8 : count < 16 ? 16 : count < 32 ? 32 : count < 128 ? 64 : 128;
});

const STACK_LINES = 10;

/** Returns the error of a function, with its stack. */
const errorOf = (run: () => void): unknown => {
  Error.stackTraceLimit = STACK_LINES;
  try {
    run();
  } catch (error) {
    return error;
  }
  return undefined;
};

export const fuzz = ({ seeds, words, run }: Target, counts: Uint8Array, { corpus: known, ms, seed }: Options): Outcome => {
  const random = new Random(seed);
  const corpus: Uint8Array[] = [];
  const reached = new Uint8Array(counts.length);
  const groups = new Float64Array(counts.buffer, counts.byteOffset, counts.length / 8);
  let executions = 0;
  let slowestMs = 0;

  /** Runs an input, and returns true if it reaches new code. */
  const attempt = (input: Uint8Array): boolean => {
    counts.fill(0);
    const copy = Buffer.from(input);
    const start = performance.now();
    run(copy);
    let took = performance.now() - start;
    executions++;
    let isNew = false;
    for (let group = 0; group < groups.length; group++) {
      if (groups[group] === 0) continue;
      for (let at = 8 * group; at < 8 * group + 8; at++) {
        const bits = CLASSES[counts[at] as number] as number;
        if ((bits & ~(reached[at] as number)) === 0) continue;
        reached[at] = (reached[at] as number) | bits;
        isNew = true;
      }
    }
    for (let again = 0; took > SLOWER * slowestMs && again < REPEATS; again++) {
      const restart = performance.now();
      run(Buffer.from(input));
      took = Math.min(took, performance.now() - restart);
    }
    // Inputs that grow from a slow one may be slower still.
    if (took > SLOWER * slowestMs) {
      slowestMs = took;
      isNew = true;
    }
    if (took > MOST_MS) throw new Error(`an input of ${input.length} bytes took ${took.toFixed(1)} ms, more than ${MOST_MS}`);
    return isNew;
  };

  const outcome = (): Outcome => ({ executions, corpus, branches: reached.reduce((sum, bits) => sum + (bits === 0 ? 0 : 1), 0), slowestMs });
  const end = performance.now() + ms;
  const waiting = [...seeds, ...known];
  for (;;) {
    const input = waiting.shift() ?? mutate(random.of(corpus), corpus, words, random, MOST_BYTES);
    // Most inputs are refused, and a refusal's stack takes most of its time.
    Error.stackTraceLimit = 0;
    try {
      if (attempt(input) || corpus.length === 0) corpus.push(Uint8Array.from(input));
    } catch (error) {
      return { ...outcome(), failure: { input, error: errorOf(() => run(Buffer.from(input))) ?? error } };
    } finally {
      Error.stackTraceLimit = STACK_LINES;
    }
    if (waiting.length === 0 && executions % 64 === 0 && performance.now() > end) return outcome();
  }
};
