/** Defines the functions that the optimizers minimize: values, gradients and starting points. */

export interface Surface {
  readonly id: string;
  readonly title: string;
  readonly shape: readonly number[];
  readonly start: readonly number[];
  /** The function's minimum value. */
  readonly minimum: number;
  /** The map's edges: left, right, bottom, top. Absent for functions of more than two variables. */
  readonly view?: readonly [number, number, number, number];
  /** A point where the function has its minimum. */
  readonly best?: readonly [number, number];
  /** The standard deviation of the noise in each gradient. */
  readonly noise?: number;
  value(point: ArrayLike<number>): number;
  gradient(point: ArrayLike<number>): number[];
}

const at = (point: ArrayLike<number>, index: number): number => point[index] as number;

/** Rotates the quadratic. Optimizers that scale each coordinate separately would have an advantage along the axes. */
const ANGLE = 0.5;
const [COS, SIN] = [Math.cos(ANGLE), Math.sin(ANGLE)];

export const quadratic = (condition: number): Surface => ({
  id: "quadratic",
  title: "Quadratic",
  shape: [2],
  start: [-2.4, 1.6],
  minimum: 0,
  view: [-3, 3, -2, 2],
  best: [0, 0],
  value(point) {
    const [along, across] = [COS * at(point, 0) + SIN * at(point, 1), COS * at(point, 1) - SIN * at(point, 0)];
    return (along ** 2 + condition * across ** 2) / 2;
  },
  gradient(point) {
    const [along, across] = [COS * at(point, 0) + SIN * at(point, 1), condition * (COS * at(point, 1) - SIN * at(point, 0))];
    return [COS * along - SIN * across, SIN * along + COS * across];
  },
});

const rosenbrock: Surface = {
  id: "rosenbrock",
  title: "Rosenbrock",
  shape: [2],
  start: [-1.4, 1.8],
  minimum: 0,
  view: [-2, 2, -1, 3],
  best: [1, 1],
  value: (point) => (1 - at(point, 0)) ** 2 + 100 * (at(point, 1) - at(point, 0) ** 2) ** 2,
  gradient(point) {
    const [x, y] = [at(point, 0), at(point, 1)];
    return [-2 * (1 - x) - 400 * x * (y - x ** 2), 200 * (y - x ** 2)];
  },
};

const BEALE = [1.5, 2.25, 2.625] as const;

const beale: Surface = {
  id: "beale",
  title: "Beale",
  shape: [2],
  start: [0.5, 2],
  minimum: 0,
  view: [-1, 4.5, -1.5, 2.5],
  best: [3, 0.5],
  value: (point) => BEALE.reduce((sum, constant, index) => sum + (constant - at(point, 0) + at(point, 0) * at(point, 1) ** (index + 1)) ** 2, 0),
  gradient(point) {
    const [x, y] = [at(point, 0), at(point, 1)];
    let [dx, dy] = [0, 0];
    for (const [index, constant] of BEALE.entries()) {
      const power = index + 1;
      const rest = constant - x + x * y ** power;
      dx += 2 * rest * (y ** power - 1);
      dy += 2 * rest * x * power * y ** (power - 1);
    }
    return [dx, dy];
  },
};

const saddle: Surface = {
  id: "saddle",
  title: "Saddle",
  shape: [2],
  start: [-2, 0.001],
  minimum: -2.5,
  view: [-3, 3, -3, 3],
  best: [0, Math.sqrt(5)],
  value: (point) => at(point, 0) ** 2 / 2 - at(point, 1) ** 2 + at(point, 1) ** 4 / 10,
  gradient: (point) => [at(point, 0), -2 * at(point, 1) + 0.4 * at(point, 1) ** 3],
};

const valley: Surface = { ...quadratic(50), id: "valley", title: "Noisy valley", noise: 3 };

const SIDE = 8;

/** Returns a repeatable random generator of numbers from -1 to 1. */
const randomGenerator = (seed: number): (() => number) => {
  let state = seed;
  return () => {
    state = (state * 1664525 + 1013904223) % 4294967296;
    return state / 2147483648 - 1;
  };
};

/** The squared error |A W - B|² as a function of the matrix W. The rows of A have sizes from 1 down to 1/30. */
const matrix = ((): Surface => {
  const next = randomGenerator(7);
  const a = Array.from({ length: SIDE }, (_, row) => Array.from({ length: SIDE }, () => next() * 30 ** (-row / (SIDE - 1))));
  const solution = Array.from({ length: SIDE }, () => Array.from({ length: SIDE }, next));
  const multiply = (left: readonly (readonly number[])[], right: readonly (readonly number[])[]): number[][] =>
    left.map((row) => Array.from({ length: SIDE }, (_, column) => row.reduce((sum, value, index) => sum + value * (right[index]?.[column] as number), 0)));
  const b = multiply(a, solution);
  const rest = (point: ArrayLike<number>): number[][] => {
    const w = Array.from({ length: SIDE }, (_, row) => Array.from({ length: SIDE }, (_, column) => at(point, row * SIDE + column)));
    return multiply(a, w).map((row, index) => row.map((value, column) => value - (b[index]?.[column] as number)));
  };
  return {
    id: "matrix",
    title: `Matrix of ${SIDE} × ${SIDE}`,
    shape: [SIDE, SIDE],
    start: Array.from({ length: SIDE * SIDE }, (_, index) => (index % (SIDE + 1) === 0 ? 0.1 : 0)),
    minimum: 0,
    value: (point) => rest(point).reduce((sum, row) => sum + row.reduce((own, value) => own + value ** 2, 0), 0) / 2,
    gradient(point) {
      const rows = rest(point);
      return Array.from({ length: SIDE * SIDE }, (_, index) => {
        const [row, column] = [Math.floor(index / SIDE), index % SIDE];
        return a.reduce((sum, own, other) => sum + (own[row] as number) * (rows[other]?.[column] as number), 0);
      });
    },
  };
})();

export const surfaces = (condition: number): readonly Surface[] => [quadratic(condition), rosenbrock, beale, saddle, valley, matrix];

/** Returns the gradient noise of a step. It is the same for all optimizers. */
export const noiseOf = ({ noise = 0, shape }: Surface, step: number): readonly number[] => {
  const next = randomGenerator(step * 7919 + 13);
  // The sum of three uniform numbers from -1 to 1 has variance 1.
  return Array.from({ length: shape.reduce((product, size) => product * size, 1) }, () => noise * (next() + next() + next()));
};
