/** The file descriptor of the log. It may be full, closed, or read by nobody: lines may be lost, and the process never waits for it. */
import { closeSync, constants, fstatSync, openSync, writeSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";

/** Bytes that may wait for a slow reader; lines beyond are lost. */
const MAX_WAITING_BYTES = 2 ** 20;

/** How often a full pipe is tried again, in ms. */
const RETRY_MS = 20;

export class LogStream implements Disposable {
  readonly #fd: number;
  readonly #isOwn: boolean;
  readonly #waiting: Buffer[] = [];
  #waitingBytes = 0;
  #timer: ReturnType<typeof setTimeout> | undefined;
  /** Whether the first waiting line was written in part. */
  #isBegun = false;
  /** Whether a line was lost after a part of it was written: the next one must not join it. */
  #isTorn = false;
  #lost = 0;

  constructor(fd: number) {
    this.#fd = withoutBlocking(fd);
    this.#isOwn = this.#fd !== fd;
  }

  /** Lines that could not be written. */
  get lost(): number {
    return this.#lost;
  }

  /** Writes a line now, later if the reader is slow, or never. Throws nothing. */
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

  /** Resolves once no line waits, at the latest after `most` ms. */
  async flushed(most: number): Promise<void> {
    const deadline = performance.now() + most;
    while (this.#waiting.length > 0 && performance.now() < deadline) await sleep(RETRY_MS);
  }

  #flush(): void {
    this.#timer = undefined;
    for (let line = this.#waiting[0]; line !== undefined; line = this.#waiting[0]) {
      try {
        if (this.#isTorn) writeSync(this.#fd, "\n");
        this.#isTorn = false;
        const written = writeSync(this.#fd, line);
        this.#isBegun = written < line.length;
        this.#waitingBytes -= written;
        if (this.#isBegun) this.#waiting[0] = line.subarray(written);
        else this.#waiting.shift();
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code === "EAGAIN") {
          this.#timer = setTimeout(() => this.#flush(), RETRY_MS).unref();
          return;
        }
        this.#isTorn ||= this.#isBegun;
        this.#isBegun = false;
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

/** The same output, written to without waiting. Throws nothing. */
const withoutBlocking = (fd: number): number => {
  // Files never block, and opened again they would be written from their start.
  if (fstatSync(fd).isFile()) return fd;
  try {
    // A description of its own: the mode of the one that was inherited is the other processes' too.
    return openSync(`/proc/self/fd/${fd}`, constants.O_WRONLY | constants.O_NONBLOCK | constants.O_NOCTTY);
  } catch {
    // Sockets cannot be opened so, nor pipes of another user, nor anything outside Linux. Node makes its own streams not block, and puts the mode back at the end.
    void (fd === 1 ? process.stdout : process.stderr);
    return fd;
  }
};
