/** The handwritten digits of digits.bin: images of 8x8 pixels and their labels. */

export interface Digits {
  readonly count: number;
  /** `count` rows of PIXELS numbers from 0 to 1. */
  readonly pixels: Float32Array;
  readonly labels: Uint8Array;
}

export const WIDTH = 8;
export const PIXELS = WIDTH * WIDTH;
export const CLASSES = 10;

const ROW_BYTES = PIXELS + 1;
const DARKEST = 16;
/** Every fifth image belongs to the test set. */
const TEST_EVERY = 5;

/** Splits the file into training images and test images. */
export const readDigits = (file: Uint8Array): { readonly train: Digits; readonly test: Digits } => {
  const rows = Array.from({ length: file.length / ROW_BYTES }, (_, row) => file.subarray(row * ROW_BYTES, (row + 1) * ROW_BYTES));
  const isTest = (index: number): boolean => index % TEST_EVERY === 0;
  return { train: setOf(rows.filter((_, index) => !isTest(index))), test: setOf(rows.filter((_, index) => isTest(index))) };
};

const setOf = (rows: readonly Uint8Array[]): Digits => {
  const pixels = new Float32Array(rows.length * PIXELS);
  for (const [index, row] of rows.entries())
    pixels.set(
      Float32Array.from(row.subarray(0, PIXELS), (value) => value / DARKEST),
      index * PIXELS,
    );
  return { count: rows.length, pixels, labels: Uint8Array.from(rows, (row) => row[PIXELS] ?? 0) };
};
