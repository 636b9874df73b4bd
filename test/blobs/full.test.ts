/** Tests results whose file in the shared folder runs out of space in the middle of a write. */
import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { mkdirSync, truncateSync, writeFileSync } from "node:fs";
import { open } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { SharedFolder as Folder, SharedRange } from "../../src/blobs/shared.ts";
import { Parts } from "../../src/codec/parts.ts";
import { StepdError } from "../../src/errors/errors.ts";
import { gradsAt, SMALL, type StepReply, startParams } from "../support/run.ts";
import { MSGPACK, pack, type RpcError, readReply, TestService } from "../support/service.ts";
import { writeTensors } from "../support/tensors.ts";
import { type Place, SharedFolder } from "./_folder.ts";

const KIB = 1024;
const PAGE = 4 * KIB;

const params = writeTensors(startParams(SMALL));
const grads = writeTensors(gradsAt(SMALL, 0));
const optimizer = { name: "adamw" };

/** Returns the problem details of a step that must fail. */
const refusalOf = async (service: TestService, call: unknown): Promise<RpcError["data"] & { readonly status: number }> => {
  const response = await service.post("/v1/step", pack(call), MSGPACK);
  return (await readReply(response)) as RpcError["data"] & { readonly status: number };
};

const requireHealthy = async (service: TestService, expected: StepReply): Promise<void> => {
  assert.equal(await service.metric("stepd_arena_used_bytes"), 0);
  const again = await service.call<StepReply>("optimizer.step", { optimizer, params, grads });
  assert.ok(Buffer.from(again.state).equals(Buffer.from(expected.state)));
};

test("EFBIG: the file size limit ends in the middle of a place", async () => {
  using folder = new SharedFolder();
  await using service = await TestService.start({ STEPD_SHARED_DIR: folder.path });
  const expected = await service.call<StepReply>("optimizer.step", { optimizer, params, grads });
  const [, room] = folder.write("limited", PAGE, 2 * expected.state.length) as [Place, Place];
  const written = 100;
  execFileSync("prlimit", ["--pid", String(service.process.pid), `--fsize=${room.offset + written}`]);
  const { status, name, field, expected: wanted, found } = await refusalOf(service, { optimizer, params, grads, reply: { into: { state: room } } });
  assert.deepEqual([status, name, field], [400, "INVALID_PARAMS", "/reply/into/state/file"]);
  assert.equal(wanted, `a place that takes all ${expected.state.length} bytes of the result`);
  assert.equal(found, `EFBIG, the server's limit of file sizes (ulimit -f), after ${written} bytes; what was there before is overwritten so far`);
  // The server wrote the bytes before the failure, and no others.
  const bytes = folder.read(room);
  assert.ok(bytes.subarray(0, written).equals(Buffer.from(expected.state).subarray(0, written)));
  assert.ok(bytes.subarray(written).every((byte) => byte === 0));
  await requireHealthy(service, expected);
});

/** Mounts a tmpfs of a size in KiB. Returns undefined if the machine does not allow mounts. */
const mount = (path: string, kib: number): Disposable | undefined => {
  if (spawnSync("mount", ["-t", "tmpfs", "-o", `size=${kib}k`, "tmpfs", path]).status !== 0) return undefined;
  return { [Symbol.dispose]: () => void execFileSync("umount", [path]) };
};

test("ENOSPC: a full file system cannot fill a hole that the file's block count hides", async (context) => {
  using folder = new SharedFolder();
  const full = join(folder.path, "full");
  mkdirSync(full);
  using mounted = mount(full, 64);
  if (!mounted) return context.skip("nothing can be mounted here");
  await using service = await TestService.start({ STEPD_SHARED_DIR: full });
  const expected = await service.call<StepReply>("optimizer.step", { optimizer, params, grads });
  // The file has one allocated page, then holes. Blocks allocated behind its end make the block count look as if it had no
  // holes.
  const file = join(full, "holes");
  writeFileSync(file, Buffer.alloc(PAGE));
  truncateSync(file, 8 * PAGE);
  execFileSync("fallocate", ["--keep-size", "--offset", String(8 * PAGE), "--length", String(7 * PAGE), file]);
  writeFileSync(join(full, "params"), params);
  spawnSync("dd", ["if=/dev/zero", `of=${join(full, "rest")}`, "bs=4k"]);
  const room = { file: "holes", offset: PAGE - 100, length: 7 * PAGE };
  assert.ok(expected.state.length > 100 && expected.state.length < room.length);
  const at = { file: "params", offset: 0, length: params.length };
  const { status, name, field, found } = await refusalOf(service, { optimizer, params: at, grads, reply: { into: { state: room } } });
  assert.deepEqual([status, name, field], [400, "INVALID_PARAMS", "/reply/into/state/file"]);
  assert.equal(found, "ENOSPC, a full file system, after 100 bytes; what was there before is overwritten so far");
  assert.match(service.log.join(""), /^\{"level":30,[^\n]* listens on [^\n]*\}\n$/, "nothing is logged but the start");
  await requireHealthy(service, expected);
});

test("ENOSPC: a full device", async () => {
  using folder = new SharedFolder();
  const shared = new Folder(folder.path);
  await using place = new SharedRange(shared, await open("/dev/full", "w"), { file: "f", offset: 0, length: 9 }, "/state");
  await assert.rejects(place.write(new Parts([Buffer.alloc(5), Buffer.alloc(4)])), (error: StepdError) => {
    assert.ok(error instanceof StepdError, String(error));
    assert.equal(error.code, "INVALID_PARAMS");
    assert.equal(error.message, "/state/file: expected a place that takes all 9 bytes of the result, found ENOSPC, a full file system, after 0 bytes");
    return true;
  });
  assert.equal(shared.bytesOut, 0);
});
