/** Rprop (src/optimizers/rprop.ts). Scalars: etaMinus, etaPlus, min, max, initial (0 after the first step). */
import { constant, hasTail, isOn, isSuspect, lanes, Off, On, read, readNext, scalar, sign, strideOf, walkedBytes, writePair, writeParam } from "./_lanes";

/**
 * step_size *= etaPlus where g*prev > 0 and etaMinus where g*prev < 0, clamped to [min, max]; g = 0 where g*prev < 0; param -= sign(g) *
 * step_size; prev = g. At the First step, step_size starts at `initial`.
 */
function step<T, W, First>(param: usize, grad: usize, prev: usize, stepSize: usize, count: usize, scalars: usize): bool {
  const etaMinus = lanes<T>(scalars, 0),
    etaPlus = lanes<T>(scalars, 1),
    smallest = lanes<T>(scalars, 2),
    greatest = lanes<T>(scalars, 3),
    initial = lanes<T>(scalars, 4),
    one = constant<T>(<T>1, count);
  const zero = i32x4.splat(0),
    stride = strideOf<W>(),
    end = param + walkedBytes<T, W>(count);
  let total = v128.splat<T>(0);
  for (; param !== end; param += stride, grad += stride, prev += stride, stepSize += stride) {
    const g = read<T, W>(grad),
      gNext = readNext<T, W>(grad);
    const agreement = v128.mul<T>(g, read<T, W>(prev)),
      agreementNext = v128.mul<T>(gNext, readNext<T, W>(prev));
    const turns = v128.lt<T>(agreement, zero),
      turnsNext = v128.lt<T>(agreementNext, zero);
    const size = isOn<First>() ? initial : read<T, W>(stepSize),
      sizeNext = isOn<First>() ? initial : readNext<T, W>(stepSize);
    const factor = v128.bitselect(etaMinus, v128.bitselect(etaPlus, one, v128.gt<T>(agreement, zero)), turns),
      factorNext = v128.bitselect(etaMinus, v128.bitselect(etaPlus, one, v128.gt<T>(agreementNext, zero)), turnsNext);
    const s = v128.min<T>(v128.max<T>(v128.mul<T>(size, factor), smallest), greatest),
      sNext = v128.min<T>(v128.max<T>(v128.mul<T>(sizeNext, factorNext), smallest), greatest);
    const d = v128.andnot(g, turns),
      dNext = v128.andnot(gNext, turnsNext);
    const p = read<T, W>(param),
      pNext = readNext<T, W>(param);
    writePair<T, W>(prev, d, dNext);
    writePair<T, W>(stepSize, s, sNext);
    total = v128.add<T>(
      total,
      writeParam<T, W>(param, v128.sub<T>(p, v128.mul<T>(sign<T>(d, one), s)), v128.sub<T>(pNext, v128.mul<T>(sign<T>(dNext, one), sNext))),
    );
  }
  return (hasTail<T, W>(count) && step<T, T, First>(param, grad, prev, stepSize, count, scalars)) || isSuspect<T>(total);
}

function rprop<T>(param: usize, grad: usize, prev: usize, stepSize: usize, count: usize, scalars: usize): bool {
  if (scalar(scalars, 4) !== 0) return step<T, v128, On>(param, grad, prev, stepSize, count, scalars);
  return step<T, v128, Off>(param, grad, prev, stepSize, count, scalars);
}

export function rprop_f32(param: usize, grad: usize, prev: usize, stepSize: usize, count: usize, scalars: usize): bool {
  return rprop<f32>(param, grad, prev, stepSize, count, scalars);
}

export function rprop_f64(param: usize, grad: usize, prev: usize, stepSize: usize, count: usize, scalars: usize): bool {
  return rprop<f64>(param, grad, prev, stepSize, count, scalars);
}
