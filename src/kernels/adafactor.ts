/**
 * Adafactor (src/optimizers/adafactor.ts). A tensor is a batch of matrices of `rows` x `columns`; `index` is the number of the shard's
 * first row, tile or element, counted from 1. All sums are float64. Scalars:
 *   adafactor_rows: columns, weight
 *   adafactor_columns: rows, columns, tile, weight
 *   adafactor_matrix: rows, columns, eps
 *   adafactor_vector: eps, weight
 */
import {
  AnyWeight,
  hasTail,
  lanes,
  largestFinite,
  lerpSquareAny,
  read,
  readNext,
  scalar,
  spread,
  strideOf,
  VECTOR,
  walkedBytes,
  wholeBytes,
  writePair,
  zeroUnusedLanes,
} from "./_lanes";
import { squaresHigh, squaresLow, total } from "./_reduce";

/** The scalar eps; below 0, the spacing of T at 1, as in torch. */
function epsOf<T>(scalars: usize, index: usize): f64 {
  const eps = scalar(scalars, index);
  return eps >= 0 ? eps : sizeof<T>() === 4 ? <f64>f32.EPSILON : f64.EPSILON;
}

/** (1 - weight) * average + weight * sample, rounded once to T. */
function average<T>(at: usize, sample: f64, weight: f64): void {
  store<T>(at, <T>((1 - weight) * <f64>load<T>(at) + weight * sample));
}

/** The sum of the squares of `count` elements. */
function squares<T>(at: usize, count: usize): f64 {
  const whole = at + wholeBytes<T>(count),
    end = at + count * sizeof<T>();
  let low = f64x2.splat(0),
    high = low;
  for (; at < whole; at += VECTOR) {
    const value = v128.load(at);
    low = squaresLow<T>(low, value);
    high = squaresHigh<T>(high, value);
  }
  for (; at < end; at += sizeof<T>()) low = squaresLow<T>(low, read<T, T>(at));
  return total(low, high);
}

/** Moves row_var toward the mean of the squares of each row. */
function rows<T>(grad: usize, rowVar: usize, count: usize, scalars: usize): void {
  const columns = <usize>scalar(scalars, 0),
    weight = scalar(scalars, 1);
  for (; count > 0; count--, grad += columns * sizeof<T>(), rowVar += sizeof<T>()) average<T>(rowVar, squares<T>(grad, columns) / <f64>columns, weight);
}

/** Adds the squares of a part of a row to one float64 sum for each column. */
function addSquares<T>(at: usize, sums: usize, count: usize): void {
  const whole = at + wholeBytes<T>(count),
    end = at + count * sizeof<T>(),
    highAt: usize = sizeof<T>() === 4 ? VECTOR : 0;
  for (; at < whole; at += VECTOR, sums += VECTOR + highAt) {
    const value = v128.load(at);
    v128.store(sums, squaresLow<T>(v128.load(sums), value));
    if (sizeof<T>() === 4) v128.store(sums, squaresHigh<T>(v128.load(sums, VECTOR), value), VECTOR);
  }
  for (; at < end; at += sizeof<T>(), sums += sizeof<f64>()) {
    const value = <f64>load<T>(at);
    store<f64>(sums, load<f64>(sums) + value * value);
  }
}

/**
 * Moves col_var toward the mean of the squares of each column, for tiles of columns. The first tile of each matrix also stores the
 * mean of the matrix's row_var.
 */
function columns<T>(grad: usize, rowVar: usize, colVar: usize, means: usize, panel: usize, index: usize, count: usize, scalars: usize): void {
  const rows = <usize>scalar(scalars, 0),
    columns = <usize>scalar(scalars, 1),
    tile = <usize>scalar(scalars, 2),
    weight = scalar(scalars, 3),
    tiles = (columns + tile - 1) / tile;
  for (let at = index - 1; at < index - 1 + count; at++) {
    const matrix = at / tiles,
      column = (at % tiles) * tile,
      width = min<usize>(tile, columns - column);
    memory.fill(panel, 0, width * sizeof<f64>());
    for (let row: usize = 0; row < rows; row++) addSquares<T>(grad + ((matrix * rows + row) * columns + column) * sizeof<T>(), panel, width);
    for (let i: usize = 0; i < width; i++)
      average<T>(colVar + (matrix * columns + column + i) * sizeof<T>(), load<f64>(panel + i * sizeof<f64>()) / <f64>rows, weight);
    if (column > 0) continue;
    let sum: f64 = 0;
    for (let row: usize = 0; row < rows; row++) sum += <f64>load<T>(rowVar + (matrix * rows + row) * sizeof<T>());
    store<T>(means + matrix * sizeof<T>(), <T>(sum / <f64>rows));
  }
}

/** grad /= sqrt(max(factor * col_var, eps^2)), for a part of a row. Returns the sum of the squares of the results. */
function updateRow<T, W>(grad: usize, colVar: usize, count: usize, factor: v128, floor: v128): f64 {
  const stride = strideOf<W>(),
    end = grad + walkedBytes<T, W>(count);
  let low = f64x2.splat(0),
    high = low;
  for (; grad !== end; grad += stride, colVar += stride) {
    const v = v128.mul<T>(factor, read<T, W>(colVar)),
      vNext = v128.mul<T>(factor, readNext<T, W>(colVar));
    const u = zeroUnusedLanes<T, W>(v128.div<T>(read<T, W>(grad), v128.sqrt<T>(v128.max<T>(v, floor)))),
      uNext = zeroUnusedLanes<T, W>(v128.div<T>(readNext<T, W>(grad), v128.sqrt<T>(v128.max<T>(vNext, floor))));
    writePair<T, W>(grad, u, uNext);
    low = squaresLow<T>(squaresLow<T>(low, u), uNext);
    high = squaresHigh<T>(squaresHigh<T>(high, u), uNext);
  }
  const sum = total(low, high);
  return hasTail<T, W>(count) ? sum + updateRow<T, T>(grad, colVar, count, factor, floor) : sum;
}

/** Writes the update over the gradient. The shard may begin and end within a row. sums = [|update|^2]. */
function matrix<T>(grad: usize, rowVar: usize, colVar: usize, means: usize, index: usize, sums: usize, count: usize, scalars: usize): void {
  const rows = <usize>scalar(scalars, 0),
    columns = <usize>scalar(scalars, 1),
    eps = epsOf<T>(scalars, 2),
    floor = spread<T>(eps * eps);
  // Rows may be as short as three elements, so only the first takes divisions of integers.
  const first = (index - 1) / columns;
  let sum: f64 = 0,
    matrix = first / rows,
    row = first % rows,
    column = (index - 1) % columns,
    left = count;
  while (left > 0) {
    const width = min<usize>(columns - column, left),
      factor = <f64>load<T>(rowVar + (matrix * rows + row) * sizeof<T>()) / max<f64>(<f64>load<T>(means + matrix * sizeof<T>()), eps),
      col = colVar + (matrix * columns + column) * sizeof<T>();
    sum += updateRow<T, v128>(grad, col, width, spread<T>(factor), floor);
    left -= width;
    grad += width * sizeof<T>();
    column = 0;
    row++;
    if (row === rows) {
      row = 0;
      matrix++;
    }
  }
  store<f64>(sums, sum);
}

/** variance = lerp(variance, grad^2, weight), and the update over the gradient. Returns the sum of the squares of the update. */
function vector<T, W>(grad: usize, variance: usize, count: usize, scalars: usize): f64 {
  const eps = epsOf<T>(scalars, 0),
    floor = spread<T>(eps * eps),
    weight = scalar(scalars, 1),
    weights = lanes<T>(scalars, 1),
    largest = largestFinite<T>(count);
  const stride = strideOf<W>(),
    end = grad + walkedBytes<T, W>(count);
  let low = f64x2.splat(0),
    high = low;
  for (; grad !== end; grad += stride, variance += stride) {
    const g = read<T, W>(grad),
      gNext = readNext<T, W>(grad);
    const v = lerpSquareAny<T, AnyWeight>(read<T, W>(variance), v128.mul<T>(g, g), weight, weights, largest),
      vNext = lerpSquareAny<T, AnyWeight>(readNext<T, W>(variance), v128.mul<T>(gNext, gNext), weight, weights, largest);
    writePair<T, W>(variance, v, vNext);
    const u = zeroUnusedLanes<T, W>(v128.div<T>(g, v128.sqrt<T>(v128.max<T>(v, floor)))),
      uNext = zeroUnusedLanes<T, W>(v128.div<T>(gNext, v128.sqrt<T>(v128.max<T>(vNext, floor))));
    writePair<T, W>(grad, u, uNext);
    low = squaresLow<T>(squaresLow<T>(low, u), uNext);
    high = squaresHigh<T>(squaresHigh<T>(high, u), uNext);
  }
  const sum = total(low, high);
  return hasTail<T, W>(count) ? sum + vector<T, T>(grad, variance, count, scalars) : sum;
}

export function adafactor_rows_f32(grad: usize, rowVar: usize, count: usize, scalars: usize): void {
  rows<f32>(grad, rowVar, count, scalars);
}

export function adafactor_rows_f64(grad: usize, rowVar: usize, count: usize, scalars: usize): void {
  rows<f64>(grad, rowVar, count, scalars);
}

export function adafactor_columns_f32(grad: usize, rowVar: usize, colVar: usize, means: usize, panel: usize, index: usize, count: usize, scalars: usize): void {
  columns<f32>(grad, rowVar, colVar, means, panel, index, count, scalars);
}

export function adafactor_columns_f64(grad: usize, rowVar: usize, colVar: usize, means: usize, panel: usize, index: usize, count: usize, scalars: usize): void {
  columns<f64>(grad, rowVar, colVar, means, panel, index, count, scalars);
}

export function adafactor_matrix_f32(grad: usize, rowVar: usize, colVar: usize, means: usize, index: usize, sums: usize, count: usize, scalars: usize): void {
  matrix<f32>(grad, rowVar, colVar, means, index, sums, count, scalars);
}

export function adafactor_matrix_f64(grad: usize, rowVar: usize, colVar: usize, means: usize, index: usize, sums: usize, count: usize, scalars: usize): void {
  matrix<f64>(grad, rowVar, colVar, means, index, sums, count, scalars);
}

export function adafactor_vector_f32(grad: usize, variance: usize, sums: usize, count: usize, scalars: usize): void {
  store<f64>(sums, vector<f32, v128>(grad, variance, count, scalars));
}

export function adafactor_vector_f64(grad: usize, variance: usize, sums: usize, count: usize, scalars: usize): void {
  store<f64>(sums, vector<f64, v128>(grad, variance, count, scalars));
}
