/** test/prepare.ts builds and installs the tests' requirements before the tests. A test that runs alone does so itself. */

/**
 * package.json's scripts set this variable after preparation. A test then finds its requirements, or fails with the name of a
 * missing one.
 */
const IS_PREPARED = process.env["TESTS_PREPARED"] !== undefined;

/** Runs work that takes seconds to minutes, once per machine. Announces the work before, and prints its duration after. */
export const preparing = async <Result>(what: string, work: () => Promise<Result>): Promise<Result> => {
  if (IS_PREPARED) throw new Error(`this test needs what is missing (${what}): test/prepare.ts should make it before the tests`);
  const start = performance.now();
  console.error(`${what} ...`);
  const result = await work();
  console.error(`${what}: done in ${Math.round((performance.now() - start) / 1000)} s`);
  return result;
};
