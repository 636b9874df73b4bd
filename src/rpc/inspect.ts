import { mappingOf } from "../codec/members.ts";
import { STATE_FORMAT } from "../engine/engine.ts";
import type { InspectParams } from "../generated/wire.gen.ts";
import type { Method } from "./method.ts";

/** Method state.inspect: lists a state's optimizer, steps, slots, dtypes and shapes, without the slots' values. */
export const inspect: Method<InspectParams> = {
  name: "state.inspect",
  summary: "Lists the contents of a state: optimizer, steps, slots with dtypes and shapes",
  params: "inspect.schema.json",
  result: "inspect-result.schema.json",
  rest: { verb: "POST", path: "/v1/state/inspect" },

  async handle(call, { engine, blobs, lease }) {
    const { state } = await blobs.load(call, lease);
    const { optimizer: base, revisions, bytes, parameters } = await engine.inspect(state, lease);
    let elements = 0;
    for (const { slots } of parameters.values()) for (const slot of slots.values()) elements += slot.elements;
    const tensors = mappingOf([...parameters], ([name, { optimizer, step, slots, scalars }]) => {
      const described = [
        ...[...slots].map(([slot, { dtype, shape }]) => [slot, { dtype, shape }] as const),
        ...Object.keys(scalars).map((slot) => [slot, { dtype: "F64", shape: [] }] as const),
      ];
      return [name, { ...(optimizer !== base && { optimizer: optimizer.name }), step, slots: Object.fromEntries(described) }] as const;
    });
    const { [base.name]: revision, ...others } = Object.fromEntries(revisions);
    return {
      format: STATE_FORMAT,
      optimizer: base.name,
      revision,
      ...(Object.keys(others).length > 0 && { revisions: others }),
      bytes,
      elements,
      tensors,
    };
  },
};
