/** A temporary shared folder for one test, in memory (/dev/shm) if the machine has it. */
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

export interface Place {
  readonly file: string;
  readonly offset: number;
  readonly length: number;
}

const MEMORY = "/dev/shm";

export class SharedFolder implements Disposable {
  readonly path = mkdtempSync(join(existsSync(MEMORY) ? MEMORY : tmpdir(), "stepd-test-"));

  /** Writes blobs into one file, one after the other, and returns their places. A number reserves that many bytes. */
  write(file: string, ...blobs: readonly (Uint8Array | number)[]): Place[] {
    let offset = 0;
    const parts = blobs.map((blob) => (typeof blob === "number" ? Buffer.alloc(blob) : blob));
    writeFileSync(join(this.path, file), Buffer.concat(parts));
    return parts.map(({ length }) => {
      const place = { file, offset, length };
      offset += length;
      return place;
    });
  }

  read({ file, offset, length }: Place): Buffer {
    return Buffer.from(readFileSync(join(this.path, file)).subarray(offset, offset + length));
  }

  [Symbol.dispose](): void {
    rmSync(this.path, { recursive: true });
  }
}
