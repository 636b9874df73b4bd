/**
 * Muon (src/optimizers/muon.ts). Scalars:
 *   muon_momentum: weight, blend
 *   muon_copy: columns, sourceRow, sourceStep, factor
 *   muon_product: inner, columns, leftRow, leftStep, scale, addScale
 * Rows, columns and strides are numbers of elements. `count` is the number of rows in muon_copy and muon_product.
 */
import { AnyWeight, hasTail, lanes, lerpAny, read, readNext, scalar, strideOf, VECTOR, walkedBytes, writePair, zeroUnusedLanes } from "./_lanes";
import { squaresHigh, squaresLow, storeSum } from "./_reduce";

/** buffer = lerp(buffer, grad, weight); grad = lerp(grad, buffer, blend). With blend 1, grad = buffer. Adds the squares of grad to the sum. */
function momentum<T, W>(grad: usize, buffer: usize, sums: usize, count: usize, scalars: usize, low: v128, high: v128): void {
  const weight = scalar(scalars, 0),
    weights = lanes<T>(scalars, 0),
    blend = scalar(scalars, 1),
    blends = lanes<T>(scalars, 1);
  const stride = strideOf<W>(),
    end = grad + walkedBytes<T, W>(count);
  for (; grad !== end; grad += stride, buffer += stride) {
    const g = read<T, W>(grad),
      gNext = readNext<T, W>(grad);
    const b = lerpAny<T, AnyWeight>(read<T, W>(buffer), g, weight, weights),
      bNext = lerpAny<T, AnyWeight>(readNext<T, W>(buffer), gNext, weight, weights);
    writePair<T, W>(buffer, b, bNext);
    const u = blend === 1 ? b : lerpAny<T, AnyWeight>(g, b, blend, blends),
      uNext = blend === 1 ? bNext : lerpAny<T, AnyWeight>(gNext, bNext, blend, blends);
    writePair<T, W>(grad, u, uNext);
    const own = zeroUnusedLanes<T, W>(u),
      ownNext = zeroUnusedLanes<T, W>(uNext);
    low = squaresLow<T>(squaresLow<T>(low, own), ownNext);
    high = squaresHigh<T>(squaresHigh<T>(high, own), ownNext);
  }
  if (hasTail<T, W>(count)) momentum<T, T>(grad, buffer, sums, count, scalars, low, high);
  else storeSum(sums, low, high);
}

/** target[i][j] = factor * source[i*sourceRow + j*sourceStep], computed in float64 and rounded once. */
function copyRows<T>(source: usize, target: usize, count: usize, scalars: usize): void {
  const columns = <usize>scalar(scalars, 0),
    row = <usize>scalar(scalars, 1) * sizeof<T>(),
    step = <usize>scalar(scalars, 2) * sizeof<T>(),
    factor = scalar(scalars, 3);
  for (; count > 0; count--, source += row) {
    for (let j: usize = 0, at = source; j < columns; j++, at += step, target += sizeof<T>()) store<T>(target, <T>(<f64>load<T>(at) * factor));
  }
}

/** A panel has this many columns of the right matrix, and at most this many rows. In float64 it fills a scratch area. */
const PANEL_COLUMNS: usize = 64;
const PANEL_ROWS: usize = 1024;

/** Copies a part of the right matrix to a panel of whole tiles. Zeros fill up the last tile. */
function pack<T>(right: usize, panel: usize, inner: usize, width: usize, padded: usize, rowBytes: usize): void {
  for (let k: usize = 0; k < inner; k++, right += rowBytes) {
    memory.copy(panel, right, width * sizeof<T>());
    memory.fill(panel + width * sizeof<T>(), 0, (padded - width) * sizeof<T>());
    panel += padded * sizeof<T>();
  }
}

/**
 * Stores one vector of a row: the sum over this panel, added to that of the panels before, and finished after the last panel.
 * `columns` is the number of columns from here to the end of the row.
 */
function finish<T>(sum: v128, add: usize, target: usize, columns: isize, isFirst: bool, isLast: bool, scale: v128, addScale: v128): void {
  const size = <isize>(VECTOR / sizeof<T>());
  if (columns >= size) {
    v128.store(target, finished<T, v128>(sum, add, target, isFirst, isLast, scale, addScale));
    return;
  }
  for (let j: isize = 0; j < columns; j++) {
    const at = <usize>j * sizeof<T>();
    v128.store_lane<T>(target + at, finished<T, T>(sum, add ? add + at : 0, target + at, isFirst, isLast, scale, addScale), 0);
    sum = sizeof<T>() === 4 ? v128.shuffle<i32>(sum, sum, 1, 2, 3, 0) : v128.shuffle<i64>(sum, sum, 1, 0);
  }
}

function finished<T, W>(sum: v128, add: usize, target: usize, isFirst: bool, isLast: bool, scale: v128, addScale: v128): v128 {
  const total = isFirst ? sum : v128.add<T>(read<T, W>(target), sum);
  if (!isLast) return total;
  const scaled = v128.mul<T>(scale, total);
  return add ? v128.add<T>(scaled, v128.mul<T>(addScale, read<T, W>(add))) : scaled;
}

/** One row of a tile of two vectors: four or one of these run at once. */
function rowOf<T>(
  left: usize,
  step: usize,
  panel: usize,
  inner: usize,
  padded: usize,
  add: usize,
  target: usize,
  columns: isize,
  isFirst: bool,
  isLast: bool,
  scale: v128,
  addScale: v128,
): void {
  let a = v128.splat<T>(0),
    aNext = v128.splat<T>(0);
  for (let k: usize = 0; k < inner; k++, left += step, panel += padded) {
    const x = v128.load_splat<T>(left);
    a = v128.add<T>(a, v128.mul<T>(x, v128.load(panel)));
    aNext = v128.add<T>(aNext, v128.mul<T>(x, v128.load(panel, VECTOR)));
  }
  const size = <isize>(VECTOR / sizeof<T>());
  finish<T>(a, add, target, columns, isFirst, isLast, scale, addScale);
  finish<T>(aNext, add ? add + VECTOR : 0, target + VECTOR, columns - size, isFirst, isLast, scale, addScale);
}

/** target = scale * left*right + addScale * add, by rows. Each element is a sum in the order of `inner`, in blocks of PANEL_ROWS. */
function product<T>(left: usize, right: usize, add: usize, target: usize, panel: usize, count: usize, scalars: usize): void {
  const inner = <usize>scalar(scalars, 0),
    columns = <usize>scalar(scalars, 1),
    leftRow = <usize>scalar(scalars, 2) * sizeof<T>(),
    step = <usize>scalar(scalars, 3) * sizeof<T>();
  const scale = lanes<T>(scalars, 4),
    addScale = lanes<T>(scalars, 5);
  const tile = 2 * (VECTOR / sizeof<T>()),
    rowBytes = columns * sizeof<T>();
  for (let j: usize = 0; j < columns; j += PANEL_COLUMNS) {
    const width = min<usize>(PANEL_COLUMNS, columns - j),
      padded = (width + tile - 1) & ~(tile - 1),
      paddedBytes = padded * sizeof<T>();
    for (let k: usize = 0; k < inner; k += PANEL_ROWS) {
      const depth = min<usize>(PANEL_ROWS, inner - k),
        isFirst = k === 0,
        isLast = k + depth === inner;
      pack<T>(right + k * rowBytes + j * sizeof<T>(), panel, depth, width, padded, rowBytes);
      let i: usize = 0;
      for (; i + 4 <= count; i += 4) {
        for (let t: usize = 0; t < padded; t += tile) {
          let x0 = left + i * leftRow + k * step,
            x1 = x0 + leftRow,
            x2 = x1 + leftRow,
            x3 = x2 + leftRow,
            y = panel + t * sizeof<T>();
          let a0 = v128.splat<T>(0),
            b0 = a0,
            a1 = a0,
            b1 = a0,
            a2 = a0,
            b2 = a0,
            a3 = a0,
            b3 = a0;
          for (let n: usize = 0; n < depth; n++, x0 += step, x1 += step, x2 += step, x3 += step, y += paddedBytes) {
            const r = v128.load(y),
              rNext = v128.load(y, VECTOR);
            let x = v128.load_splat<T>(x0);
            a0 = v128.add<T>(a0, v128.mul<T>(x, r));
            b0 = v128.add<T>(b0, v128.mul<T>(x, rNext));
            x = v128.load_splat<T>(x1);
            a1 = v128.add<T>(a1, v128.mul<T>(x, r));
            b1 = v128.add<T>(b1, v128.mul<T>(x, rNext));
            x = v128.load_splat<T>(x2);
            a2 = v128.add<T>(a2, v128.mul<T>(x, r));
            b2 = v128.add<T>(b2, v128.mul<T>(x, rNext));
            x = v128.load_splat<T>(x3);
            a3 = v128.add<T>(a3, v128.mul<T>(x, r));
            b3 = v128.add<T>(b3, v128.mul<T>(x, rNext));
          }
          const at = i * rowBytes + (j + t) * sizeof<T>(),
            rest = <isize>(width - t),
            half = <isize>(tile / 2);
          let to = target + at,
            from: usize = add ? add + at : 0;
          const advance: usize = add ? rowBytes : 0,
            second: usize = add ? VECTOR : 0;
          finish<T>(a0, from, to, rest, isFirst, isLast, scale, addScale);
          finish<T>(b0, from + second, to + VECTOR, rest - half, isFirst, isLast, scale, addScale);
          to += rowBytes;
          from += advance;
          finish<T>(a1, from, to, rest, isFirst, isLast, scale, addScale);
          finish<T>(b1, from + second, to + VECTOR, rest - half, isFirst, isLast, scale, addScale);
          to += rowBytes;
          from += advance;
          finish<T>(a2, from, to, rest, isFirst, isLast, scale, addScale);
          finish<T>(b2, from + second, to + VECTOR, rest - half, isFirst, isLast, scale, addScale);
          to += rowBytes;
          from += advance;
          finish<T>(a3, from, to, rest, isFirst, isLast, scale, addScale);
          finish<T>(b3, from + second, to + VECTOR, rest - half, isFirst, isLast, scale, addScale);
        }
      }
      for (; i < count; i++) {
        for (let t: usize = 0; t < padded; t += tile) {
          const at = i * rowBytes + (j + t) * sizeof<T>();
          rowOf<T>(
            left + i * leftRow + k * step,
            step,
            panel + t * sizeof<T>(),
            depth,
            paddedBytes,
            add ? add + at : 0,
            target + at,
            <isize>(width - t),
            isFirst,
            isLast,
            scale,
            addScale,
          );
        }
      }
    }
  }
}

export function muon_momentum_f32(grad: usize, buffer: usize, sums: usize, count: usize, scalars: usize): void {
  momentum<f32, v128>(grad, buffer, sums, count, scalars, f64x2.splat(0), f64x2.splat(0));
}

export function muon_momentum_f64(grad: usize, buffer: usize, sums: usize, count: usize, scalars: usize): void {
  momentum<f64, v128>(grad, buffer, sums, count, scalars, f64x2.splat(0), f64x2.splat(0));
}

export function muon_copy_f32(source: usize, target: usize, count: usize, scalars: usize): void {
  copyRows<f32>(source, target, count, scalars);
}

export function muon_copy_f64(source: usize, target: usize, count: usize, scalars: usize): void {
  copyRows<f64>(source, target, count, scalars);
}

export function muon_product_f32(left: usize, right: usize, add: usize, target: usize, panel: usize, count: usize, scalars: usize): void {
  product<f32>(left, right, add, target, panel, count, scalars);
}

export function muon_product_f64(left: usize, right: usize, add: usize, target: usize, panel: usize, count: usize, scalars: usize): void {
  product<f64>(left, right, add, target, panel, count, scalars);
}
