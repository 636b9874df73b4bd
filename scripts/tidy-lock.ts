/**
 * Makes package-lock.json files portable after `npm install`. Run `npm run lock` whenever a dependency changes.
 *
 * 1. Removes the download addresses, so that the file works with any registry or mirror.
 * 2. Adds optional packages of other platforms that the local registry did not serve. npm 11 omits them, and `npm ci` then refuses
 * the file (npm/cli issue 9846). Entries without integrity are still pinned to an exact version.
 */
import { readFileSync, writeFileSync } from "node:fs";

interface Package {
  version?: string;
  resolved?: string;
  dev?: boolean;
  optional?: boolean;
  os?: string[];
  cpu?: string[];
  libc?: string[];
  optionalDependencies?: Record<string, string>;
}

const platforms = /(android|darwin|freebsd|linux|netbsd|openbsd|win32|sunos|aix)/;
const processors = /(arm64|arm|ia32|x64|ppc64|riscv64|s390x|loong64|mips64el)/;

for (const name of ["package-lock.json", "test/interop/package-lock.json"]) {
  const file = new URL(`../${name}`, import.meta.url);
  const lock = JSON.parse(readFileSync(file, "utf8")) as { packages: Record<string, Package> };

  for (const entry of Object.values(lock.packages)) {
    delete entry.resolved;
    for (const [name, version] of Object.entries(entry.optionalDependencies ?? {})) {
      const path = `node_modules/${name}`;
      const os = platforms.exec(name)?.[1];
      const cpu = processors.exec(name)?.[1];
      if (lock.packages[path] || !os || !cpu) continue;
      // The keys have npm's order, so that the next install does not change the file.
      lock.packages[path] = {
        version: version.replace(/^[\^~]/, ""),
        cpu: [cpu],
        ...(entry.dev && { dev: true }),
        ...(name.endsWith("-musl") && { libc: ["musl"] }),
        optional: true,
        os: [os],
      };
    }
  }

  const sorted = Object.entries(lock.packages).sort(([a], [b]) => (a < b ? -1 : 1));
  lock.packages = Object.fromEntries(sorted);
  writeFileSync(file, `${JSON.stringify(lock, null, 2)}\n`);
}
