/** Tests steps on files of the shared folder: the same bytes as over the socket, and no access to other callers' files. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { linkSync, mkdirSync, rmSync, symlinkSync, truncateSync, writeFileSync } from "node:fs";
import net from "node:net";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { allSettled } from "../../src/blobs/shared.ts";
import { gradsAt, LARGE, run, SMALL, type StepReply, startParams } from "../support/run.ts";
import { JSON_TYPE, MSGPACK, pack, type RpcError, readReply, TestService } from "../support/service.ts";
import { rawTensors, writeTensors } from "../support/tensors.ts";
import { oneOfEach } from "../support/variants.ts";
import { type Place, SharedFolder } from "./_folder.ts";

const STEPS = 3;
/** The room for a state is larger than any state in these tests. */
const STATE_ROOM = 8 * 2 ** 20;

let folder: SharedFolder;
let service: TestService;
before(async () => {
  folder = new SharedFolder();
  service = await TestService.start({ STEPD_SHARED_DIR: folder.path });
});
after(async () => {
  await service[Symbol.asyncDispose]();
  folder[Symbol.dispose]();
});

interface SharedReply {
  readonly params: Place;
  readonly state: Place;
  readonly step: number;
}

const params = writeTensors(startParams(SMALL));
const grads = writeTensors(gradsAt(SMALL, 0));
const optimizer = { name: "adamw" };

const requireSame = (found: Uint8Array, expected: Uint8Array, what: string): void => assert.ok(Buffer.from(found).equals(Buffer.from(expected)), what);

const requireError = async (call: unknown, field: string, pattern: RegExp, name = "INVALID_PARAMS", to = service, headers = {}): Promise<void> => {
  const response = await to.post("/rpc", pack({ jsonrpc: "2.0", id: 1, method: "optimizer.step", params: call }), MSGPACK, headers);
  const { error } = (await readReply(response)) as { error?: RpcError };
  assert.ok(error, "a refusal");
  assert.equal(error.data.name, name, error.message);
  assert.equal(error.data.field, field, error.message);
  assert.match(error.message, pattern);
};

for (const { label, optimizer: variant } of oneOfEach) {
  test(`${label}: steps in place give the same bytes as steps over the socket`, async () => {
    const expected = await run(service, { optimizer: variant, shapes: LARGE, steps: STEPS });
    const file = label.replaceAll(/\W/g, "_");
    const start = writeTensors(startParams(LARGE));
    const gradFile = writeTensors(gradsAt(LARGE, 0));
    const [paramsAt, gradsPlace, room] = folder.write(file, start, gradFile, STATE_ROOM) as [Place, Place, Place];
    let state: Place | null = null;
    for (let step = 0; step < STEPS; step++) {
      folder.write(`${file}.grads`, writeTensors(gradsAt(LARGE, step)));
      const call = { optimizer: variant, params: paramsAt, grads: { ...gradsPlace, file: `${file}.grads`, offset: 0 }, state };
      const reply: SharedReply = await service.call("optimizer.step", { ...call, ...(state === null && { reply: { into: { state: room } } }) });
      assert.deepEqual(reply.params, paramsAt);
      state = reply.state;
    }
    requireSame(folder.read(paramsAt), expected.params, "params");
    requireSame(folder.read(state as Place), expected.state, "state");
  });
}

test("results written to other places leave the inputs unchanged", async () => {
  const [from, gradPlace, to, room] = folder.write("apart", params, grads, params.length + 100, STATE_ROOM) as [Place, Place, Place, Place];
  const expected = await service.call<StepReply>("optimizer.step", { optimizer, params, grads });
  const reply = await service.call<SharedReply>("optimizer.step", { optimizer, params: from, grads: gradPlace, reply: { into: { params: to, state: room } } });
  assert.deepEqual(reply.params, { ...to, length: params.length });
  assert.deepEqual(reply.state, { ...room, length: expected.state.length });
  requireSame(folder.read(reply.params), expected.params, "params");
  requireSame(folder.read(reply.state), expected.state, "state");
  requireSame(folder.read(from), params, "the params given");
  // Tensors that came over the socket can have their results in files, too.
  const mixed = await service.call<SharedReply>("optimizer.step", { optimizer, params, grads, reply: { into: { params: to, state: room } } });
  assert.deepEqual(mixed, reply);
});

test("JSON calls can name files, like MessagePack calls", async () => {
  const [at, gradPlace] = folder.write("json", params, grads) as [Place, Place];
  const { state: _, ...expected } = await service.call<StepReply>("optimizer.step", { optimizer, params, grads });
  const response = await service.post("/v1/step", JSON.stringify({ optimizer, params: at, grads: gradPlace }), JSON_TYPE);
  const reply = (await readReply(response)) as { params: Place; step: number };
  assert.deepEqual([reply.params, reply.step], [at, expected.step]);
  requireSame(folder.read(at), expected.params, "params");
});

test("the other methods read files, too", async () => {
  const first = await service.call<StepReply>("optimizer.step", { optimizer, params, grads });
  const [at, gradPlace, state] = folder.write("methods", params, grads, first.state) as [Place, Place, Place];
  for (const [method, byFile, bySocket] of [
    ["optimizer.init", { optimizer, params: at }, { optimizer, params }],
    ["optimizer.norms", { grads: gradPlace, params: at }, { grads, params }],
    ["state.inspect", { state }, { state: first.state }],
    ["state.convert", { state, optimizer: "adam" }, { state: first.state, optimizer: "adam" }],
  ] as const) {
    assert.deepEqual(await service.call(method, byFile), await service.call(method, bySocket), method);
  }
});

test("a refused step writes nothing", async () => {
  const bad = writeTensors(
    Object.fromEntries(Object.entries(gradsAt(SMALL, 0)).map(([name, tensor]) => [name, { ...tensor, data: tensor.data.map(() => Number.NaN) }])),
  );
  const [at, gradPlace, room, small] = folder.write("refused", params, bad, STATE_ROOM, 100) as [Place, Place, Place, Place];
  const call = { optimizer, params: at, grads: gradPlace, reply: { into: { state: room } } };
  await requireError(call, "/grads", /NaN or infinity/, "NON_FINITE_GRADIENT");
  // The server refuses the too small room for the state before it writes the parameters.
  await requireError(
    { ...call, grads, reply: { into: { state: small } } },
    "/reply/into/state/length",
    /expected at least \d+, the bytes of the result, found 100/,
  );
  const first = await service.call<StepReply>("optimizer.step", { optimizer: { name: "sgd" }, params, grads });
  const [plain] = folder.write("grows", first.state) as [Place];
  await requireError({ optimizer: { name: "sgd", momentum: 0.9 }, params: at, grads, state: plain }, "/state/length", /expected at least \d+/);
  requireSame(folder.read(at), params, "params");
  requireSame(folder.read(plain), first.state, "state");
  assert.ok(folder.read(room).every((byte) => byte === 0));
});

test("invalid places are refused with the field at fault", async () => {
  const [at, gradPlace, room] = folder.write("places", params, grads, STATE_ROOM) as [Place, Place, Place];
  const call = { optimizer, params: at, grads: gradPlace };
  const size = room.offset + room.length;
  await requireError({ ...call, grads: { ...gradPlace, file: "absent" } }, "/grads/file", /found none of that name/);
  await requireError({ ...call, grads: { ...gradPlace, offset: size + 1 } }, "/grads/offset", new RegExp(`at most ${size}`));
  await requireError({ ...call, grads: { ...gradPlace, length: size } }, "/grads/length", new RegExp(`at most ${size - gradPlace.offset}, .*found ${size}`));
  await requireError({ ...call, grads: { ...gradPlace, length: 7 } }, "/grads", /at least 8 bytes/, "TENSORS_CORRUPT");
  for (const file of ["../places", "a/b", ".hidden", "", "/etc/passwd", "x".repeat(129), "nul\0"]) {
    await requireError({ ...call, grads: { ...gradPlace, file } }, "/grads/file", /a name of at most 128 letters/);
  }
  await requireError({ ...call, reply: { into: { state: { ...room, offset: 0 } } } }, "/reply/into/state", /a place apart/);
  await requireError(
    { ...call, params: { w: { shape: [1], values: [1] } }, grads: {}, reply: { into: { params: at } } },
    "/reply/into/params",
    /tensors by name/,
  );
  await requireError({ ...call, params: { file: "places" } }, "/params/offset", /found none/);
});

test("only a regular file with a single link is opened", async () => {
  const call = { optimizer, params, grads };
  const place = { offset: 0, length: grads.length };
  writeFileSync(join(folder.path, "target"), grads);
  symlinkSync("target", join(folder.path, "link"));
  symlinkSync("/etc/hostname", join(folder.path, "out"));
  mkdirSync(join(folder.path, "folder"));
  execFileSync("mkfifo", [join(folder.path, "pipe")]);
  for (const [file, found] of [
    ["link", /found a link/],
    ["out", /found a link/],
    ["folder", /found (something else|a folder)/],
    ["pipe", /found (something else|a pipe)/],
  ] as const) {
    await requireError({ ...call, grads: { file, ...place } }, "/grads/file", found);
    await requireError({ ...call, reply: { into: { params: { file, ...place } } } }, "/reply/into/params/file", found);
  }
  await service.call("optimizer.step", { ...call, grads: { file: "target", ...place } });
  linkSync(join(folder.path, "target"), join(folder.path, "twin"));
  await requireError({ ...call, grads: { file: "target", ...place } }, "/grads/file", /another name as well/);
});

test("a file that shrinks during the read is an error", async () => {
  const large = writeTensors({ w: { shape: [2 ** 23], data: new Float32Array(2 ** 23) } });
  const [at] = folder.write("cut", large) as [Place];
  const call = service.call<StepReply>("optimizer.step", { optimizer: { name: "sgd" }, params: at, grads: {} }).then(
    () => "ok",
    (error: Error) => error.message,
  );
  truncateSync(join(folder.path, "cut"), 8);
  // The server may finish before the truncation. In either case it must answer and stay alive.
  assert.match(await call, /^ok$|\/params\/length: expected|cut/);
  assert.equal(await service.metric("stepd_arena_used_bytes"), 0);
});

test("a caller reads only the folder that has the name of its token", async () => {
  using own = new SharedFolder();
  const [alice, bob] = ["alice-token-0123456789", "bob-token-0123456789"];
  writeFileSync(join(own.path, "tokens"), `alice ${alice}\nbob ${bob}\n`);
  mkdirSync(join(own.path, "alice"));
  const [at, gradPlace] = own.write("alice/step", params, grads).map((place) => ({ ...place, file: "step" })) as [Place, Place];
  own.write("step", params, grads);
  await using guarded = await TestService.start({ STEPD_SHARED_DIR: own.path, STEPD_TOKENS_FILE: join(own.path, "tokens") });
  const headers = (token: string) => ({ Authorization: `Bearer ${token}` });
  const call = { optimizer, params: at, grads: gradPlace };
  await requireError(call, "/params/file", /no folder of the caller's token/, "INVALID_PARAMS", guarded, headers(bob));
  symlinkSync("alice", join(own.path, "bob"));
  await requireError(call, "/params/file", /no folder of the caller's token/, "INVALID_PARAMS", guarded, headers(bob));
  const response = await guarded.post("/v1/step", pack(call), MSGPACK, headers(alice));
  assert.equal(response.status, 200);
  const expected = await service.call<StepReply>("optimizer.step", { optimizer, params, grads });
  requireSame(own.read({ ...at, file: "alice/step" }), expected.params, "alice's params");
  requireSame(own.read(at), params, "the file outside of her folder");
});

test("without a shared folder, calls that name files are refused; an invalid folder stops the start", async () => {
  await using bare = await TestService.start();
  await requireError(
    { optimizer, params: { file: "a", offset: 0, length: 1 }, grads },
    "/params",
    /shares no folder \(STEPD_SHARED_DIR\)/,
    "INVALID_PARAMS",
    bare,
  );
  await requireError(
    { optimizer, params, grads, reply: { into: { params: { file: "a", offset: 0, length: 1 } } } },
    "/reply/into/params",
    /shares no folder/,
    "INVALID_PARAMS",
    bare,
  );
  await assert.rejects(TestService.start({ STEPD_SHARED_DIR: join(folder.path, "absent") }), /STEPD_SHARED_DIR: expected a folder/);
  await assert.rejects(TestService.start({ STEPD_SHARED_DIR: join(folder.path, "target") }), /STEPD_SHARED_DIR: expected a folder/);
});

test("bytes read from files count against the arena", async () => {
  await using small = await TestService.start({ STEPD_SHARED_DIR: folder.path, STEPD_ARENA_MIB: "1" });
  const [at] = folder.write("large", Buffer.alloc(2 ** 21)) as [Place];
  await requireError({ optimizer, params: at, grads }, undefined as never, /arena holds/, "PAYLOAD_TOO_LARGE", small);
  assert.equal(await small.metric("stepd_arena_used_bytes"), 0);
});

test("a failed read waits for the other reads and writes, whose memory another call would get otherwise", async () => {
  let isWritten = false;
  const slow = new Promise<void>((resolve) => setTimeout(resolve, 50)).then(() => {
    isWritten = true;
  });
  await assert.rejects(allSettled([Promise.reject(new Error("the disk")), slow]), /the disk/);
  assert.ok(isWritten);
  assert.deepEqual(await allSettled([1, Promise.resolve("two")]), [1, "two"]);
});

test("a token name that is no valid folder name cannot leave the shared folder", async () => {
  using own = new SharedFolder();
  const token = "dots-token-0123456789";
  writeFileSync(join(own.path, "tokens"), `.. ${token}\n. ${token}1\n`);
  mkdirSync(join(own.path, "shared"));
  const [at] = own.write("outside", grads) as [Place];
  await using guarded = await TestService.start({ STEPD_SHARED_DIR: join(own.path, "shared"), STEPD_TOKENS_FILE: join(own.path, "tokens") });
  for (const name of [token, `${token}1`]) {
    const headers = { Authorization: `Bearer ${name}` };
    await requireError({ optimizer, params, grads: at }, "/grads/file", /a token whose name can be no folder's/, "INVALID_PARAMS", guarded, headers);
  }
});

test("replacing a caller's folder by a symbolic link during a call opens no other folder", async () => {
  using own = new SharedFolder();
  const token = "alice-token-0123456789";
  writeFileSync(join(own.path, "tokens"), `alice ${token}\n`);
  for (const folder of ["shared", "shared/real", "secret"]) mkdirSync(join(own.path, folder));
  const [at] = own.write("secret/x", grads).map((place) => ({ ...place, file: "x" })) as [Place];
  await using guarded = await TestService.start({ STEPD_SHARED_DIR: join(own.path, "shared"), STEPD_TOKENS_FILE: join(own.path, "tokens") });
  const alice = join(own.path, "shared/alice");
  let isOver = false;
  const replaceFolder = (async () => {
    while (!isOver) {
      for (const target of ["real", "../secret"]) {
        if (target === "real") mkdirSync(alice);
        else symlinkSync(target, alice);
        await new Promise((resolve) => setImmediate(resolve));
        rmSync(alice, { recursive: true });
      }
    }
  })();
  const call = async (): Promise<void> => {
    for (let i = 0; i < 200; i++) {
      const response = await guarded.post("/v1/norms", pack({ grads: at }), MSGPACK, { Authorization: `Bearer ${token}` });
      assert.equal(response.status, 400, await response.text());
    }
  };
  await Promise.all([call(), call(), call(), call()]).finally(() => {
    isOver = true;
  });
  await replaceFolder;
});

test("a file with holes is refused as a place for results", async () => {
  writeFileSync(join(folder.path, "holes"), "");
  truncateSync(join(folder.path, "holes"), 2 ** 20);
  const place = { file: "holes", offset: 0, length: 2 ** 20 };
  await requireError({ optimizer, params, grads, reply: { into: { state: place } } }, "/reply/into/state/file", /found one with holes/);
});

test("BF16 parameters do not overwrite the full-precision file unless asked to", async () => {
  const [at] = folder.write("whole", params) as [Place];
  await requireError({ optimizer, params: at, grads, reply: { params: "bf16" } }, "/reply/into/params", /must not lie over the whole ones/);
});

test("calls with files leave the arena's reserve to small calls", async () => {
  await using service = await TestService.start({ STEPD_SHARED_DIR: folder.path, STEPD_ARENA_MIB: "64" });
  // Two tensors of this size fill the arena up to a few KiB.
  const elements = 2 ** 23 - 1024;
  const large = writeTensors({ w: { shape: [elements], data: new Float32Array(elements).fill(1) } });
  const [at] = folder.write("greedy", large) as [Place];
  let isOver = false;
  const busy = Array.from({ length: 4 }, async () => {
    let taken = 0;
    while (!isOver) if ((await (await service.post("/v1/norms", pack({ grads: at }), MSGPACK)).status) === 200) taken++;
    return taken;
  });
  const small = [];
  for (let i = 0; i < 40; i++) small.push((await service.post("/v1/step", pack({ optimizer, params, grads }), MSGPACK)).status);
  isOver = true;
  const taken = await Promise.all(busy);
  assert.deepEqual([...new Set(small)], [200]);
  assert.ok(taken.some((count) => count > 0));
});

test("pipelined calls: the end of the first does not start the idle timeout of the second", async () => {
  using own = new SharedFolder();
  const idleMs = 80;
  await using quick = await TestService.start({
    STEPD_SHARED_DIR: own.path,
    STEPD_IDLE_TIMEOUT_MS: String(idleMs),
    STEPD_ARENA_MIB: "640",
    STEPD_WORKERS: "1",
  });
  const elements = 2 ** 27;
  const header = JSON.stringify({ w: { dtype: "F32", shape: [elements], data_offsets: [0, elements * 4] } });
  const [{ length }] = own.write("long", rawTensors(header)) as [Place];
  truncateSync(join(own.path, "long"), length + elements * 4);
  // The first call reads a file too, so that it ends after the second call has begun.
  const [first] = own.write("first", writeTensors({ w: { shape: [2 ** 22], data: new Float32Array(2 ** 22) } })) as [Place];
  const request = (params: unknown): Buffer => {
    const body = pack(params);
    return Buffer.concat([Buffer.from(`POST /v1/norms HTTP/1.1\r\nHost: x\r\nContent-Type: ${MSGPACK}\r\nContent-Length: ${body.length}\r\n\r\n`), body]);
  };
  const socket = net.connect(Number(new URL(quick.url).port), "127.0.0.1");
  socket.write(Buffer.concat([request({ grads: first }), request({ grads: { file: "long", offset: 0, length: length + elements * 4 } })]));
  let text = "";
  for await (const chunk of socket) {
    text += (chunk as Buffer).toString("latin1");
    if (text.split("HTTP/1.1 200 ").length === 3) break;
  }
  assert.equal(text.split("HTTP/1.1 200 ").length, 3, text);
});
