/** Writes the log to a file descriptor without blocking. If the reader is slow or gone, lines are lost; the process never waits. */
import { closeSync, constants, fstatSync, openSync, writeSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";

/** The most bytes that wait for a slow reader; further lines are lost. */
const MAX_WAITING_BYTES = 2 ** 20;

/** Time between two attempts to write to a full pipe, in ms. */
const RETRY_MS = 20;

export class LogStream implements Disposable {
  readonly #fd: number;
  readonly #isOwn: boolean;
  readonly #waiting: Buffer[] = [];
  #waitingBytes = 0;
  #timer: ReturnType<typeof setTimeout> | undefined;
  /** True if a part of the first waiting line is written. */
  #isPartial = false;
  /** True if a partly written line was lost, so that the next line must start with a newline. */
  #isTorn = false;
  #lost = 0;

  constructor(fd: number) {
    this.#fd = withoutBlocking(fd);
    this.#isOwn = this.#fd !== fd;
  }

  /** The number of lines that could not be written. */
  get lost(): number {
    return this.#lost;
  }

  /** Writes a line at once, or later if the reader is slow, or drops it. Never throws. */
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

  /** Resolves once no line waits, or after `timeout` ms. */
  async flushed(timeout: number): Promise<void> {
    const deadline = performance.now() + timeout;
    while (this.#waiting.length > 0 && performance.now() < deadline) await sleep(RETRY_MS);
  }

  #flush(): void {
    this.#timer = undefined;
    for (let line = this.#waiting[0]; line !== undefined; line = this.#waiting[0]) {
      try {
        if (this.#isTorn) writeSync(this.#fd, "\n");
        this.#isTorn = false;
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
        this.#isTorn ||= this.#isPartial;
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

/** A descriptor of the same output that never blocks. Never throws. */
const withoutBlocking = (fd: number): number => {
  // Files never block, and a reopened file would be written from its start.
  if (fstatSync(fd).isFile()) return fd;
  try {
    // Opens a new file description, because the inherited one shares its mode with other processes.
    return openSync(`/proc/self/fd/${fd}`, constants.O_WRONLY | constants.O_NONBLOCK | constants.O_NOCTTY);
  } catch {
    // Fails for sockets, for pipes of another user, and outside Linux. Accessing Node's own stream makes the descriptor non-blocking; Node restores the mode at exit.
    void (fd === 1 ? process.stdout : process.stderr);
    return fd;
  }
};
