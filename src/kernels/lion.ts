/**
 * Lion (src/optimizers/lion.ts). With `caution` it takes two passes: lion_cautious writes the update over the gradient, lamb_apply
 * applies it. Scalars: lion decay, weight1, weight2, lr; lion_cautious weight1, weight2.
 */
import {
  AnyWeight,
  applyUpdate,
  areLight,
  constant,
  Decoupled,
  hasTail,
  isSuspect,
  Light,
  lanes,
  lerpAny,
  NoDecay,
  read,
  readNext,
  scalar,
  sign,
  strideOf,
  walkedBytes,
  writePair,
  writeParam,
  zeroUnusedLanes,
} from "./_lanes";
import { storeTally, tally } from "./_reduce";

/** u = sign(lerp(exp_avg, grad, weight1)). */
function direction<T, K>(m: v128, g: v128, weight1: f64, weights1: v128, one: v128): v128 {
  return sign<T>(lerpAny<T, K>(m, g, weight1, weights1), one);
}

/** exp_avg = lerp(exp_avg, grad, weight2); param -= decay*param + lr*u. */
function step<T, W, K, D>(param: usize, grad: usize, expAvg: usize, count: usize, scalars: usize): bool {
  const decay = lanes<T>(scalars, 0),
    weight1 = scalar(scalars, 1),
    weight2 = scalar(scalars, 2),
    weights1 = lanes<T>(scalars, 1),
    weights2 = lanes<T>(scalars, 2),
    lr = lanes<T>(scalars, 3),
    one = constant<T>(<T>1, count);
  const stride = strideOf<W>(),
    end = param + walkedBytes<T, W>(count);
  let total = v128.splat<T>(0);
  for (; param !== end; param += stride, grad += stride, expAvg += stride) {
    const g = read<T, W>(grad),
      gNext = readNext<T, W>(grad);
    const m = read<T, W>(expAvg),
      mNext = readNext<T, W>(expAvg);
    const u = direction<T, K>(m, g, weight1, weights1, one),
      uNext = direction<T, K>(mNext, gNext, weight1, weights1, one);
    const p = read<T, W>(param),
      pNext = readNext<T, W>(param);
    writePair<T, W>(expAvg, lerpAny<T, K>(m, g, weight2, weights2), lerpAny<T, K>(mNext, gNext, weight2, weights2));
    total = v128.add<T>(
      total,
      writeParam<T, W>(param, applyUpdate<T, D>(p, decay, v128.mul<T>(lr, u)), applyUpdate<T, D>(pNext, decay, v128.mul<T>(lr, uNext))),
    );
  }
  return (hasTail<T, W>(count) && step<T, T, K, D>(param, grad, expAvg, count, scalars)) || isSuspect<T>(total);
}

/** Writes u over the gradient where their signs agree, else 0; exp_avg as in `step`. sums = [number of elements that agree]. */
function cautious<T, W, K>(grad: usize, expAvg: usize, count: usize, scalars: usize): v128 {
  const weight1 = scalar(scalars, 0),
    weight2 = scalar(scalars, 1),
    weights1 = lanes<T>(scalars, 0),
    weights2 = lanes<T>(scalars, 1),
    one = constant<T>(<T>1, count);
  const zero = i32x4.splat(0),
    stride = strideOf<W>(),
    end = grad + walkedBytes<T, W>(count);
  let agree = zero;
  for (; grad !== end; grad += stride, expAvg += stride) {
    const g = read<T, W>(grad),
      gNext = readNext<T, W>(grad);
    const m = read<T, W>(expAvg),
      mNext = readNext<T, W>(expAvg);
    const u = direction<T, K>(m, g, weight1, weights1, one),
      uNext = direction<T, K>(mNext, gNext, weight1, weights1, one);
    writePair<T, W>(expAvg, lerpAny<T, K>(m, g, weight2, weights2), lerpAny<T, K>(mNext, gNext, weight2, weights2));
    const agrees = v128.gt<T>(v128.mul<T>(u, g), zero),
      agreesNext = v128.gt<T>(v128.mul<T>(uNext, gNext), zero);
    writePair<T, W>(grad, v128.and(u, agrees), v128.and(uNext, agreesNext));
    agree = tally(tally(agree, zeroUnusedLanes<T, W>(agrees)), agreesNext);
  }
  return hasTail<T, W>(count) ? i32x4.add(agree, cautious<T, T, K>(grad, expAvg, count, scalars)) : agree;
}

function anyDecay<T, K>(param: usize, grad: usize, expAvg: usize, count: usize, scalars: usize): bool {
  if (scalar(scalars, 0) !== 0) return step<T, v128, K, Decoupled>(param, grad, expAvg, count, scalars);
  return step<T, v128, K, NoDecay>(param, grad, expAvg, count, scalars);
}

function lion<T>(param: usize, grad: usize, expAvg: usize, count: usize, scalars: usize): bool {
  if (areLight(scalar(scalars, 1), scalar(scalars, 2))) return anyDecay<T, Light>(param, grad, expAvg, count, scalars);
  return anyDecay<T, AnyWeight>(param, grad, expAvg, count, scalars);
}

function anyCautious<T>(grad: usize, expAvg: usize, sums: usize, count: usize, scalars: usize): void {
  if (areLight(scalar(scalars, 0), scalar(scalars, 1))) storeTally<T>(sums, cautious<T, v128, Light>(grad, expAvg, count, scalars));
  else storeTally<T>(sums, cautious<T, v128, AnyWeight>(grad, expAvg, count, scalars));
}

export function lion_f32(param: usize, grad: usize, expAvg: usize, count: usize, scalars: usize): bool {
  return lion<f32>(param, grad, expAvg, count, scalars);
}

export function lion_f64(param: usize, grad: usize, expAvg: usize, count: usize, scalars: usize): bool {
  return lion<f64>(param, grad, expAvg, count, scalars);
}

export function lion_cautious_f32(grad: usize, expAvg: usize, sums: usize, count: usize, scalars: usize): void {
  anyCautious<f32>(grad, expAvg, sums, count, scalars);
}

export function lion_cautious_f64(grad: usize, expAvg: usize, sums: usize, count: usize, scalars: usize): void {
  anyCautious<f64>(grad, expAvg, sums, count, scalars);
}
