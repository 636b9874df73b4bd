/** Runs a method with the receipt that its call asks for. */
import { inTurns } from "../codec/turns.ts";
import { filePieces, type StepOutput } from "../engine/engine.ts";
import type { Optimizer, ReceiptOption, StepParams, Update } from "../generated/wire.gen.ts";
import { registry } from "../optimizers/registry.ts";
import type { ReceiptDraft, Receipts } from "../receipts/receipts.ts";

/** The fields of calls that are no options, and those whose optimizers are completed. */
interface Call extends Partial<Pick<StepParams, "params" | "grads" | "state" | "reply" | "groups">> {
  readonly receipt?: ReceiptOption;
  readonly optimizer?: Optimizer;
  readonly accumulator?: unknown;
  readonly updates?: readonly Update[];
  readonly reduce?: Call;
}

/** Begins the receipt of a call. Returns undefined for a call without one. */
export const beginReceipt = (method: string, call: Call, receipts: Receipts): ReceiptDraft | undefined => {
  if (!call.receipt) return undefined;
  const { receipt, optimizer, groups = [] } = call;
  const names = [optimizer, ...groups.map((group) => group.optimizer)].flatMap((given) => (given as { name?: string } | undefined)?.name ?? []);
  const revisions = Object.fromEntries(names.map((name) => [name, registry.get(name)?.revision ?? 0]));
  return receipts.begin({ method, options: optionsOf(call), revisions, part: receipt === true ? undefined : receipt });
};

/** Returns a call without its blobs. Its optimizers have all their hyperparameters, because a later version may have other defaults. */
const optionsOf = ({ params: _, grads: _g, state: _s, accumulator: _a, reply: _r, receipt: _i, ...call }: Call): Readonly<Record<string, unknown>> => ({
  ...call,
  ...(call.optimizer && { optimizer: completed(call.optimizer) }),
  ...(call.groups && { groups: call.groups.map((group) => ({ ...group, optimizer: completed(group.optimizer) })) }),
  ...(call.updates && { updates: call.updates.map(({ weight = 1 }) => ({ weight })) }),
  ...(call.reduce && { reduce: optionsOf(call.reduce) }),
});

/** Adds the defaults of an optimizer. A group without a name inherits from the call's optimizer instead. */
const completed = (given: { readonly name?: string | undefined }): Readonly<Record<string, unknown>> => {
  const hyperparameters = given.name === undefined ? {} : (registry.get(given.name)?.hyperparameters ?? {});
  const defaults = Object.entries(hyperparameters).map(([name, { default: initial }]) => [name, initial]);
  return { ...Object.fromEntries(defaults), ...given };
};

/** Hashes the results of a step for its receipt. */
export const stepDigests = async (draft: ReceiptDraft, { files: { params, rounded }, state }: StepOutput): Promise<Readonly<Record<string, string>>> => {
  draft.addOutput("params", await inTurns(filePieces(params)));
  if (rounded) draft.addOutput("rounded_params", await inTurns(filePieces(rounded)));
  draft.addOutput("state", state.pieces);
  return draft.outputs();
};
