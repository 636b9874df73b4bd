/** Copies the parts of the tree that scripts read, for tests of scripts that write files. */
import { spawnSync } from "node:child_process";
import { cpSync, mkdtempSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import os from "node:os";
import { join } from "node:path";

export const root = join(import.meta.dirname, "../..");

export interface ScriptResult {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

export class TreeCopy implements Disposable {
  readonly path = mkdtempSync(join(os.tmpdir(), "stepd-tree-"));

  constructor(parts: readonly string[]) {
    for (const part of ["package.json", "scripts", ...parts]) cpSync(join(root, part), join(this.path, part), { recursive: true });
    symlinkSync(join(root, "node_modules"), join(this.path, "node_modules"), "dir");
  }

  /** Runs a copied script. */
  run(script: string): ScriptResult {
    return spawnSync(process.execPath, [join("scripts", script)], { cwd: this.path, encoding: "utf8" });
  }

  read(file: string): string {
    return readFileSync(join(this.path, file), "utf8");
  }

  write(file: string, text: string): void {
    writeFileSync(join(this.path, file), text);
  }

  delete(file: string): void {
    rmSync(join(this.path, file));
  }

  changed(file: string): number {
    return statSync(join(this.path, file)).mtimeMs;
  }

  [Symbol.dispose](): void {
    rmSync(this.path, { recursive: true, force: true });
  }
}
