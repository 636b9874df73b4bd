/** Checks the types of arguments before the client sends anything. The server checks their values. */
import { State } from "./state.ts";

/** Returns a short value as text, and the class of any other value, for an error message. */
export const describeValue = (value: unknown): string => {
  if (value === null || typeof value !== "object") return typeof value === "string" ? JSON.stringify(value.slice(0, 60)) : String(value);
  return (value as { constructor?: { name?: string } }).constructor?.name ?? "an object";
};

const expected = (field: string, what: string, value: unknown): TypeError => new TypeError(`${field}: expected ${what}, found ${describeValue(value)}`);

/** Returns false for promises (a forgotten await), Maps and Sets. Without own properties they would pass as empty objects. */
export const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" &&
  value !== null &&
  !ArrayBuffer.isView(value) &&
  !(Symbol.iterator in value) &&
  typeof (value as { then?: unknown }).then !== "function";

export const requireObject = (field: string, value: unknown, what: string): void => {
  if (!isObject(value)) throw expected(field, what, value);
};

/** Rejects unknown option names, which would have no effect, and a bare AbortSignal, which has no own properties. */
export const requireOptions = (options: unknown, known: Readonly<Record<string, true>>): void => {
  const names = Object.keys(known).join(", ");
  if (!isObject(options) || options instanceof AbortSignal) throw expected("options", `an object with some of ${names}`, options);
  const unknown = Object.keys(options).find((name) => !Object.hasOwn(known, name));
  if (unknown !== undefined) throw expected("options", `some of ${names}`, unknown);
};

/** No tensor may have one of these names: safetensors reserves the first, and the second is special in JavaScript. */
const RESERVED_NAMES = ["__metadata__", "__proto__"];

export const requireTensors = (field: string, value: unknown): void => {
  if (!isObject(value)) throw expected(field, "tensors by name, such as { w: { shape: [2], data: Float32Array.of(1, 2) } }", value);
  for (const [name, tensor] of Object.entries(value)) {
    if (RESERVED_NAMES.includes(name)) throw new TypeError(`${field}: no tensor can be called ${name}, which is reserved`);
    if (!isWellFormed(name)) throw new TypeError(`${field}: the name ${JSON.stringify(name)} has a lone surrogate, which UTF-8 cannot express`);
    if (!isObject(tensor)) throw expected(`${field}: tensor ${JSON.stringify(name)}`, "{ shape, data }", tensor);
  }
};

/** Some browsers lack String.prototype.isWellFormed. */
const isWellFormed = (text: string): boolean => !/\p{Surrogate}/u.test(text);

export const requireState = (value: unknown): void => {
  if (!(value instanceof State || value instanceof Uint8Array)) throw expected("state", "a State or the bytes of one", value);
};

export const requireName = (field: string, value: unknown): void => {
  if (typeof value !== "string" || value === "") throw expected(field, "a name", value);
};

const OPTIMIZER = 'an optimizer such as { name: "adamw", lr: 1e-3 }';

/** These options of a step must be objects. */
const OBJECT_OPTIONS = ["slices", "schedule", "clip", "stochastic_rounding", "reply"];

/** Checks all arguments of a call except its tensors and state. */
export const requireSettings = (settings: object): void => {
  const { optimizer, groups, ...rest } = settings as Readonly<Record<string, unknown>>;
  requireObject("optimizer", optimizer, OPTIMIZER);
  if (groups !== undefined && !Array.isArray(groups)) throw expected("groups", "a list of groups", groups);
  for (const [index, group] of ((groups ?? []) as readonly unknown[]).entries())
    requireObject(`groups[${index}]`, group, 'a group such as { tensors: ["*.bias"], optimizer: { weight_decay: 0 } }');
  for (const name of OBJECT_OPTIONS) if (rest[name] !== undefined) requireObject(name, rest[name], "an object");
};

/** Checks all arguments of a step. */
export const requireStep = (input: unknown): void => {
  requireObject("step", input, "an object with optimizer, params, grads and state");
  const { params, grads, reduce, state, cached: _, ...settings } = input as Record<string, unknown>;
  requireSettings(settings);
  if (params !== undefined) requireTensors("params", params);
  if (reduce === undefined) requireTensors("grads", grads);
  else if (grads !== undefined) throw new TypeError(`grads: expected none beside reduce, found ${describeValue(grads)}`);
  if (state !== undefined && state !== null) requireState(state);
};
