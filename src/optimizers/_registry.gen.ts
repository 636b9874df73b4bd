// DO NOT EDIT: written by `npm run generate`.
import type { OptimizerDefinition } from "./_define.ts";
import adabelief from "./adabelief.ts";
import adadelta from "./adadelta.ts";
import adafactor from "./adafactor.ts";
import adagrad from "./adagrad.ts";
import adam from "./adam.ts";
import adamax from "./adamax.ts";
import adamw from "./adamw.ts";
import adan from "./adan.ts";
import ademamix from "./ademamix.ts";
import adopt from "./adopt.ts";
import asgd from "./asgd.ts";
import lamb from "./lamb.ts";
import lars from "./lars.ts";
import lion from "./lion.ts";
import muon from "./muon.ts";
import nadam from "./nadam.ts";
import prodigy from "./prodigy.ts";
import qhadam from "./qhadam.ts";
import qhadamw from "./qhadamw.ts";
import qhm from "./qhm.ts";
import radam from "./radam.ts";
import rmsprop from "./rmsprop.ts";
import rprop from "./rprop.ts";
import schedule_free_adamw from "./schedule_free_adamw.ts";
import schedule_free_sgd from "./schedule_free_sgd.ts";
import sgd from "./sgd.ts";
import signum from "./signum.ts";
import yogi from "./yogi.ts";

/** All optimizers by name. */
export const registry: ReadonlyMap<string, OptimizerDefinition> = new Map(
  ([adabelief, adadelta, adafactor, adagrad, adam, adamax, adamw, adan, ademamix, adopt, asgd, lamb, lars, lion, muon, nadam, prodigy, qhadam, qhadamw, qhm, radam, rmsprop, rprop, schedule_free_adamw, schedule_free_sgd, sgd, signum, yogi] as unknown as readonly OptimizerDefinition[]).map((definition) => [definition.name, definition]),
);
