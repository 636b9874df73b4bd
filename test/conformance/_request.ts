/** The request of a conformance case, and the tensors that most cases use. */

export interface Call {
  readonly method: string;
  readonly params: Readonly<Record<string, unknown>>;
}

export interface Request extends Call {
  /** The name of the case's file in cases/. */
  readonly file: string;
  readonly about: string;
  /**
   * The server that the case needs: with a cache and a shared folder, or without both. Absent if the answer is the same on
   * both.
   */
  readonly server?: "storing" | "bare";
  /** The contents of the shared folder before the call, in base64. */
  readonly files?: Readonly<Record<string, string>>;
  /** The calls to make before this call. */
  readonly before?: readonly Call[];
}

export interface Answer {
  readonly result?: Readonly<Record<string, unknown>>;
  readonly error?: Readonly<Record<string, unknown>>;
}

export type Ask = (method: string, params: Request["params"]) => Promise<Answer>;

export const params = {
  "layer.weight": { shape: [2, 3], dtype: "F32", values: [0.5, -1.25, 2, -0.0625, 3.5, -4] },
  "layer/bias": { shape: [2], dtype: "F32", values: [0, 1.5] },
  größe: { shape: [], dtype: "F32", values: [0.75] },
};
export const grads = {
  "layer.weight": { shape: [2, 3], dtype: "F32", values: [0.25, -0.5, 0.125, 1, 0, 2] },
  "layer/bias": { shape: [2], dtype: "F32", values: [-0.75, 0.00390625] },
  größe: { shape: [], dtype: "F32", values: [-1.5] },
};
export const secondGrads = {
  "layer.weight": { shape: [2, 3], dtype: "F32", values: [-0.5, 0.0625, 1, -1, 0.5, 0.25] },
  "layer/bias": { shape: [2], dtype: "F32", values: [0.375, -2] },
  größe: { shape: [], dtype: "F32", values: [0.5] },
};
export const nonFiniteGrads = { ...grads, "layer/bias": { shape: [2], dtype: "F32", values: ["NaN", "-Infinity"] } };

export const recast = (tensors: Readonly<Record<string, object>>, dtype: string): Record<string, object> =>
  Object.fromEntries(Object.entries(tensors).map(([name, tensor]) => [name, { ...tensor, dtype }]));

export const adamw = { name: "adamw", lr: 0.1 };
