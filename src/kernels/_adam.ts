/** The updates that Adam, its variants and Adagrad share. */

/** stepSize * numerator / (sqrt(squares) + eps). */
export function adaptiveUpdate<T>(numerator: v128, squares: v128, stepSize: v128, eps: v128): v128 {
  return v128.mul<T>(stepSize, v128.div<T>(numerator, v128.add<T>(v128.sqrt<T>(squares), eps)));
}

/** stepSize * (average + scale * other) / (sqrt(squares + epsRoot) + eps), for optimizers with two averages of gradients. */
export function mixedUpdate<T>(average: v128, other: v128, scale: v128, squares: v128, stepSize: v128, epsRoot: v128, eps: v128): v128 {
  return adaptiveUpdate<T>(v128.add<T>(average, v128.mul<T>(scale, other)), v128.add<T>(squares, epsRoot), stepSize, eps);
}
