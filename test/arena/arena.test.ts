/** Tests the arena: first fit, merging of free neighbours, growth, refusals, and a long random run compared with a model. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Arena, type Lease } from "../../src/arena/arena.ts";
import { random } from "../support/tensors.ts";

const MIB = 2 ** 20;

const make = (): { arena: Arena; whole: number; first: number } => {
  const arena = new Arena(1, 0);
  using lease = arena.lease(1);
  return { arena, whole: arena.capacity, first: lease.start };
};

test("lease() allocates nearly all of the arena or more, and never at address 0", () => {
  const { arena, whole, first } = make();
  assert.ok(whole > MIB - 2048 && whole <= MIB);
  assert.ok(first >= 1024);
  assert.deepEqual([arena.used, arena.openLeases], [0, 0]);
});

test("lease() takes the lowest block that is large enough", () => {
  const { arena, first } = make();
  const leases = [100, 1000, 100, 100].map((bytes) => arena.lease(bytes));
  leases[1]?.release();
  const small = arena.lease(200);
  const large = arena.lease(1024);
  assert.equal(small.start, leases[1]?.start === undefined ? -1 : first + 128);
  assert.ok(large.start > (leases[3] as Lease).start, "what does not fit the hole goes behind");
});

test("blocks start at cache lines and do not overlap", () => {
  const { arena } = make();
  const starts = [1, 63, 64, 65, 1].map((bytes) => arena.lease(bytes).start);
  assert.deepEqual(
    starts.map((start) => start - (starts[0] as number)),
    [0, 64, 128, 192, 320],
  );
});

for (const order of [
  [0, 1, 2],
  [0, 2, 1],
  [1, 0, 2],
  [1, 2, 0],
  [2, 0, 1],
  [2, 1, 0],
]) {
  test(`neighbours freed in the order ${order} merge into one block`, () => {
    const { arena, whole, first } = make();
    const third = Math.floor(whole / 3 / 64) * 64;
    const leases = [third, third, whole - 2 * third].map((bytes) => arena.lease(bytes));
    assert.equal(arena.used, whole);
    for (const index of order) leases[index]?.release();
    assert.equal(arena.used, 0);
    assert.equal(arena.lease(whole).start, first);
  });
}

test("lease() throws OVERLOADED with a whole number of seconds if the block does not fit at present", () => {
  const { arena, whole } = make();
  const half = arena.lease(whole / 2);
  assert.throws(
    () => arena.lease(whole / 2 + 64),
    (error: { code: string; detail: { limit: "server"; retry_after: number } }) =>
      error.code === "OVERLOADED" && Number.isInteger(error.detail.retry_after) && error.detail.retry_after >= 1,
  );
  assert.equal(arena.openLeases, 1, "a refused lease is not held");
  half.release();
  assert.equal(arena.lease(whole / 2 + 64).bytes, arena.bytes);
});

test("retry_after is short while memory is freed fast or no rate is known, and longer while little is freed", () => {
  const { arena, whole } = make();
  const wait = (): number => {
    using _ = arena.lease(whole);
    try {
      arena.lease(whole);
    } catch (error) {
      return (error as { detail: { limit: "server"; retry_after: number } }).detail.retry_after;
    }
    return 0;
  };
  const idle = new Arena(1, 0);
  const held = idle.lease(whole);
  assert.throws(() => idle.lease(whole), { detail: { limit: "server", retry_after: 1, found: `${whole} bytes` } });
  held.release();
  const slow = new Arena(1, 0);
  slow.lease(64).release();
  using _ = slow.lease(whole);
  assert.throws(() => slow.lease(whole), { detail: { limit: "server", retry_after: 30, found: `${whole} bytes` } });
  for (let i = 0; i < 20; i++) arena.lease(whole).release();
  assert.equal(wait(), 1);
});

test("lease() throws PAYLOAD_TOO_LARGE if the block can never fit", () => {
  const { arena, whole } = make();
  assert.throws(() => arena.lease(whole + 1), { code: "PAYLOAD_TOO_LARGE" });
  assert.equal(arena.used, 0);
});

test("alloc() throws PAYLOAD_TOO_LARGE if the block can never fit beside the call's own blocks", () => {
  const { arena, whole } = make();
  const lease = arena.lease(Math.floor(whole * 0.6));
  assert.throws(() => lease.alloc(Math.floor(whole * 0.6)), { code: "PAYLOAD_TOO_LARGE" });
  lease.release();
  assert.equal(arena.used, 0);
});

test("alloc() throws OVERLOADED if the block would fit without the other calls", () => {
  const { arena, whole } = make();
  const [first, second] = [arena.lease(whole / 4), arena.lease(whole / 2)];
  assert.throws(() => first.alloc(whole / 2), { code: "OVERLOADED" });
  second.release();
  first.alloc(whole / 2);
});

test("an empty lease needs no memory, even in a full arena", () => {
  const { arena, whole } = make();
  using _ = arena.lease(whole);
  using empty = arena.lease(0);
  assert.deepEqual([arena.openLeases, arena.used, empty.start], [2, whole, 0]);
});

test("release() frees everything once, however often it is called", () => {
  const { arena } = make();
  const lease = arena.lease(1000);
  lease.alloc(5);
  lease.allocZeros(64);
  lease.release();
  lease.release();
  lease[Symbol.dispose]();
  assert.deepEqual([arena.used, arena.openLeases], [0, 0]);
  assert.equal(arena.highWater, 1024 + 64 + 64);
});

test("allocZeros() clears the memory of the previous call", () => {
  const { arena } = make();
  const dirty = arena.lease(256);
  dirty.bytes.fill(7, dirty.start, dirty.start + 256);
  dirty.release();
  const lease = arena.lease(1);
  const start = lease.allocZeros(100);
  assert.ok(lease.view(start, 100).every((byte) => byte === 0));
});

test("a block grows in place, up to the whole arena, if the memory behind it is free", () => {
  const { arena, whole, first } = make();
  const lease = arena.lease(64);
  lease.bytes.fill("abc", first, first + 3);
  assert.deepEqual(lease.grow(first, 3, 65, 1000), { start: first, bytes: 1024 });
  assert.deepEqual(lease.grow(first, 3, whole - 10, 10 * whole), { start: first, bytes: whole });
  assert.equal(arena.used, whole);
  assert.equal(lease.view(first, 3).toString(), "abc");
  lease.release();
  assert.equal(arena.used, 0);
});

test("a block moves with its contents if the memory behind it is taken", () => {
  const { arena, first } = make();
  const lease = arena.lease(64);
  const other = arena.lease(64);
  lease.bytes.fill("abcdef", first, first + 6);
  const { start, bytes } = lease.grow(first, 6, 100, 200);
  assert.deepEqual([start, bytes], [other.start + 64, 256]);
  assert.equal(lease.view(start, 6).toString(), "abcdef");
  assert.equal(arena.lease(64).start, first, "the old block is free");
});

test("a growth that does not fit is refused, and the block stays unchanged", () => {
  const { arena, whole, first } = make();
  const lease = arena.lease(64);
  const other = arena.lease(whole - 128);
  lease.bytes.fill("abc", first, first + 3);
  assert.throws(() => lease.grow(first, 3, 1000, 2000), { code: "OVERLOADED" });
  assert.throws(() => lease.grow(first, 3, whole + 1, whole + 1), { code: "PAYLOAD_TOO_LARGE" });
  assert.equal(lease.view(lease.start, 3).toString(), "abc");
  other.release();
  lease.grow(first, 3, 1000, 2000);
  lease.release();
  assert.equal(arena.used, 0);
});

test("a block that asks for room to spare gets what is free, if the minimum fits", () => {
  const { arena, whole, first } = make();
  const lease = arena.lease(Math.ceil(whole * 0.6));
  assert.deepEqual(lease.grow(first, 10, Math.ceil(whole * 0.6) + 1, Math.ceil(whole * 1.2)), { start: first, bytes: whole });
});

test("trim() frees the end of a block and nothing else", () => {
  const { arena, whole, first } = make();
  const lease = arena.lease(whole);
  lease.bytes.fill("abc", first, first + 3);
  lease.trim(first, 65);
  assert.equal(arena.used, 128);
  lease.trim(first, 1000);
  lease.trim(first + 64, 1);
  assert.equal(arena.used, 128);
  assert.equal(lease.alloc(whole - 128), first + 128);
  assert.equal(lease.view(first, 3).toString(), "abc");
  lease.release();
  assert.equal(arena.used, 0);
});

test("30,000 random allocations, growths and releases agree with a model that marks every byte", () => {
  const { arena, whole } = make();
  const next = random(7);
  const pick = (below: number): number => Math.floor(Math.abs(next()) * below);
  interface Held {
    readonly lease: Lease;
    readonly blocks: { start: number; bytes: number; mark: number }[];
  }
  const held: Held[] = [];
  const paint = ({ start, bytes, mark }: Held["blocks"][number]): void => {
    arena.bytes.fill(mark, start, start + bytes);
  };
  const check = ({ start, bytes, mark }: Held["blocks"][number]): void => {
    const view = arena.bytes.subarray(start, start + bytes);
    assert.ok(view[0] === mark && view[bytes - 1] === mark && view[bytes >> 1] === mark, "another block wrote into this one");
  };
  const padded = (bytes: number): number => Math.ceil(bytes / 64) * 64;
  for (let i = 0; i < 30_000; i++) {
    const size = 1 + pick(pick(10) === 0 ? whole / 4 : 2000);
    const at = held[pick(held.length)];
    try {
      const action = pick(4);
      if (!at || action === 0) {
        const lease = arena.lease(size);
        const block = { start: lease.start, bytes: padded(size), mark: 1 + pick(255) };
        paint(block);
        held.push({ lease, blocks: [block] });
      } else if (action === 1) {
        const block = { start: at.lease.alloc(size), bytes: padded(size), mark: 1 + pick(255) };
        paint(block);
        at.blocks.push(block);
      } else if (action === 2) {
        const block = at.blocks[pick(at.blocks.length)] as Held["blocks"][number];
        const least = block.bytes + size;
        const { start, bytes } = at.lease.grow(block.start, block.bytes, least, least * 2);
        assert.ok(bytes >= least);
        assert.ok(
          arena.bytes.subarray(start, start + block.bytes).every((byte) => byte === block.mark),
          "growth lost content",
        );
        block.start = start;
        block.bytes = bytes;
        paint(block);
      } else {
        for (const block of at.blocks) check(block);
        at.lease.release();
        held.splice(held.indexOf(at), 1);
      }
    } catch (error) {
      const { code } = error as { code?: string };
      if (code !== "OVERLOADED" && code !== "PAYLOAD_TOO_LARGE") throw error;
    }
    const used = held.flatMap(({ blocks }) => blocks).reduce((sum, { bytes }) => sum + bytes, 0);
    assert.equal(arena.used, used);
    assert.ok(used <= whole);
    assert.equal(arena.openLeases, held.length);
  }
  for (const { lease, blocks } of held) {
    for (const block of blocks) check(block);
    lease.release();
  }
  assert.equal(arena.used, 0);
  assert.ok(arena.lease(whole));
});

test("an arena of 4 GiB works, without touching all of it", () => {
  const arena = new Arena(4096, 0);
  const lease = arena.lease(3 * 2 ** 30);
  const high = lease.alloc(100);
  lease.bytes.fill("high", high, high + 4);
  assert.ok(high > 3 * 2 ** 30);
  assert.equal(lease.view(high, 4).toString(), "high");
});

test("large calls leave a reserve for small calls and for running calls, but a call alone may use everything", () => {
  const arena = new Arena(16, 0, 1 / 16);
  const MIB = 2 ** 20;
  {
    using alone = arena.lease(arena.capacity);
    assert.equal(alone.arena.used, arena.capacity);
  }
  using first = arena.lease(12 * MIB);
  assert.throws(() => arena.lease(3 * MIB + 64), { code: "OVERLOADED" });
  using second = arena.lease(3 * MIB);
  assert.throws(() => arena.lease(65537), { code: "OVERLOADED" });
  using small = arena.lease(65536);
  first.alloc(MIB / 2);
  assert.equal(arena.used, 15.5 * MIB + 65536);
  assert.deepEqual([second.start > first.start, small.start > second.start], [true, true]);
});

test("a growing block leaves the reserve free, and a small running call does not block a large one", () => {
  const MIB = 2 ** 20;
  const arena = new Arena(16, 0, 1 / 16);
  using small = arena.lease(1000);
  {
    using large = arena.lease(15.5 * MIB);
    assert.ok(large.start > small.start);
  }
  using other = arena.lease(2 * MIB);
  using growing = arena.lease(65536);
  const { bytes } = growing.grow(growing.start, 0, 4 * MIB, 16 * MIB);
  assert.ok(bytes >= 4 * MIB && arena.used <= 15 * MIB, `${arena.used} in use`);
  assert.throws(() => growing.grow(growing.start, 0, 13.5 * MIB, 14 * MIB), { code: "OVERLOADED" });
  using late = arena.lease(60_000);
  assert.notEqual(late.start, other.start);
});

test("a released lease allocates and frees nothing", () => {
  const arena = new Arena(1, 0);
  const lease = arena.lease(100_000);
  const { start } = lease;
  lease.release();
  using other = arena.lease(100_000);
  assert.equal(other.start, start);
  lease.trim(start, 1);
  assert.throws(() => lease.alloc(1), /released/);
  assert.throws(() => lease.allocInput(1), /released/);
  assert.throws(() => lease.grow(start, 0, 200_000, 200_000));
  lease.release();
  assert.equal(arena.used, Math.ceil(100_000 / 64) * 64);
});
