/** The parts that the schedule-free kernels share. */

/** At the first step, z starts as a copy of the parameter. */
export function startAverage<T>(param: usize, z: usize, count: usize, isFirst: f64): void {
  if (isFirst !== 0) memory.copy(z, param, count * sizeof<T>());
}

/** param - (average * (param - z) + gain * update): one subtraction from the parameter. */
export function moveParam<T>(param: v128, z: v128, update: v128, average: v128, gain: v128): v128 {
  return v128.sub<T>(param, v128.add<T>(v128.mul<T>(average, v128.sub<T>(param, z)), v128.mul<T>(gain, update)));
}
