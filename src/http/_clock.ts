/** Returns the seconds since `start`, a time of performance.now(). */
export const secondsSince = (start: number): number => (performance.now() - start) / 1000;
