/**
 * Prodigy (src/optimizers/prodigy.ts). Scalars:
 *   prodigy_moments: l2, beta1, weight1, beta2, weight2, beta3, weight3, dotScale, normScale, isFirst
 *   prodigy_apply: decay, rate, eps
 */
import {
  applyUpdate,
  blend,
  Decoupled,
  hasTail,
  isSuspect,
  lanes,
  NoDecay,
  narrow,
  read,
  readNext,
  scalar,
  strideOf,
  walkedBytes,
  wholeBytes,
  wideHigh,
  wideLow,
  write,
  writeParam,
} from "./_lanes";
import { total } from "./_reduce";

/** A scalar argument in both float64 lanes. */
function wideScalar(scalars: usize, index: usize): v128 {
  return f64x2.splat(scalar(scalars, index));
}

/** average * beta + weight * value^2, computed in float64 and rounded once to T. */
function blendSquare<T>(beta: v128, average: v128, weight: v128, value: v128): v128 {
  const low = wideLow<T>(value),
    next = f64x2.add(f64x2.mul(beta, wideLow<T>(average)), f64x2.mul(weight, f64x2.mul(low, low)));
  if (sizeof<T>() === 8) return next;
  const high = wideHigh<T>(value);
  return narrow<T>(next, f64x2.add(f64x2.mul(beta, wideHigh<T>(average)), f64x2.mul(weight, f64x2.mul(high, high))));
}

/**
 * grad += l2*param; exp_avg = beta1*exp_avg + weight1*grad; exp_avg_sq = beta2*exp_avg_sq + weight2*grad^2; s = beta3*s + weight3*grad.
 * At the first step, p0 = param. sums = [dotScale * <grad, p0 - param>, normScale * |s|_1]. Without beta1, exp_avg is 0.
 */
function moments<T, W>(
  param: usize,
  grad: usize,
  expAvg: usize,
  expAvgSq: usize,
  s: usize,
  p0: usize,
  sums: usize,
  count: usize,
  scalars: usize,
  dotLow: v128,
  dotHigh: v128,
  absLow: v128,
  absHigh: v128,
): void {
  const l2 = lanes<T>(scalars, 0),
    hasL2 = scalar(scalars, 0) !== 0,
    isFirst = scalar(scalars, 9) !== 0;
  const beta1 = wideScalar(scalars, 1),
    weight1 = wideScalar(scalars, 2),
    beta2 = wideScalar(scalars, 3),
    weight2 = wideScalar(scalars, 4),
    beta3 = wideScalar(scalars, 5),
    weight3 = wideScalar(scalars, 6);
  const whole = wholeBytes<T>(count),
    end = param + (isVector<W>() ? whole : count * sizeof<T>() - whole);
  for (; param !== end; param += sizeof<W>(), grad += sizeof<W>(), expAvgSq += sizeof<W>(), s += sizeof<W>(), p0 += sizeof<W>()) {
    const p = read<T, W>(param);
    let g = read<T, W>(grad),
      start = p;
    if (hasL2) {
      g = v128.add<T>(g, v128.mul<T>(l2, p));
      write<T, W>(grad, g);
    }
    if (isFirst) write<T, W>(p0, p);
    else start = read<T, W>(p0);
    if (expAvg !== 0) {
      write<T, W>(expAvg, blend<T>(beta1, read<T, W>(expAvg), weight1, g));
      expAvg += sizeof<W>();
    }
    write<T, W>(expAvgSq, blendSquare<T>(beta2, read<T, W>(expAvgSq), weight2, g));
    const sum = blend<T>(beta3, read<T, W>(s), weight3, g);
    write<T, W>(s, sum);
    dotLow = f64x2.add(dotLow, f64x2.mul(wideLow<T>(g), f64x2.sub(wideLow<T>(start), wideLow<T>(p))));
    absLow = f64x2.add(absLow, f64x2.abs(wideLow<T>(sum)));
    if (sizeof<T>() === 4) {
      dotHigh = f64x2.add(dotHigh, f64x2.mul(wideHigh<T>(g), f64x2.sub(wideHigh<T>(start), wideHigh<T>(p))));
      absHigh = f64x2.add(absHigh, f64x2.abs(wideHigh<T>(sum)));
    }
  }
  if (isVector<W>() && whole !== count * sizeof<T>()) {
    moments<T, T>(param, grad, expAvg, expAvgSq, s, p0, sums, count, scalars, dotLow, dotHigh, absLow, absHigh);
    return;
  }
  store<f64>(sums, scalar(scalars, 7) * total(dotLow, dotHigh));
  store<f64>(sums + sizeof<f64>(), scalar(scalars, 8) * total(absLow, absHigh));
}

/** param -= decay*param + rate * direction/(sqrt(exp_avg_sq) + eps). */
function apply<T, W, D>(param: usize, direction: usize, expAvgSq: usize, count: usize, scalars: usize): bool {
  const decay = lanes<T>(scalars, 0),
    rate = lanes<T>(scalars, 1),
    eps = lanes<T>(scalars, 2);
  const stride = strideOf<W>(),
    end = param + walkedBytes<T, W>(count);
  let sum = v128.splat<T>(0);
  for (; param !== end; param += stride, direction += stride, expAvgSq += stride) {
    const u = v128.mul<T>(rate, v128.div<T>(read<T, W>(direction), v128.add<T>(v128.sqrt<T>(read<T, W>(expAvgSq)), eps))),
      uNext = v128.mul<T>(rate, v128.div<T>(readNext<T, W>(direction), v128.add<T>(v128.sqrt<T>(readNext<T, W>(expAvgSq)), eps)));
    const p = applyUpdate<T, D>(read<T, W>(param), decay, u),
      pNext = applyUpdate<T, D>(readNext<T, W>(param), decay, uNext);
    sum = v128.add<T>(sum, writeParam<T, W>(param, p, pNext));
  }
  return (hasTail<T, W>(count) && apply<T, T, D>(param, direction, expAvgSq, count, scalars)) || isSuspect<T>(sum);
}

function anyApply<T>(param: usize, direction: usize, expAvgSq: usize, count: usize, scalars: usize): bool {
  if (scalar(scalars, 0) !== 0) return apply<T, v128, Decoupled>(param, direction, expAvgSq, count, scalars);
  return apply<T, v128, NoDecay>(param, direction, expAvgSq, count, scalars);
}

function anyMoments<T>(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, s: usize, p0: usize, sums: usize, count: usize, scalars: usize): void {
  const zero = f64x2.splat(0);
  moments<T, v128>(param, grad, expAvg, expAvgSq, s, p0, sums, count, scalars, zero, zero, zero, zero);
}

export function prodigy_moments_f32(
  param: usize,
  grad: usize,
  expAvg: usize,
  expAvgSq: usize,
  s: usize,
  p0: usize,
  sums: usize,
  count: usize,
  scalars: usize,
): void {
  anyMoments<f32>(param, grad, expAvg, expAvgSq, s, p0, sums, count, scalars);
}

export function prodigy_moments_f64(
  param: usize,
  grad: usize,
  expAvg: usize,
  expAvgSq: usize,
  s: usize,
  p0: usize,
  sums: usize,
  count: usize,
  scalars: usize,
): void {
  anyMoments<f64>(param, grad, expAvg, expAvgSq, s, p0, sums, count, scalars);
}

export function prodigy_apply_f32(param: usize, direction: usize, expAvgSq: usize, count: usize, scalars: usize): bool {
  return anyApply<f32>(param, direction, expAvgSq, count, scalars);
}

export function prodigy_apply_f64(param: usize, direction: usize, expAvgSq: usize, count: usize, scalars: usize): bool {
  return anyApply<f64>(param, direction, expAvgSq, count, scalars);
}
