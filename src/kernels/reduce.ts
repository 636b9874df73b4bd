/**
 * Combines one tensor of several updates. All arithmetic is float64 and element by element, so the result does not depend on shards.
 *
 * `table` has an entry of 32 bytes for each update, in the order of the arithmetic: address u32, dtype u32, weight f64, address of
 * the scales u32, 4 unused bytes, elements per scale f64. Dtypes: 0 F32, 1 F64, 2 BF16, 3 F16, 4 I8, whose values are multiplied by
 * float32 scales. `index` is the tensor's index of the shard's first element, plus one. `flags` receives one float64 per entry:
 * 1 if the update has NaN or infinity in this shard, else 0. The mean has one more, for the earlier sum.
 */
import { scalar } from "./_lanes";
import { storeSum } from "./_reduce";
import { Bf16, F16, singlesToDoubles, widenTwice } from "./_widen";

/** Elements of a row, which is a part of one update in float64. Two rows fit into the processor's first cache. */
const ROW: usize = 512;

/** Bytes of the rows of all updates together. */
const ROWS_BYTES: usize = 32768;

/** Bytes of an entry of the table. */
const ENTRY: usize = 32;

/** Widens I8 values and multiplies them by their scales. The product is exact. */
function scaledToF64(source: usize, entry: usize, first: usize, target: usize, count: usize): void {
  const scales = <usize>load<u32>(entry, 16),
    perScale = <usize>load<f64>(entry, 24);
  for (let i: usize = 0; i < count; ) {
    const group = (first + i) / perScale,
      end = min(count, (group + 1) * perScale - first);
    const scale = <f64>load<f32>(scales + 4 * group);
    for (; i < end; i++) store<f64>(target + 8 * i, <f64>load<i8>(source + i) * scale);
  }
}

/** Widens elements of a dtype to float64. */
function widen(source: usize, dtype: u32, target: usize, count: usize): void {
  if (dtype === 0) singlesToDoubles(source, target, count);
  else if (dtype === 1) memory.copy(target, source, 8 * count);
  else if (dtype === 2) widenTwice<Bf16>(source, target, count);
  else widenTwice<F16>(source, target, count);
}

/** Bytes of an element of a dtype. */
function widthOf(dtype: u32): usize {
  return dtype === 0 ? 4 : dtype === 1 ? 8 : dtype === 4 ? 1 : 2;
}

/** Writes elements of an update, from index `first` on, as float64. Returns true if one is NaN or infinite. */
function readRow(entry: usize, first: usize, target: usize, count: usize): bool {
  const dtype = load<u32>(entry, 4);
  const source = <usize>load<u32>(entry) + first * widthOf(dtype);
  if (dtype === 4) scaledToF64(source, entry, first, target, count);
  else widen(source, dtype, target, count);
  return hasNonFinite(target, count);
}

/** x - x: 0 for every finite x, else NaN. */
function defect(row: usize, i: usize): v128 {
  const x = v128.load(row + 8 * i);
  return f64x2.sub(x, x);
}

/** Four sums, because one would wait for each addition. */
function hasNonFinite(row: usize, count: usize): bool {
  const whole = count & ~7;
  let first = f64x2.splat(0),
    second = first,
    third = first,
    fourth = first;
  let i: usize = 0;
  for (; i < whole; i += 8) {
    first = f64x2.add(first, defect(row, i));
    second = f64x2.add(second, defect(row, i + 2));
    third = f64x2.add(third, defect(row, i + 4));
    fourth = f64x2.add(fourth, defect(row, i + 6));
  }
  const total = f64x2.add(f64x2.add(first, second), f64x2.add(third, fourth));
  let rest = f64x2.extract_lane(total, 0) + f64x2.extract_lane(total, 1);
  for (; i < count; i++) rest += load<f64>(row + 8 * i) - load<f64>(row + 8 * i);
  return rest !== 0;
}

/** sum += weight * row: a multiplication, then an addition. */
function addRow(sum: usize, row: usize, weight: f64, count: usize): void {
  const weights = f64x2.splat(weight);
  const whole = count & ~1;
  let i: usize = 0;
  for (; i < whole; i += 2) v128.store(sum + 8 * i, f64x2.add(v128.load(sum + 8 * i), f64x2.mul(v128.load(row + 8 * i), weights)));
  for (; i < count; i++) store<f64>(sum + 8 * i, load<f64>(sum + 8 * i) + load<f64>(row + 8 * i) * weight);
}

/**
 * Writes the pseudo-gradient of the mean m = sum / divisor, rounded once to float32 or float64. Scalars from 0: entries, divisor,
 * form (0 params: p - m, 1 deltas: -m, 2 gradients: m), dtype of the parameter, 1 for a result in float64.
 */
function finish(sum: usize, param: usize, out: usize, row: usize, first: usize, count: usize, scalars: usize): void {
  const divisor = scalar(scalars, 1);
  const form = <u32>scalar(scalars, 2),
    dtype = <u32>scalar(scalars, 3);
  if (form === 0) widen(param + first * widthOf(dtype), dtype, row, count);
  const isWide = scalar(scalars, 4) !== 0;
  const target = out + first * (isWide ? 8 : 4);
  // The division by -divisor negates. V8 13.6 merges f64x2.neg of two vectors to a wrong 256-bit result, as in gradient_clamp_f64.
  const signed = form === 1 ? -divisor : divisor;
  const divisors = f64x2.splat(signed);
  const whole = count & ~1;
  let i: usize = 0;
  for (; i < whole; i += 2) {
    const mean = f64x2.div(v128.load(sum + 8 * i), divisors);
    const gradient = form === 0 ? f64x2.sub(v128.load(row + 8 * i), mean) : mean;
    if (isWide) v128.store(target + 8 * i, gradient);
    else v128.store_lane<i64>(target + 4 * i, f32x4.demote_f64x2_zero(gradient), 0);
  }
  for (; i < count; i++) {
    const mean = load<f64>(sum + 8 * i) / signed;
    const gradient = form === 0 ? load<f64>(row + 8 * i) - mean : mean;
    if (isWide) store<f64>(target + 8 * i, gradient);
    else store<f32>(target + 4 * i, <f32>gradient);
  }
}

/** sum = earlier sum + weight * x of each update, in order. `earlier`, `kept` (the sum as a result) and `out` may be absent. */
export function reduce_mean(
  table: usize,
  index: usize,
  earlier: usize,
  kept: usize,
  param: usize,
  out: usize,
  flags: usize,
  scratch: usize,
  count: usize,
  scalars: usize,
): void {
  const entries = <usize>scalar(scalars, 0);
  memory.fill(flags, 0, 8 * (entries + 1));
  const row = scratch + 8 * ROW;
  for (let at: usize = 0; at < count; at += ROW) {
    const size = min(ROW, count - at);
    const sum = kept === 0 ? scratch : kept + 8 * at;
    if (earlier === 0) memory.fill(sum, 0, 8 * size);
    else {
      memory.copy(sum, earlier + 8 * at, 8 * size);
      if (hasNonFinite(sum, size)) store<f64>(flags + 8 * entries, 1);
    }
    for (let k: usize = 0; k < entries; k++) {
      const entry = table + ENTRY * k;
      if (readRow(entry, index - 1 + at, row, size)) store<f64>(flags + 8 * k, 1);
      addRow(sum, row, load<f64>(entry, 8), size);
    }
    if (out !== 0) finish(sum, param, out, row, at, size, scalars);
  }
}

/** Puts the smaller of each two elements into the first row. */
function exchange(first: usize, second: usize, size: usize): void {
  for (let i: usize = 0; i < size; i += 2) {
    const a = v128.load(first + 8 * i),
      b = v128.load(second + 8 * i);
    v128.store(first + 8 * i, f64x2.pmin(a, b));
    v128.store(second + 8 * i, f64x2.pmax(a, b));
  }
}

/** Sorts each column of the rows in ascending order, by merge exchange (Knuth, The Art of Computer Programming 3, 5.2.2, algorithm M). */
function sortColumns(rows: usize, entries: usize, size: usize): void {
  if (entries < 2) return;
  let top: usize = 1;
  while (top << 1 < entries) top <<= 1;
  for (let p = top; p > 0; p >>= 1) {
    let distance = p,
      remainder: usize = 0;
    for (let q = top; ; q >>= 1) {
      for (let i: usize = 0; i + distance < entries; i++) if ((i & p) === remainder) exchange(rows + 8 * size * i, rows + 8 * size * (i + distance), size);
      if (q === p) break;
      distance = q - p;
      remainder = p;
    }
  }
}

/** Makes an element of `sum` NaN if any update has NaN there. Comparisons with NaN would otherwise lose the value. */
function keepNaN(sum: usize, row: usize, size: usize): void {
  for (let i: usize = 0; i < size; i += 2) {
    const x = v128.load(row + 8 * i);
    v128.store(sum + 8 * i, v128.or(v128.load(sum + 8 * i), f64x2.ne(x, x)));
  }
}

/** Elements of each of the rows of `entries` updates: an even number. */
function rowsSize(entries: usize): usize {
  return max(2, min(ROW, ROWS_BYTES / (8 * entries)) & ~1);
}

/** sum = the values of an element between the `cut` smallest and the `cut` largest, added in ascending order. Scalar 5 is `cut`. */
export function reduce_sorted(table: usize, index: usize, param: usize, out: usize, flags: usize, scratch: usize, count: usize, scalars: usize): void {
  const entries = <usize>scalar(scalars, 0),
    cut = <usize>scalar(scalars, 5);
  memory.fill(flags, 0, 8 * entries);
  const size = rowsSize(entries);
  const sum = scratch,
    other = sum + 8 * size,
    rows = other + 8 * size;
  for (let at: usize = 0; at < count; at += size) {
    const filled = min(size, count - at);
    memory.fill(sum, 0, 8 * size);
    memory.fill(rows, 0, 8 * size * entries);
    for (let k: usize = 0; k < entries; k++) {
      const row = rows + 8 * size * k;
      if (!readRow(table + ENTRY * k, index - 1 + at, row, filled)) continue;
      store<f64>(flags + 8 * k, 1);
      keepNaN(sum, row, size);
    }
    sortColumns(rows, entries, size);
    for (let k = cut; k < entries - cut; k++) addRow(sum, rows + 8 * size * k, 1, size);
    finish(sum, param, out, other, at, filled, scalars);
  }
}

/**
 * Adds the squared differences of each two updates. `sums` has 32 bytes for each pair (0,1), (0,2), ..., (1,2), ...: four partial
 * sums, by the element's index in the block modulo 4. In the end the first 8 bytes for each pair, without gaps, hold its sum.
 */
export function reduce_distances(table: usize, index: usize, sums: usize, scratch: usize, count: usize, scalars: usize): void {
  const entries = <usize>scalar(scalars, 0);
  const pairs = (entries * (entries - 1)) / 2;
  memory.fill(sums, 0, 32 * pairs);
  const size = max(4, min(ROW, ROWS_BYTES / (8 * entries)) & ~3);
  for (let at: usize = 0; at < count; at += size) {
    const filled = min(size, count - at);
    if (filled < size) memory.fill(scratch, 0, 8 * size * entries);
    for (let k: usize = 0; k < entries; k++) readRow(table + ENTRY * k, index - 1 + at, scratch + 8 * size * k, filled);
    let sum = sums;
    for (let i: usize = 0; i < entries; i++) {
      for (let j = i + 1; j < entries; j++, sum += 32) addDistance(sum, scratch + 8 * size * i, scratch + 8 * size * j, size);
    }
  }
  for (let pair: usize = 0; pair < pairs; pair++) storeSum(sums + 8 * pair, v128.load(sums + 32 * pair), v128.load(sums + 32 * pair, 16));
}

function addDistance(sum: usize, a: usize, b: usize, size: usize): void {
  let low = v128.load(sum),
    high = v128.load(sum, 16);
  for (let i: usize = 0; i < 8 * size; i += 32) {
    const first = f64x2.sub(v128.load(a + i), v128.load(b + i)),
      second = f64x2.sub(v128.load(a + i, 16), v128.load(b + i, 16));
    low = f64x2.add(low, f64x2.mul(first, first));
    high = f64x2.add(high, f64x2.mul(second, second));
  }
  v128.store(sum, low);
  v128.store(sum, high, 16);
}
