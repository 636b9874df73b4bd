/**
 * Ends the process of a test file that runs far beyond its time limit, for instance because a test loops. The runner reports
 * such a test, but waits for its process forever. The option --test-force-exit would end the process too, but loses results.
 */
const FILE_MS = 900_000;

// The runner sets this variable for the processes of test files only. The runner itself has no limit.
if (process.env["NODE_TEST_CONTEXT"] !== undefined) {
  setTimeout(() => {
    console.error(`${process.argv[1]}: ended ${FILE_MS / 1000} s after its start`);
    process.exit(1);
  }, FILE_MS).unref();
}
