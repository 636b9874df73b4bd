/**
 * LARS in two passes, because the trust ratio needs the norms of whole tensors. Without momentum the address `buffer` is 0.
 * Scalars: lars_norms l2; lars_apply l2, gain, rate, bufferFactor, gradFactor, nesterov.
 */
import {
  Coupled,
  decayLanes,
  isCoupled,
  isOn,
  isSuspect,
  NoDecay,
  narrow,
  Off,
  On,
  read,
  readPair,
  scalar,
  VECTOR,
  wholeBytes,
  wideLow,
  withCoupledDecay,
  write,
  zeroUnusedLanes,
} from "./_lanes";
import { squaresLow, storeSum } from "./_reduce";

/** sums = [|param|^2, |grad + l2*param|^2]. */
function norms<T, D>(param: usize, grad: usize, sums: usize, count: usize, scalars: usize): void {
  const l2 = decayLanes<T, D>(scalars);
  const whole = wholeBytes<T>(count),
    bytes = count * sizeof<T>();
  let paramLow = f64x2.splat(0),
    paramHigh = f64x2.splat(0),
    gradLow = f64x2.splat(0),
    gradHigh = f64x2.splat(0);
  let i: usize = 0;
  for (; i < whole; i += VECTOR) {
    const low = readPair<T>(param + i);
    paramLow = squaresLow<T>(paramLow, low);
    gradLow = squaresLow<T>(gradLow, withCoupledDecay<T, D>(readPair<T>(grad + i), low, l2));
    if (sizeof<T>() === 4) {
      const high = readPair<T>(param + i + 8);
      paramHigh = squaresLow<T>(paramHigh, high);
      gradHigh = squaresLow<T>(gradHigh, withCoupledDecay<T, D>(readPair<T>(grad + i + 8), high, l2));
    }
  }
  for (; i < bytes; i += sizeof<T>()) {
    const p = read<T, T>(param + i);
    paramLow = squaresLow<T>(paramLow, p);
    gradLow = squaresLow<T>(gradLow, zeroUnusedLanes<T, T>(withCoupledDecay<T, D>(read<T, T>(grad + i), p, l2)));
  }
  storeSum(sums, paramLow, paramHigh);
  storeSum(sums + 8, gradLow, gradHigh);
}

/**
 * d = gain * (grad + l2*param); buffer = bufferFactor*buffer + gradFactor*d; param -= rate * (Nesterov ? d + nesterov*buffer : buffer).
 * All in float64, each result rounded once. Buffers is On with a momentum buffer.
 */
function apply<T, D, Buffers, Nesterov>(param: usize, grad: usize, buffer: usize, count: usize, scalars: usize): bool {
  const l2 = f64x2.splat(scalar(scalars, 0) * scalar(scalars, 1)),
    gain = f64x2.splat(scalar(scalars, 1)),
    rate = f64x2.splat(scalar(scalars, 2)),
    bufferFactor = f64x2.splat(scalar(scalars, 3)),
    gradFactor = f64x2.splat(scalar(scalars, 4)),
    nesterov = f64x2.splat(scalar(scalars, 5));
  const fours = (count & ~3) * sizeof<T>(),
    bytes = count * sizeof<T>();
  let total = v128.splat<T>(0);
  let i: usize = 0;
  for (; i < fours; i += 2 * twoElements<T>())
    total = v128.add<T>(total, element<T, v128, D, Buffers, Nesterov>(param + i, grad + i, buffer + i, l2, gain, rate, bufferFactor, gradFactor, nesterov));
  for (; i < bytes; i += sizeof<T>())
    total = v128.add<T>(total, element<T, T, D, Buffers, Nesterov>(param + i, grad + i, buffer + i, l2, gain, rate, bufferFactor, gradFactor, nesterov));
  return isSuspect<T>(total);
}

/** Bytes of two elements, as many as a float64 vector holds. */
function twoElements<T>(): usize {
  return 2 * sizeof<T>();
}

/** Reads two elements, or one and a zero, widened to float64. */
function wide<T, W>(at: usize): v128 {
  return wideLow<T>(isVector<W>() ? readPair<T>(at) : read<T, T>(at));
}

/** Reads the next two elements, widened to float64; zeros if W is one element. */
function wideNext<T, W>(at: usize): v128 {
  return isVector<W>() ? wideLow<T>(readPair<T>(at + twoElements<T>())) : f64x2.splat(0);
}

/** Rounds and writes four elements, or one. Returns their sum, as `writeParam` does. */
function writeWide<T, W>(at: usize, low: v128, high: v128): v128 {
  if (sizeof<T>() === 4 || !isVector<W>()) {
    const value = narrow<T>(low, high);
    write<T, W>(at, value);
    return zeroUnusedLanes<T, W>(value);
  }
  v128.store(at, low);
  v128.store(at, high, VECTOR);
  return f64x2.add(low, high);
}

/** One step of four elements, or of one. */
// biome-ignore format: operands, then constants
function element<T, W, D, Buffers, Nesterov>(
  param: usize, grad: usize, buffer: usize,
  l2: v128, gain: v128, rate: v128, bufferFactor: v128, gradFactor: v128, nesterov: v128,
): v128 {
  const p = wide<T, W>(param),
    pNext = wideNext<T, W>(param);
  const d = scaled<D>(wide<T, W>(grad), p, l2, gain),
    dNext = scaled<D>(wideNext<T, W>(grad), pNext, l2, gain);
  let step = d,
    stepNext = dNext;
  if (isOn<Buffers>()) {
    step = nextBuffer(wide<T, W>(buffer), d, bufferFactor, gradFactor);
    stepNext = nextBuffer(wideNext<T, W>(buffer), dNext, bufferFactor, gradFactor);
    writeWide<T, W>(buffer, step, stepNext);
    if (isOn<Nesterov>()) {
      step = f64x2.add(f64x2.mul(nesterov, step), d);
      stepNext = f64x2.add(f64x2.mul(nesterov, stepNext), dNext);
    }
  }
  return writeWide<T, W>(param, f64x2.sub(p, f64x2.mul(rate, step)), f64x2.sub(pNext, f64x2.mul(rate, stepNext)));
}

/** gain*g + l2*p in float64, or gain*g without coupled decay. */
function scaled<D>(g: v128, p: v128, l2: v128, gain: v128): v128 {
  const plain = f64x2.mul(gain, g);
  return isCoupled<D>() ? f64x2.add(plain, f64x2.mul(l2, p)) : plain;
}

/** bufferFactor*b + gradFactor*d in float64. */
function nextBuffer(b: v128, d: v128, bufferFactor: v128, gradFactor: v128): v128 {
  return f64x2.add(f64x2.mul(bufferFactor, b), f64x2.mul(gradFactor, d));
}

function anyNorms<T>(param: usize, grad: usize, sums: usize, count: usize, scalars: usize): void {
  if (scalar(scalars, 0) !== 0) norms<T, Coupled>(param, grad, sums, count, scalars);
  else norms<T, NoDecay>(param, grad, sums, count, scalars);
}

function anyBuffer<T, D>(param: usize, grad: usize, buffer: usize, count: usize, scalars: usize): bool {
  if (!buffer) return apply<T, D, Off, Off>(param, grad, buffer, count, scalars);
  if (scalar(scalars, 5) !== 0) return apply<T, D, On, On>(param, grad, buffer, count, scalars);
  return apply<T, D, On, Off>(param, grad, buffer, count, scalars);
}

function anyApply<T>(param: usize, grad: usize, buffer: usize, count: usize, scalars: usize): bool {
  if (scalar(scalars, 0) !== 0) return anyBuffer<T, Coupled>(param, grad, buffer, count, scalars);
  return anyBuffer<T, NoDecay>(param, grad, buffer, count, scalars);
}

export function lars_norms_f32(param: usize, grad: usize, sums: usize, count: usize, scalars: usize): void {
  anyNorms<f32>(param, grad, sums, count, scalars);
}

export function lars_norms_f64(param: usize, grad: usize, sums: usize, count: usize, scalars: usize): void {
  anyNorms<f64>(param, grad, sums, count, scalars);
}

export function lars_apply_f32(param: usize, grad: usize, buffer: usize, count: usize, scalars: usize): bool {
  return anyApply<f32>(param, grad, buffer, count, scalars);
}

export function lars_apply_f64(param: usize, grad: usize, buffer: usize, count: usize, scalars: usize): bool {
  return anyApply<f64>(param, grad, buffer, count, scalars);
}
