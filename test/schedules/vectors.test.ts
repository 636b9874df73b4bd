/** Compares schedules with those of torch and optax, through the running service. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after, before, test } from "node:test";
import { registry } from "../../src/schedules/registry.ts";
import { TestService } from "../support/service.ts";

interface Case {
  readonly scheduler: string;
  readonly args: Readonly<Record<string, unknown>>;
  readonly base_lr: number | null;
  readonly source: { readonly package: string; readonly version: string };
  readonly lrs: readonly number[];
  readonly momentums?: readonly number[];
  readonly metrics?: readonly number[];
}

interface Reply {
  readonly lrs: readonly number[];
  readonly momentums?: readonly (number | null)[];
}

const { cases } = JSON.parse(readFileSync(new URL("../vectors/schedules/lr_schedules.json", import.meta.url), "utf8")) as { cases: readonly Case[] };

const TORCH: Readonly<Record<string, string>> = {
  ConstantLR: "constant",
  StepLR: "step",
  MultiStepLR: "multistep",
  ExponentialLR: "exponential",
  LinearLR: "linear",
  PolynomialLR: "polynomial",
  CosineAnnealingLR: "cosine",
  CosineAnnealingWarmRestarts: "cosine_warm_restarts",
  OneCycleLR: "one_cycle",
  CyclicLR: "cyclic",
};

interface Expressed {
  readonly schedule: object;
  readonly lr: number;
}

/** Translations of peers' schedules whose name or arguments differ from torch's. */
const TRANSLATIONS: Readonly<Record<string, (args: never, lr: number) => Expressed>> = {
  SequentialLR: ({ schedulers, milestones }: { schedulers: { scheduler: string; args: object }[]; milestones: number[] }, lr) => ({
    schedule: { name: "sequence", schedules: schedulers.map(({ scheduler, args }) => ({ name: TORCH[scheduler], ...args })), milestones },
    lr,
  }),
  GoyalGradualWarmup: (args: { k: number; warmup_iters: number; milestones: number[]; gamma: number }, lr) => ({
    schedule: {
      name: "sequence",
      schedules: [
        { name: "linear", start_factor: 1 / args.k, total_iters: args.warmup_iters },
        { name: "multistep", milestones: args.milestones.map((milestone) => milestone - args.warmup_iters), gamma: args.gamma },
      ],
      milestones: [args.warmup_iters],
    },
    lr,
  }),
  // optax stays at end_value, while torch's cosine would rise again. So a constant schedule follows.
  "optax.warmup_cosine_decay_schedule": (args: { init_value: number; peak_value: number; warmup_steps: number; decay_steps: number; end_value: number }) => ({
    schedule: {
      name: "sequence",
      schedules: [
        { name: "linear", start_factor: args.init_value / args.peak_value, total_iters: args.warmup_steps },
        { name: "cosine", T_max: args.decay_steps - args.warmup_steps, eta_min: args.end_value },
        { name: "constant", factor: args.end_value / args.peak_value, total_iters: null },
      ],
      milestones: [args.warmup_steps, args.decay_steps],
    },
    lr: args.peak_value,
  }),
  ChainedScheduler: ({ schedulers }: { schedulers: { scheduler: string; args: object }[] }, lr) => ({
    schedule: { name: "chained", schedules: schedulers.map(({ scheduler, args }) => ({ name: TORCH[scheduler], ...args })) },
    lr,
  }),
  "transformers.get_inverse_sqrt_schedule": (args: { num_warmup_steps: number; timescale: number | null }, lr) => ({
    schedule: { name: "inverse_sqrt", warmup_steps: args.num_warmup_steps, timescale: args.timescale },
    lr,
  }),
  "transformers.get_cosine_schedule_with_warmup": (args: { num_warmup_steps: number; num_training_steps: number }, lr) => ({
    schedule: { name: "warmup_cosine", warmup_steps: args.num_warmup_steps, total_steps: args.num_training_steps },
    lr,
  }),
  "transformers.get_wsd_schedule": (
    args: { num_warmup_steps: number; num_stable_steps: number; num_decay_steps: number; decay_type: string; min_lr_ratio: number },
    lr,
  ) => ({
    schedule: {
      name: "warmup_stable_decay",
      warmup_steps: args.num_warmup_steps,
      stable_steps: args.num_stable_steps,
      decay_steps: args.num_decay_steps,
      decay_type: args.decay_type,
      min_lr_ratio: args.min_lr_ratio,
    },
    lr,
  }),
  LambdaLR: ({ factors }: { factors: number[] }, lr) => ({ schedule: { name: "table", lrs: factors.map((factor) => lr * factor) }, lr: 1 }),
  "optax.linear_schedule": (args: { init_value: number; end_value: number; transition_steps: number }) => ({
    schedule: { name: "linear", start_factor: 1, end_factor: args.end_value / args.init_value, total_iters: args.transition_steps },
    lr: args.init_value,
  }),
  // Only a schedule with end_value 0 can be translated, because torch has no polynomial with another end.
  "optax.polynomial_schedule": (args: { init_value: number; end_value: number; power: number; transition_steps: number }) => {
    assert.equal(args.end_value, 0);
    return { schedule: { name: "polynomial", power: args.power, total_iters: args.transition_steps }, lr: args.init_value };
  },
  "optax.exponential_decay": (args: { init_value: number; transition_steps: number; decay_rate: number }) => ({
    schedule: { name: "exponential", gamma: args.decay_rate ** (1 / args.transition_steps) },
    lr: args.init_value,
  }),
};

const express = ({ scheduler, args, base_lr }: Case): Expressed | undefined => {
  const name = TORCH[scheduler];
  if (name) return { schedule: { name, ...args }, lr: base_lr as number };
  return TRANSLATIONS[scheduler]?.(args as never, base_lr ?? 0);
};

const requireClose = (found: readonly (number | null)[], expected: readonly number[], what: string): void => {
  assert.equal(found.length, expected.length);
  for (const [step, value] of expected.entries()) {
    const error = Math.abs((found[step] ?? Number.NaN) - value);
    assert.ok(error <= 1e-12 * Math.abs(value) + 1e-15, `${what} of step ${step}: ${found[step]}, not ${value}`);
  }
};

let service: TestService;
before(async () => {
  service = await TestService.start();
});
after(() => service[Symbol.asyncDispose]());

for (const given of cases.filter(({ metrics }) => !metrics)) {
  test(`${given.scheduler} ${JSON.stringify(given.args)} agrees with ${given.source.package} ${given.source.version}`, async () => {
    const call = express(given);
    assert.ok(call, "this schedule is not expressed");
    const reply = await service.call<Reply>("schedule.evaluate", { ...call, count: given.lrs.length });
    requireClose(reply.lrs, given.lrs, "lr");
    if (given.momentums) requireClose(reply.momentums ?? [], given.momentums, "momentum");
    else assert.ok(!("momentums" in reply));
  });
}

test("ReduceLROnPlateau is left to the caller, because it needs a metric", async () => {
  const plateau = cases.find(({ metrics }) => metrics);
  assert.equal(plateau?.scheduler, "ReduceLROnPlateau");
  await assert.rejects(service.call("schedule.evaluate", { schedule: { name: "plateau" } }), { message: /one of chained, constant, .*found "plateau"/ });
  // The caller computes each lr from its metric. A constant schedule with factor 1 returns the lr unchanged.
  for (const lr of new Set(plateau.lrs)) {
    assert.deepEqual(await service.call("schedule.evaluate", { schedule: { name: "constant", factor: 1 }, lr, from: 17 }), { lrs: [lr] });
  }
});

test("every schedule has a vector", () => {
  const named = new Set(cases.map(express).flatMap((call) => [...JSON.stringify(call ?? {}).matchAll(/"name":"(\w+)"/g)].map(([, name]) => name)));
  assert.deepEqual([...named].sort(), [...registry.keys()].sort());
});

test("warmup_cosine has the rates of optax, too", async () => {
  const given = cases.find(({ scheduler }) => scheduler === "optax.warmup_cosine_decay_schedule") as Case;
  const { init_value, peak_value, warmup_steps, decay_steps, end_value } = given.args as Record<string, number>;
  const schedule = { name: "warmup_cosine", warmup_steps, total_steps: decay_steps, start_factor: Number(init_value) / Number(peak_value), eta_min: end_value };
  const { lrs } = await service.call<Reply>("schedule.evaluate", { schedule, lr: peak_value, count: given.lrs.length });
  requireClose(lrs, given.lrs, "lr");
});
