/** The update that Adam, its variants and Adagrad share. */

/** stepSize * numerator / (sqrt(squares) + eps). */
export function adaptiveUpdate<T>(numerator: v128, squares: v128, stepSize: v128, eps: v128): v128 {
  return v128.mul<T>(stepSize, v128.div<T>(numerator, v128.add<T>(v128.sqrt<T>(squares), eps)));
}
