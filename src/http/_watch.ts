/** Files that are read again when they change: tokens and certificates are renewed while the service runs. */
import { unwatchFile, watchFile } from "node:fs";

/** How often a file is looked at, in ms. Looking works where events do not: on network file systems and with mounted secrets, which are swapped by a link. */
const LOOK_MS = 1000;

/** Calls `onChange` after a change of any of the files. */
export const watch = (paths: readonly string[], onChange: () => void): Disposable => {
  for (const path of paths) watchFile(path, { interval: LOOK_MS, persistent: false }, onChange);
  return {
    [Symbol.dispose]: () => {
      for (const path of paths) unwatchFile(path, onChange);
    },
  };
};
