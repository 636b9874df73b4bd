/** Watches files for changes, so that tokens and certificates can be renewed while the service runs. */
import { unwatchFile, watchFile } from "node:fs";

/** The polling interval in ms. Polling also works on network file systems and for mounted secrets, where file events do not. */
const POLL_MS = 1000;

/** Calls `onChange` after a change of any of the files, until disposed. */
export const watch = (paths: readonly string[], onChange: () => void): Disposable => {
  for (const path of paths) watchFile(path, { interval: POLL_MS, persistent: false }, onChange);
  return {
    [Symbol.dispose]: () => {
      for (const path of paths) unwatchFile(path, onChange);
    },
  };
};
