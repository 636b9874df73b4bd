/** Watches files, so that tokens and certificates can be renewed while the server runs. */
import { unwatchFile, watchFile } from "node:fs";

/** Files are polled at this interval in ms. Network file systems and mounted secrets report no file events. */
const POLL_MS = 1000;

/** Calls `onChange` whenever one of the files has changed. Disposing the result stops the watch. */
export const watch = (paths: readonly string[], onChange: () => void): Disposable => {
  for (const path of paths) watchFile(path, { interval: POLL_MS, persistent: false }, onChange);
  return {
    [Symbol.dispose]: () => {
      for (const path of paths) unwatchFile(path, onChange);
    },
  };
};
