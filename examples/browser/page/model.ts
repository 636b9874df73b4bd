/** A network with one hidden layer that classifies digits. Its gradients are written out by hand. */
import { CLASSES, type Digits, PIXELS } from "./digits.ts";

const HIDDEN = 32;

const SHAPES = {
  "hidden.weight": [PIXELS, HIDDEN],
  "hidden.bias": [HIDDEN],
  "output.weight": [HIDDEN, CLASSES],
  "output.bias": [CLASSES],
} as const;

type Name = keyof typeof SHAPES;

/** Parameters or gradients, as tensors in the client's form. */
export type Network = Readonly<Record<Name, { readonly shape: readonly number[]; readonly data: Float32Array }>>;

/** Returns a repeatable random generator of numbers from 0 to 1 (xorshift32). */
export const random = (seed: number): (() => number) => {
  let state = seed | 0 || 1;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) / 2 ** 32;
  };
};

const networkOf = (value: (name: Name, shape: readonly number[]) => number): Network => {
  const tensors = Object.entries(SHAPES).map(([name, shape]: [string, readonly number[]]) => {
    const length = shape.reduce((product, size) => product * size, 1);
    return [name, { shape, data: Float32Array.from({ length }, () => value(name as Name, shape)) }];
  });
  return Object.fromEntries(tensors) as Network;
};

/**
 * Returns zero biases, and random weights with the variance that He et al. (2015, https://arxiv.org/abs/1502.01852) derive for
 * ReLU.
 */
export const start = (seed: number): Network => {
  const next = random(seed);
  return networkOf((_, [inputs = 1, outputs]) => (outputs === undefined ? 0 : (2 * next() - 1) * Math.sqrt(6 / inputs)));
};

export const sizeOf = (network: Network): number => Object.values(network).reduce((sum, { data }) => sum + data.length, 0);

/** Computes y += x * weight, for one image. */
const multiply = (x: Float32Array, weight: Float32Array, y: Float32Array): void => {
  for (let i = 0; i < x.length; i++) {
    const value = x[i] as number;
    if (value === 0) continue;
    for (let j = 0; j < y.length; j++) y[j] = (y[j] as number) + value * (weight[i * y.length + j] as number);
  }
};

/** Computes the activations of the hidden layer, and the probability of each digit, for one image. */
const forward = (network: Network, x: Float32Array): { readonly hidden: Float32Array; readonly chances: Float32Array } => {
  const hidden = network["hidden.bias"].data.slice();
  multiply(x, network["hidden.weight"].data, hidden);
  for (let j = 0; j < hidden.length; j++) hidden[j] = Math.max(0, hidden[j] as number);
  const logits = network["output.bias"].data.slice();
  multiply(hidden, network["output.weight"].data, logits);
  const largest = logits.reduce((most, logit) => Math.max(most, logit));
  const weights = logits.map((logit) => Math.exp(logit - largest));
  const sum = weights.reduce((total, weight) => total + weight, 0);
  return { hidden, chances: weights.map((weight) => weight / sum) };
};

const imageOf = ({ pixels }: Digits, index: number): Float32Array => pixels.subarray(index * PIXELS, (index + 1) * PIXELS);

/** Returns the mean cross-entropy of a batch, and its gradients. */
export const lossAndGradients = (network: Network, digits: Digits, batch: readonly number[]): { readonly loss: number; readonly gradients: Network } => {
  const gradients = networkOf(() => 0);
  let loss = 0;
  for (const index of batch) {
    const x = imageOf(digits, index);
    const label = digits.labels[index] ?? 0;
    const { hidden, chances } = forward(network, x);
    loss -= Math.log(Math.max(chances[label] ?? 0, Number.MIN_VALUE));
    const dLogits = chances.map((chance, digit) => (chance - (digit === label ? 1 : 0)) / batch.length);
    const dHidden = hidden.map((value, j) => (value > 0 ? dot(network["output.weight"].data, j * CLASSES, dLogits) : 0));
    addOuter(hidden, dLogits, gradients["output.weight"].data);
    addOuter(x, dHidden, gradients["hidden.weight"].data);
    add(dLogits, gradients["output.bias"].data);
    add(dHidden, gradients["hidden.bias"].data);
  }
  return { loss: loss / batch.length, gradients };
};

const dot = (row: Float32Array, offset: number, x: Float32Array): number => x.reduce((sum, value, index) => sum + value * (row[offset + index] as number), 0);

const add = (x: Float32Array, to: Float32Array): void => {
  for (let i = 0; i < x.length; i++) to[i] = (to[i] as number) + (x[i] as number);
};

const addOuter = (x: Float32Array, y: Float32Array, to: Float32Array): void => {
  for (let i = 0; i < x.length; i++) {
    const value = x[i] as number;
    if (value === 0) continue;
    for (let j = 0; j < y.length; j++) to[i * y.length + j] = (to[i * y.length + j] as number) + value * (y[j] as number);
  }
};

/** Returns the digit that the network predicts for each image. */
export const predictions = (network: Network, digits: Digits): Uint8Array =>
  Uint8Array.from({ length: digits.count }, (_, index) => {
    const { chances } = forward(network, imageOf(digits, index));
    return chances.indexOf(Math.max(...chances));
  });

/** Returns the share of correct predictions. */
export const accuracyOf = (guessed: Uint8Array, { labels }: Digits): number => guessed.filter((digit, index) => digit === labels[index]).length / labels.length;
