/** Adamax (src/optimizers/adamax.ts). Scalars: l2, weight1, beta2, stepSize, eps. */
import {
  areLight,
  Coupled,
  decayLanes,
  Heavy,
  hasTail,
  isSuspect,
  Light,
  lanes,
  lerpAny,
  NoDecay,
  read,
  readNext,
  scalar,
  strideOf,
  walkedBytes,
  withCoupledDecay,
  writePair,
  writeParam,
} from "./_lanes";

/** exp_avg as in Adam; exp_inf = max(beta2*exp_inf, |g| + eps); param -= stepSize * exp_avg / exp_inf. */
function step<T, W, K, D>(param: usize, grad: usize, expAvg: usize, expInf: usize, count: usize, scalars: usize): bool {
  const l2 = decayLanes<T, D>(scalars),
    weight = scalar(scalars, 1),
    weights = lanes<T>(scalars, 1),
    beta2 = lanes<T>(scalars, 2),
    stepSize = lanes<T>(scalars, 3),
    eps = lanes<T>(scalars, 4);
  const stride = strideOf<W>(),
    end = param + walkedBytes<T, W>(count);
  let total = v128.splat<T>(0);
  for (; param !== end; param += stride, grad += stride, expAvg += stride, expInf += stride) {
    const p = read<T, W>(param),
      pNext = readNext<T, W>(param);
    const g = withCoupledDecay<T, D>(read<T, W>(grad), p, l2),
      gNext = withCoupledDecay<T, D>(readNext<T, W>(grad), pNext, l2);
    const m = lerpAny<T, K>(read<T, W>(expAvg), g, weight, weights),
      mNext = lerpAny<T, K>(readNext<T, W>(expAvg), gNext, weight, weights);
    const u = nextExpInf<T>(read<T, W>(expInf), g, beta2, eps),
      uNext = nextExpInf<T>(readNext<T, W>(expInf), gNext, beta2, eps);
    writePair<T, W>(expAvg, m, mNext);
    writePair<T, W>(expInf, u, uNext);
    total = v128.add<T>(
      total,
      writeParam<T, W>(param, v128.sub<T>(p, v128.mul<T>(stepSize, v128.div<T>(m, u))), v128.sub<T>(pNext, v128.mul<T>(stepSize, v128.div<T>(mNext, uNext)))),
    );
  }
  return (hasTail<T, W>(count) && step<T, T, K, D>(param, grad, expAvg, expInf, count, scalars)) || isSuspect<T>(total);
}

/** max(beta2*exp_inf, |g| + eps). */
function nextExpInf<T>(expInf: v128, g: v128, beta2: v128, eps: v128): v128 {
  return v128.max<T>(v128.mul<T>(beta2, expInf), v128.add<T>(v128.abs<T>(g), eps));
}

function anyDecay<T, K>(param: usize, grad: usize, expAvg: usize, expInf: usize, count: usize, scalars: usize): bool {
  if (scalar(scalars, 0) !== 0) return step<T, v128, K, Coupled>(param, grad, expAvg, expInf, count, scalars);
  return step<T, v128, K, NoDecay>(param, grad, expAvg, expInf, count, scalars);
}

function adamax<T>(param: usize, grad: usize, expAvg: usize, expInf: usize, count: usize, scalars: usize): bool {
  if (areLight(scalar(scalars, 1), 0)) return anyDecay<T, Light>(param, grad, expAvg, expInf, count, scalars);
  return anyDecay<T, Heavy>(param, grad, expAvg, expInf, count, scalars);
}

export function adamax_f32(param: usize, grad: usize, expAvg: usize, expInf: usize, count: usize, scalars: usize): bool {
  return adamax<f32>(param, grad, expAvg, expInf, count, scalars);
}

export function adamax_f64(param: usize, grad: usize, expAvg: usize, expInf: usize, count: usize, scalars: usize): bool {
  return adamax<f64>(param, grad, expAvg, expInf, count, scalars);
}
