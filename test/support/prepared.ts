/** What tests need beside npm ci is built or installed before them by ../prepare.ts, which says so; a test that starts alone does it by itself. */

/** Set by the scripts of package.json, which prepare first: then a test finds everything, or fails with the name of what is missing. */
const IS_PREPARED = process.env["TESTS_PREPARED"] !== undefined;

/** Does work that takes seconds to minutes, once on a machine: says what before, and how long it took after. */
export const preparing = async <Result>(what: string, work: () => Promise<Result>): Promise<Result> => {
  if (IS_PREPARED) throw new Error(`this test needs what is missing (${what}): test/prepare.ts should make it before the tests`);
  const start = performance.now();
  console.error(`${what} ...`);
  const result = await work();
  console.error(`${what}: done in ${Math.round((performance.now() - start) / 1000)} s`);
  return result;
};
