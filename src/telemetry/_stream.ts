/** Writes the log to a file descriptor without blocking. If the reader is slow or gone, lines are lost, but the process never waits. */
import { closeSync, constants, fstatSync, openSync, writeSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";

/** At most this many bytes wait for a slow reader; further lines are lost. */
const MAX_WAITING_BYTES = 2 ** 20;

/** A write to a full pipe is repeated after this time in ms. */
const RETRY_MS = 20;

export class LogStream implements Disposable {
  readonly #fd: number;
  readonly #isOwn: boolean;
  readonly #waiting: Buffer[] = [];
  #waitingBytes = 0;
  #timer: ReturnType<typeof setTimeout> | undefined;
  /** True if only a part of the first waiting line is written. */
  #isPartial = false;
  /** True if the rest of a partly written line was lost. The next line must then start with a newline. */
  #isLineBroken = false;
  #lost = 0;

  constructor(fd: number) {
    this.#fd = withoutBlocking(fd);
    this.#isOwn = this.#fd !== fd;
  }

  /** The number of lost lines. */
  get lost(): number {
    return this.#lost;
  }

  /** Writes a line now, or later if the reader is slow, or drops it. Never throws. */
  write(line: string): void {
    const bytes = Buffer.from(line);
    if (this.#waitingBytes + bytes.length > MAX_WAITING_BYTES) {
      this.#lost++;
      return;
    }
    this.#waiting.push(bytes);
    this.#waitingBytes += bytes.length;
    if (this.#timer === undefined) this.#flush();
  }

  /** Resolves when all lines are written, or after `timeout` ms. */
  async flushed(timeout: number): Promise<void> {
    const deadline = performance.now() + timeout;
    while (this.#waiting.length > 0 && performance.now() < deadline) await sleep(RETRY_MS);
  }

  #flush(): void {
    this.#timer = undefined;
    for (let line = this.#waiting[0]; line !== undefined; line = this.#waiting[0]) {
      try {
        if (this.#isLineBroken) writeSync(this.#fd, "\n");
        this.#isLineBroken = false;
        const written = writeSync(this.#fd, line);
        this.#isPartial = written < line.length;
        this.#waitingBytes -= written;
        if (this.#isPartial) this.#waiting[0] = line.subarray(written);
        else this.#waiting.shift();
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code === "EAGAIN") {
          this.#timer = setTimeout(() => this.#flush(), RETRY_MS).unref();
          return;
        }
        this.#isLineBroken ||= this.#isPartial;
        this.#isPartial = false;
        this.#waiting.shift();
        this.#waitingBytes -= line.length;
        this.#lost++;
      }
    }
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#timer);
    if (this.#isOwn) closeSync(this.#fd);
  }
}

/** Returns a descriptor of the same output that never blocks. Never throws. */
const withoutBlocking = (fd: number): number => {
  // Writes to a file do not block, and a reopened file would be overwritten from its start.
  if (fstatSync(fd).isFile()) return fd;
  try {
    // The inherited file description shares its mode with other processes, so this opens a new one.
    return openSync(`/proc/self/fd/${fd}`, constants.O_WRONLY | constants.O_NONBLOCK | constants.O_NOCTTY);
  } catch {
    // Opening fails for sockets, for pipes of another user, and outside Linux. Node's own stream makes the descriptor non-blocking when it
    // is first accessed, and Node restores the mode at exit.
    void (fd === 1 ? process.stdout : process.stderr);
    return fd;
  }
};
