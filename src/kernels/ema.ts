/** The average of parameters over steps (`ema` of every optimizer). Scalar: weight, by which the average moves to the parameter. */
import { HEAVY, Heavy, hasTail, Light, lanes, lerpAny, read, readNext, scalar, strideOf, walkedBytes, writePair } from "./_lanes";

function average<T, W, K>(param: usize, ema: usize, count: usize, scalars: usize): void {
  const weight = scalar(scalars, 0),
    weights = lanes<T>(scalars, 0);
  const stride = strideOf<W>(),
    end = param + walkedBytes<T, W>(count);
  for (; param !== end; param += stride, ema += stride) {
    const p = read<T, W>(param),
      pNext = readNext<T, W>(param);
    const e = lerpAny<T, K>(read<T, W>(ema), p, weight, weights),
      eNext = lerpAny<T, K>(readNext<T, W>(ema), pNext, weight, weights);
    writePair<T, W>(ema, e, eNext);
  }
  if (hasTail<T, W>(count)) average<T, T, K>(param, ema, count, scalars);
}

/** A weight of 1 copies the parameter. */
function anyWeight<T>(param: usize, ema: usize, count: usize, scalars: usize): void {
  const weight = scalar(scalars, 0);
  if (weight === 1) memory.copy(ema, param, count * sizeof<T>());
  else if (weight < HEAVY) average<T, v128, Light>(param, ema, count, scalars);
  else average<T, v128, Heavy>(param, ema, count, scalars);
}

export function ema_f32(param: usize, ema: usize, count: usize, scalars: usize): void {
  anyWeight<f32>(param, ema, count, scalars);
}

export function ema_f64(param: usize, ema: usize, count: usize, scalars: usize): void {
  anyWeight<f64>(param, ema, count, scalars);
}
