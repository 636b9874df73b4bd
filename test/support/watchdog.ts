/**
 * Ends the process of a test file that is still there long after its tests' time is over, for instance because a test loops:
 * the runner reports such a test, and waits for its process for ever. (--test-force-exit would end it, and loses results.)
 */
const FILE_MS = 900_000;

// Set by the runner in the processes of the files; its own process has no such limit.
if (process.env["NODE_TEST_CONTEXT"] !== undefined) {
  setTimeout(() => {
    console.error(`${process.argv[1]}: ended ${FILE_MS / 1000} s after its start`);
    process.exit(1);
  }, FILE_MS).unref();
}
