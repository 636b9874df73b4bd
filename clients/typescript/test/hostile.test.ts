/** Tests servers that fail, lie or hang, callers that abort, and invalid input. */
import assert from "node:assert/strict";
import { getEventListeners } from "node:events";
import { after, before, suite, test } from "node:test";
import { gzipSync } from "node:zlib";
import { encode } from "@msgpack/msgpack";
import { TestService } from "../../../test/support/service.ts";
import { rawTensors } from "../../../test/support/tensors.ts";
import { Client, ShardedClient, State, StepdError, type StepInput, type Tensor, type Tensors, TransportError } from "../src/index.ts";
import { Backoff } from "../src/retries.ts";
import { FakeServer, MSGPACK } from "./_fake-server.ts";
import { bits } from "./_tensors.ts";

const optimizer = { name: "sgd", lr: 0.5, momentum: 0.9 } as const;
const vector = (...values: number[]): Tensor => ({ shape: [values.length], data: Float32Array.from(values) });
const w = (...values: number[]): Tensors => ({ w: vector(...values) });
const input = (): Omit<StepInput, "cached"> => ({ optimizer, params: w(1, 2), grads: w(1, 1) });

let service: TestService;
let client: Client;
before(async () => {
  service = await TestService.start();
  client = new Client(service.url);
});
after(() => service[Symbol.asyncDispose]());

suite("invalid replies", () => {
  const state = rawTensors('{"__metadata__":{"format":"stepd.state/1","optimizer":"sgd","revision":"1"}}');
  const header = (entry: string): Buffer => rawTensors(`{"w":${entry}}`, Buffer.alloc(8));
  const replies: Readonly<Record<string, Uint8Array | string>> = {
    "nothing at all": "",
    "a page of a proxy": "<html>",
    "MessagePack that ends too early": Uint8Array.of(0x81, 0xa6),
    "bytes after the value": Uint8Array.of(0xc0, 0xc0),
    "an array that claims four billion items": Uint8Array.of(0xdd, 0xff, 0xff, 0xff, 0xff),
    "nesting without an end": new Uint8Array(200_000).fill(0x91),
    "an extension type": Uint8Array.of(0xd4, 0x00, 0x00),
    "a timestamp": Uint8Array.of(0xd6, 0xff, 0, 0, 0, 0),
    "a key __proto__": encode({ ["__proto__"]: 1 }),
    null: encode(null),
    "a number": encode(7),
    "no params": encode({ state }),
    "params that are a string": encode({ params: "AAAA", state }),
    "params of another call": encode({ params: rawTensors('{"v":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', Buffer.alloc(8)), state }),
    "params in another shape": encode({ params: header('{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}'), state }),
    "params cut short": encode({ params: header('{"dtype":"F32","shape":[2],"data_offsets":[0,8]}').subarray(0, -1), state }),
  };
  for (const [what, body] of Object.entries(replies)) {
    test(what, async () => {
      await using fake = await FakeServer.replying(body);
      await assert.rejects(new Client(fake.url).step(input()), { name: "TransportError", message: /reply is none of stepd/, status: 200 });
      assert.equal(fake.calls, 1, "what is wrong with a whole reply is not mended by asking again");
    });
  }

  test("a 200 with another media type", async () => {
    await using fake = await FakeServer.replying("<html>", 200, { "Content-Type": "text/html" });
    await assert.rejects(new Client(fake.url).info(), { name: "TransportError", message: /expected application\/vnd.msgpack, found text\/html/ });
  });

  for (const [what, body] of Object.entries({ null: "null", "an object without a code": "{}", text: "no", "a number": "1" })) {
    test(`a problem that is ${what}`, async () => {
      await using fake = await FakeServer.replying(body, 404, { "Content-Type": "application/problem+json" });
      await assert.rejects(new Client(fake.url).info(), { name: "TransportError", status: 404 });
      assert.equal(fake.calls, 1);
    });
  }

  test("a body shorter than its length is a lost connection", async () => {
    await using fake = await FakeServer.start((_, res) => {
      res.writeHead(200, { "Content-Type": MSGPACK, "Content-Length": 100 }).write("abc");
      res.socket?.end();
    });
    await assert.rejects(new Client(fake.url, { retries: 1 }).info(), TransportError);
    assert.equal(fake.calls, 2);
  });

  for (const [what, headers] of Object.entries({
    "a length that no memory has": { "Content-Length": String(2 ** 53 - 1) },
    "a length that is too large": { "Content-Length": String(2 ** 21) },
    "a length that is too small": { "Content-Length": String(2 ** 20) },
  })) {
    test(`${what} is a lost connection`, async () => {
      const lying = async (): Promise<Response> => new Response(new Uint8Array(2 ** 20 + 5), { headers: { "Content-Type": MSGPACK, ...headers } });
      await assert.rejects(new Client("http://x", { fetch: lying, retries: 0 }).info(), { name: "TransportError", message: /was not reached/ });
    });
  }

  test("a large reply with a content encoding is read to its end", async () => {
    const body = gzipSync(encode({ optimizers: ["x".repeat(2 ** 21)] }), { level: 0 });
    await using fake = await FakeServer.replying(body, 200, { "Content-Type": MSGPACK, "Content-Encoding": "gzip", "Content-Length": String(body.length) });
    assert.equal((await new Client(fake.url).optimizers()).length, 1);
  });
});

suite("invalid files", () => {
  const entry = (dtype: unknown, shape: unknown, offsets: unknown): string => JSON.stringify({ dtype, shape, data_offsets: offsets });
  const meta = '"__metadata__":{"format":"stepd.state/1","optimizer":"sgd","revision":"1"}';
  const files: Readonly<Record<string, Uint8Array>> = {
    nothing: new Uint8Array(),
    "seven bytes": new Uint8Array(7),
    "a header longer than any file": Uint8Array.of(255, 255, 255, 255, 255, 255, 255, 255),
    "a header that is no JSON": rawTensors("{"),
    "a header that is a list": rawTensors("[]"),
    "a header that is null": rawTensors("null"),
    "metadata that are null": rawTensors('{"__metadata__":null}'),
    "metadata that are numbers": rawTensors('{"__metadata__":{"format":1}}'),
    "another format": rawTensors('{"__metadata__":{"format":"pt"}}'),
    "an entry that is null": rawTensors(`{${meta},"a/w":null}`),
    "an unknown dtype": rawTensors(`{${meta},"a/w":${entry("F8", [8], [0, 8])}}`, Buffer.alloc(8)),
    "a dtype that objects have": rawTensors(`{${meta},"a/w":${entry("constructor", [8], [0, 8])}}`, Buffer.alloc(8)),
    "a negative size": rawTensors(`{${meta},"a/w":${entry("F32", [-1, -2], [0, 8])}}`, Buffer.alloc(8)),
    "a size with a fraction of 0": rawTensors(`{${meta},"a/w":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}}`, Buffer.alloc(8)),
    "a size with an exponent": rawTensors(`{${meta},"a/w":{"dtype":"F32","shape":[2e0],"data_offsets":[0,8]}}`, Buffer.alloc(8)),
    "an offset of minus zero": rawTensors(`{${meta},"a/w":{"dtype":"F32","shape":[2],"data_offsets":[-0,8]}}`, Buffer.alloc(8)),
    "a product that overflows in front of a 0": rawTensors(`{${meta},"a/w":${entry("F32", [2 ** 32, 2 ** 32, 0], [0, 0])}}`),
    "offsets beyond the end": rawTensors(`{${meta},"a/w":${entry("F32", [4], [0, 16])}}`, Buffer.alloc(8)),
    "offsets that run backwards": rawTensors(`{${meta},"a/w":${entry("F32", [2], [8, 0])}}`, Buffer.alloc(8)),
    "offsets that are text": rawTensors(`{${meta},"a/w":${entry("F32", [2], ["0", "8"])}}`, Buffer.alloc(8)),
    "fewer bytes than the shape asks for": rawTensors(`{${meta},"a/w":${entry("F32", [2], [0, 6])}}`, Buffer.alloc(6)),
    "a gap": rawTensors(`{${meta},"a/w":${entry("F32", [1], [4, 8])}}`, Buffer.alloc(8)),
    "an overlap": rawTensors(`{${meta},"a/w":${entry("F32", [2], [0, 8])},"a/v":${entry("F32", [1], [4, 8])}}`, Buffer.alloc(8)),
    "data left over": rawTensors(`{${meta},"a/w":${entry("F32", [1], [0, 4])}}`, Buffer.alloc(8)),
    "a step that is a float": rawTensors(`{${meta},"step/w":${entry("F64", [], [0, 8])}}`, Buffer.alloc(8)),
    "a step that is a list": rawTensors(`{${meta},"step/w":${entry("I64", [1], [0, 8])}}`, Buffer.alloc(8)),
  };
  for (const [what, file] of Object.entries(files)) test(what, () => void assert.throws(() => new State(file), RangeError));

  test("a parameter may have the name of an object's member", async () => {
    const names = ["constructor", "toString", "hasOwnProperty", "10", "2", "a/b", "", "valueOf"];
    const tensors = Object.fromEntries(names.map((name, index) => [name, { shape: [1], data: Float32Array.of(index) }]));
    const whole = await client.step({ optimizer, params: tensors, grads: tensors, clip: { max_norm: 1 } });
    const parts = await new ShardedClient([service.url], { requestBytes: 4 }).step({ optimizer, params: tensors, grads: tensors, clip: { max_norm: 1 } });
    assert.deepEqual(Object.keys(whole.params).sort(), [...names].sort());
    for (const name of names) assert.equal(bits(parts.params[name]?.data as Float32Array), bits(whole.params[name]?.data as Float32Array), name);
    assert.equal(bits(parts.state.bytes as never), bits(whole.state.bytes as never));
  });

  test("a parameter named __proto__ is refused, and changes no prototype", async () => {
    const tensors = Object.fromEntries([["__proto__", vector(1)]]);
    const refused = { name: "TypeError", message: /no tensor can be called __proto__/ };
    await assert.rejects(client.step({ optimizer, params: tensors, grads: tensors }), refused);
    await assert.rejects(new ShardedClient([service.url], { requestBytes: 4 }).step({ optimizer, params: { ...w(1), ...tensors }, grads: tensors }), refused);
    assert.equal(({} as { data?: unknown }).data, undefined);
  });
});

suite("waits, timeouts and aborted calls", () => {
  const busy = (retryAfter: unknown): string => JSON.stringify({ detail: "later", code: -32020, name: "OVERLOADED", retry_after: retryAfter });

  test("a proxy's Retry-After is obeyed", async () => {
    await using fake = await FakeServer.replying("busy", 503, { "Retry-After": "1" });
    const start = performance.now();
    await assert.rejects(new Client(fake.url, { retries: 1 }).info(), { name: "TransportError", status: 503, retryAfter: 1 });
    assert.ok(performance.now() - start >= 1000);
    assert.equal(fake.calls, 2);
  });

  /** Returns the retryAfter of the error for a reply with this header. */
  const askedBy = async (header: string, body = ""): Promise<number | undefined> => {
    const busy = async (): Promise<Response> => new Response(body, { status: 503, headers: { "Retry-After": header } });
    const error: unknown = await new Client("http://x", { retries: 0, fetch: busy }).info().catch((error: unknown) => error);
    assert.ok(error instanceof (body === "" ? TransportError : StepdError));
    return error.retryAfter;
  };

  test("a Retry-After may be any of HTTP's three date forms", async () => {
    const inAnHour = new Date(Date.now() + 3_600_000);
    const [fixed, [, day, month, year, time]] = [inAnHour.toUTCString(), inAnHour.toUTCString().split(" ")] as const;
    const weekday = inAnHour.toLocaleDateString("en", { weekday: "long", timeZone: "UTC" });
    const forms = [
      fixed,
      `${weekday}, ${day}-${month}-${year?.slice(2)} ${time} GMT`,
      `${fixed.slice(0, 3)} ${month} ${day?.replace(/^0/, " ")} ${time} ${year}`,
    ];
    for (const form of forms) {
      const seconds = (await askedBy(form)) ?? 0;
      assert.ok(seconds > 3_590 && seconds <= 3_600, `${form}: ${seconds}`);
    }
    assert.equal(await askedBy("Sun, 06 Nov 1994 08:49:37 GMT"), 0, "a time that has passed");
  });

  test("the client waits until the date in Retry-After", async () => {
    const times: number[] = [];
    await using fake = await FakeServer.start((_, res) => {
      times.push(Date.now());
      res.writeHead(503, { "Retry-After": new Date(Date.now() + 2000).toUTCString() }).end();
    });
    await assert.rejects(new Client(fake.url, { retries: 1 }).info(), { name: "TransportError", status: 503 });
    // An HTTP date has whole seconds.
    assert.ok((times[1] as number) - (times[0] as number) >= 1000);
  });

  test("an invalid Retry-After is ignored", async () => {
    assert.deepEqual([await askedBy("7"), await askedBy("0"), await askedBy("1.5")], [7, 0, 1.5]);
    for (const header of ["", "-5", "soon", "Soon 5", "NaN", "Infinity", "0x10", "9".repeat(400), "Sun, 99 Nov 1994 08:49:37 GMT", "1994-11-06"])
      assert.equal(await askedBy(header), undefined, header);
  });

  test("retry_after in stepd's body precedes the header", async () => {
    assert.deepEqual(
      [await askedBy("7", busy(3)), await askedBy("7", busy("soon")), await askedBy("7", busy(-1)), await askedBy("no", busy(null))],
      [3, 7, 7, undefined],
    );
  });

  for (const asked of [1e12, -5, "soon", null]) {
    test(`a Retry-After of ${asked} neither hangs forever nor retries without a wait`, async () => {
      await using fake = await FakeServer.replying(busy(asked), 429, { "Content-Type": "application/problem+json" });
      const signal = AbortSignal.timeout(asked === 1e12 ? 1500 : 30_000);
      await assert.rejects(new Client(fake.url).info({ signal }), asked === 1e12 ? { name: "TimeoutError" } : StepdError);
      assert.equal(fake.calls, asked === 1e12 ? 1 : 5);
    });
  }

  test("the client waits at most a minute of a Retry-After, and at most 5 s of its own backoff", () => {
    const passing = (retryAfter?: number): TransportError => new TransportError("busy", { retryAfter });
    const waits = (retryAfter: number | undefined, attempt: number): number => {
      const backoff = new Backoff({ retries: 100 }, "the server");
      for (let i = 0; i < attempt; i++) backoff.delayAfter(passing());
      return backoff.delayAfter(passing(retryAfter)) ?? Number.NaN;
    };
    const requireBetween = (found: number, least: number, most: number): void => assert.ok(found >= least && found <= most, `${found} ms`);
    for (const asked of [60, 61, 1e12]) requireBetween(waits(asked, 0), 60_025, 60_050);
    requireBetween(waits(59, 0), 59_025, 59_050);
    for (const attempt of [7, 99]) requireBetween(waits(undefined, attempt), 2500, 5000);
    assert.ok(Math.max(...Array.from({ length: 200 }, () => waits(undefined, 9))) > 4000, "grows up to 5 s");
  });

  test("a silent server, and one that stops during its reply, time out", async () => {
    await using silent = await FakeServer.start(() => {});
    await using stuck = await FakeServer.start((_, res) => void res.writeHead(200, { "Content-Type": MSGPACK, "Content-Length": 100 }).write("abc"));
    let attempts = 0;
    const counted = (url: string, init: RequestInit): Promise<Response> => {
      attempts++;
      return fetch(url, init);
    };
    for (const { url } of [silent, stuck]) {
      await assert.rejects(new Client(url, { timeoutMs: 100, retries: 0 }).step(input()), { name: "TransportError", message: /within 100 ms/ });
      await assert.rejects(new Client(url, { retries: 1, fetch: counted }).step(input(), { timeoutMs: 50 }), /within 50 ms/);
      assert.equal(await new Client(url).isReady({ timeoutMs: 50 }), false);
    }
    assert.equal(attempts, 4, "a timeout is a reason to ask again");
  });

  test("timeoutMs Infinity means no limit", async () => {
    for (const timeoutMs of [Number.POSITIVE_INFINITY, 2 ** 40]) assert.equal((await new Client(service.url, { timeoutMs, retries: 0 }).step(input())).step, 1);
  });

  test("an aborted call throws the caller's reason: before, during and between attempts", async () => {
    await using silent = await FakeServer.start(() => {});
    await using refusing = await FakeServer.replying(busy(30), 429, { "Content-Type": "application/problem+json" });
    const reason = new Error("enough");
    await assert.rejects(client.step(input(), { signal: AbortSignal.abort(reason) }), reason);
    for (const [url, retries] of [
      [silent.url, 0],
      [silent.url, 4],
      [refusing.url, 4],
    ] as const) {
      for (const caller of [new Client(url, { retries }), new ShardedClient([url], { requestBytes: 1 })]) {
        const controller = new AbortController();
        setTimeout(() => controller.abort(reason), 50);
        const start = performance.now();
        await assert.rejects(caller.step({ ...input(), params: { ...w(1), v: vector(2) }, grads: {} }, { signal: controller.signal }), reason);
        assert.ok(performance.now() - start < 5000);
      }
    }
  });

  test("a long-lived signal keeps no listeners of finished calls", async () => {
    const { signal } = new AbortController();
    for (let call = 0; call < 3; call++) await client.step(input(), { signal });
    await new ShardedClient([service.url], { requestBytes: 1 }).step(input(), { signal });
    assert.equal(getEventListeners(signal, "abort").length, 0);
  });

  test("after a shard is refused, the others end before the error is thrown", async () => {
    let open = 0;
    await using fake = await FakeServer.start(async (req, res) => {
      open++;
      res.on("close", () => open--);
      const chunks: Buffer[] = [];
      for await (const chunk of req) chunks.push(chunk as Buffer);
      const isBad = Buffer.concat(chunks).includes("bad");
      if (isBad)
        res.writeHead(422, { "Content-Type": "application/problem+json" }).end(JSON.stringify({ detail: "no", code: -32011, name: "TENSOR_MISMATCH" }));
    });
    const tensors = { a: vector(1), b: vector(1), bad: vector(1), c: vector(1), d: vector(1) };
    await assert.rejects(new ShardedClient([fake.url], { requestBytes: 1, connections: 3 }).step({ optimizer, params: tensors, grads: {} }), {
      code: "TENSOR_MISMATCH",
    });
    assert.ok(fake.calls <= 3);
    while (open > 0) await new Promise((resolve) => setTimeout(resolve, 5));
  });
});

suite("invalid input", () => {
  const float = Float32Array.of(1, 2);
  const tensors: readonly (readonly [what: string, tensor: unknown, message: RegExp])[] = [
    ["a list of numbers", { shape: [2], data: [1, 2] }, /tensor "w": expected data in a Float32Array.*found Array/],
    ["no data", { shape: [2] }, /found undefined/],
    ["integers", { shape: [2], data: Int32Array.of(1, 2) }, /found Int32Array/],
    ["bits without a dtype", { shape: [1], data: Uint16Array.of(1) }, /expected dtype BF16 or F16 for a Uint16Array, found none/],
    ["a dtype of another array", { shape: [2], data: float, dtype: "F64" }, /expected dtype F32 for a Float32Array, found F64/],
    ["no shape", { data: float }, /expected a shape of sizes from 0 on, found undefined/],
    ["a shape of halves", { shape: [0.5, 4], data: float }, /expected a shape/],
    ["another number of values", { shape: [3], data: float }, /expected 3 values for shape \[3\], found 2/],
  ];
  for (const [what, tensor, message] of tensors) {
    test(what, async () => {
      await assert.rejects(client.step({ ...input(), params: { w: tensor } as never }), { name: "TypeError", message });
      await assert.rejects(client.step({ ...input(), grads: { w: tensor } as never }), { name: "TypeError", message });
    });
  }

  test("options and addresses", () => {
    for (const url of ["", "127.0.0.1:8080", "ftp://x", "http://x/?a=1", "http://user@x"])
      assert.throws(() => new Client(url), /url: expected the server's root/);
    assert.throws(
      () => new Client("http://x", { token: "a secret\n" }),
      ({ message }: Error) => /^token: /.test(message) && !message.includes("secret"),
    );
    assert.throws(() => new Client("http://x", { retries: Number.NaN }), /retries: expected/);
    assert.throws(() => new ShardedClient([]), /at least one url/);
    assert.throws(() => new ShardedClient(["http://x"], { requestBytes: 0 }), /requestBytes: expected/);
    assert.throws(() => new ShardedClient(["http://x"], { connections: 0 }), /connections: expected/);
    assert.equal(new Client("http://127.0.0.1:1/stepd//").url, "http://127.0.0.1:1/stepd");
  });

  test("a URL with user information is refused, and the error does not repeat it", () => {
    for (const url of [
      "http://user:secret@x",
      "http://:secret@x",
      "http://secret@x",
      "http://user:secret@x:99999",
      "ftp://user:secret@x",
      "http://u:sec/ret:secret@x",
    ]) {
      for (const make of [() => new Client(url), () => new ShardedClient(["http://x", url])])
        assert.throws(
          make,
          ({ message }: Error) => /^url: expected the server's root.*found one with user information/.test(message) && !message.includes("sec"),
        );
    }
  });

  test("an invalid state is refused, by the server if it is bytes", async () => {
    await assert.rejects(client.step({ ...input(), state: "AAAA" as never }), /state: expected a State or the bytes of one, found "AAAA"/);
    await assert.rejects(client.inspect(undefined as never), /found undefined/);
    await assert.rejects(client.step({ ...input(), state: new Uint8Array(9) }), { code: "STATE_CORRUPT" });
  });

  test("undefined members are omitted, at any depth", async () => {
    const { lr } = await client.step({
      ...input(),
      schedule: undefined,
      clip: { max_norm: 1, total_norm: undefined },
      optimizer: { ...optimizer, nesterov: undefined },
    });
    assert.equal(lr, 0.5);
  });

  test("a call may hold many tensors", async () => {
    const many = Object.fromEntries(Array.from({ length: 200_000 }, (_, index) => [`layer.${index}`, vector(index)]));
    let length = 0;
    const counting = async (_: string, { body }: RequestInit): Promise<Response> => {
      length = (body as Blob).size;
      return new Response(null, { status: 404 });
    };
    await assert.rejects(new Client("http://x", { fetch: counting }).step({ optimizer, params: many, grads: many }), { status: 404 });
    assert.ok(length > 2 * 4 * 200_000);
  });

  test("shards may hold many tensors", async () => {
    const many = Object.fromEntries(Array.from({ length: 150_000 }, (_, index) => [`layer.${index}`, vector(index)]));
    const failing = async (): Promise<Response> => new Response(JSON.stringify({ detail: "no", code: -32602, name: "INVALID_PARAMS" }), { status: 400 });
    await assert.rejects(new ShardedClient(["http://x"], { fetch: failing }).step({ optimizer, params: many, grads: many }), { code: "INVALID_PARAMS" });
  });

  test("a blob larger than MessagePack allows is refused before sending", async () => {
    const huge = { w: { shape: [2 ** 30], data: new Float32Array(2 ** 30) } };
    await assert.rejects(client.step({ ...input(), params: huge, grads: {} }), {
      name: "RangeError",
      message: /^params: expected at most 4294967295 bytes in one call/,
    });
  });

  test("a call that is too large for the server is refused during the upload", async () => {
    await using small = await TestService.start({ STEPD_ARENA_MIB: "16", STEPD_WORKERS: "1" });
    const large = { w: { shape: [2 ** 23], data: new Float32Array(2 ** 23) } };
    await assert.rejects(new Client(small.url).step({ ...input(), params: large, grads: {} }), { code: "PAYLOAD_TOO_LARGE", status: 413 });
  });
});

suite("concurrent use", () => {
  test("arrays may change during the call", async () => {
    const { params, ...rest } = input();
    const result = client.step({ ...rest, params });
    params["w"]?.data.fill(1000);
    assert.deepEqual([...((await result).params["w"]?.data ?? [])], [0.5, 1.5]);
  });

  test("concurrent calls each get their own reply", async () => {
    const results = await Promise.all(Array.from({ length: 100 }, (_, i) => client.step({ optimizer, params: w(i, -i), grads: w(2, 2) })));
    for (const [i, { params }] of results.entries()) assert.deepEqual([...(params["w"]?.data ?? [])], [i - 1, -i - 1]);
  });

  test("arrays on a SharedArrayBuffer are sent like others", async () => {
    const data = new Float32Array(new SharedArrayBuffer(8));
    data.set([1, 2]);
    const { params } = await client.step({ optimizer, params: { w: { shape: [2], data } }, grads: w(1, 1) });
    assert.deepEqual([...(params["w"]?.data ?? [])], [0.5, 1.5]);
  });
});
