/**
 * Tests that calls through a shared folder give the same bytes as calls without it, even if replies are lost or the caller
 * changes its arrays.
 */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdirSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, suite, test } from "node:test";
import { promisify } from "node:util";
import { build } from "esbuild";
import { pack, TestService } from "../../../test/support/service.ts";
import {
  Client,
  type ClientOptions,
  type DType,
  type Fetch,
  ShardedClient,
  State,
  StepdError,
  type StepInput,
  type StepResult,
  type Tensor,
  type Tensors,
} from "../src/index.ts";
import { MSGPACK } from "./_fake-server.ts";
import { type Body, collect, digests, recordingFetch, TestFolder } from "./_folder.ts";

const SIZE = 20_000;

/** Returns a tensor whose values every dtype can hold. */
const tensor = (dtype: DType, seed: number, size = SIZE): Tensor => {
  const shape = [size / 100, 100];
  const value = (_: unknown, index: number): number => Math.sin(seed * 1000 + index);
  if (dtype === "F32") return { shape, data: Float32Array.from({ length: size }, value) };
  if (dtype === "F64") return { shape, data: Float64Array.from({ length: size }, value) };
  // The values are from 0.5 to below 1 in size, with a sign.
  const [one, step] = dtype === "BF16" ? [0x3f00, 0x7f] : [0x3800, 0x3ff];
  return { shape, dtype, data: Uint16Array.from({ length: size }, (_, index) => one | ((seed * 77 + index * 31) & step) | (index % 2 ? 0x8000 : 0)) };
};

const tensors = (dtype: DType, seed: number): Tensors => ({
  "layer.weight": tensor(dtype, seed),
  bias: { ...tensor(dtype, seed + 1, 100), shape: [100] },
});

const adamw = { name: "adamw", lr: 0.01 } as const;

let folder: TestFolder;
let service: TestService;
before(async () => {
  folder = new TestFolder();
  service = await TestService.start({ STEPD_SHARED_DIR: folder.path });
});
after(async () => {
  await service?.[Symbol.asyncDispose]();
  folder[Symbol.dispose]();
});

interface Place {
  readonly file: string;
}

/** The places in a request body. Absent if the call uses no files. */
interface Places {
  readonly params?: Place;
  readonly grads?: Place;
  readonly state?: Place | null;
  readonly reply?: { readonly into: { readonly params?: Place; readonly state?: Place } };
}

/** Returns the names of the files that a call names. */
const filesOf = (body: Body | undefined): readonly (string | undefined)[] => {
  const { params, grads, state, reply } = body as Places;
  return [params, grads, state, reply?.into.params, reply?.into.state].filter((place) => place !== undefined && place !== null).map(({ file }) => file);
};

const stateOf = (body: Body | undefined): string | undefined => (body as Places).state?.file;
const writtenBy = (body: Body | undefined): string | undefined => (body as Places).reply?.into.state?.file;

/** Runs a test with a client that shares the folder, and checks that the client leaves no files. */
const sharing = async (run: (client: Client, plain: Client) => Promise<void>, options: ClientOptions = {}): Promise<void> => {
  const client = new Client(service.url, { ...options, sharedDir: folder.path });
  try {
    await run(client, new Client(service.url));
  } finally {
    client.close();
  }
  assert.deepEqual(folder.files, []);
};

interface Now {
  readonly params: Tensors;
  readonly state: State | null;
}

/** Either kind of client: Client or ShardedClient. */
interface Stepper {
  step(input: Omit<StepInput, "cached">): Promise<Pick<StepResult, "params" | "state">>;
}

/** Takes steps as a trainer does, and returns all bytes of their results. */
const train = async (client: Stepper, dtype: DType, settings: Omit<StepInput, "params" | "grads" | "cached">, steps = 4): Promise<unknown> => {
  let now: Now = { params: tensors(dtype, 1), state: null };
  const results: (Now & { state: State })[] = [];
  for (let step = 0; step < steps; step++) {
    const result = await client.step({ ...settings, ...now, grads: tensors(dtype, 10 + step) });
    now = { params: result.params, state: result.state };
    results.push(result);
  }
  return results.map(digests);
};

suite("the same bytes as over a socket", () => {
  const optimizers = [
    adamw,
    { name: "sgd", lr: 0.1, momentum: 0.9 },
    { name: "lamb", lr: 0.01 },
    { name: "nadam", lr: 0.01 },
    { name: "lion", lr: 0.01 },
  ] as const;
  for (const optimizer of optimizers) {
    for (const dtype of ["F32", "F64", "BF16", "F16"] as const) {
      test(`${optimizer.name} in ${dtype}`, async () => {
        const settings = { optimizer, master_weights: dtype === "BF16", clip: { max_norm: 1 } };
        await sharing(async (client, plain) => assert.deepEqual(await train(client, dtype, settings), await train(plain, dtype, settings)));
      });
    }
  }

  test("from the second step on, requests carry only file names, and the client does not read the state", async () => {
    const bodies: Body[] = [];
    await sharing(
      async (client) => {
        let now: Now = { params: tensors("F32", 1), state: null };
        for (let step = 0; step < 4; step++) {
          const { params, state } = await client.step({ optimizer: adamw, ...now, grads: tensors("F32", step) });
          now = { params, state };
        }
        for (const [step, body] of bodies.entries()) {
          const files = filesOf(body);
          assert.ok(files.every((file) => typeof file === "string"));
          assert.equal(new Set(files).size, step === 0 ? 3 : 5, "no result lies over an input");
          if (step > 1) assert.equal(stateOf(body), writtenBy(bodies[step - 1]));
        }
      },
      { fetch: recordingFetch(bodies) },
    );
  });

  test("a small call uses the socket", async () => {
    const bodies: Body[] = [];
    await sharing(
      async (client) => {
        const params = { w: tensor("F32", 1, 100) };
        const { state } = await client.step({ optimizer: adamw, params, grads: params });
        await client.step({ optimizer: adamw, params, grads: params, state });
        assert.ok(bodies.every(({ params, reply }) => params instanceof Uint8Array && reply === undefined));
      },
      { fetch: recordingFetch(bodies) },
    );
  });

  test("the other methods", async () => {
    const bodies: Body[] = [];
    await sharing(
      async (client, plain) => {
        const [params, grads] = [tensors("F32", 1), tensors("F32", 2)];
        const both = async (call: (client: Client) => Promise<unknown>): Promise<void> => assert.deepEqual(await call(client), await call(plain));
        await both(async (client) => (await client.init({ optimizer: adamw, params })).bytes);
        await both((client) => client.norms({ grads, params }));
        const first = await client.step({ optimizer: adamw, params, grads });
        const { state } = await client.step({ optimizer: adamw, params, grads, state: first.state });
        const found = await client.inspect(state);
        assert.equal(stateOf(bodies.at(-1)), writtenBy(bodies.at(-2)));
        assert.deepEqual(found, await plain.inspect(state));
        await both((client) => client.convert({ state, to: { format: "torch", names: Object.keys(params) } }));
        assert.ok(bodies.every((body) => Object.values(body).every((value) => !(value instanceof Uint8Array && value.length > 2 ** 16))));
      },
      { fetch: recordingFetch(bodies) },
    );
  });

  test("with tokens, in the token's subfolder", async () => {
    using own = new TestFolder();
    const tokens = join(own.path, "tokens");
    writeFileSync(tokens, "alice a-secret-of-alice\nbob the-secret-of-bob\n", { mode: 0o600 });
    const shared = join(own.path, "shared");
    for (const name of ["alice", "bob"]) mkdirSync(join(shared, name), { recursive: true });
    await using guarded = await TestService.start({ STEPD_SHARED_DIR: shared, STEPD_TOKENS_FILE: tokens });
    const alice = new Client(guarded.url, { token: "a-secret-of-alice", sharedDir: join(shared, "alice") });
    const elsewhere = new Client(guarded.url, { token: "the-secret-of-bob", sharedDir: join(shared, "alice") });
    try {
      assert.deepEqual(await train(alice, "F32", { optimizer: adamw }), await train(new Client(service.url), "F32", { optimizer: adamw }));
      await assert.rejects(train(elsewhere, "F32", { optimizer: adamw }), { name: "StepdError", code: "INVALID_PARAMS", found: "none of that name" });
    } finally {
      alice.close();
      elsewhere.close();
    }
  });

  for (const requestBytes of [50_000, 2 ** 26]) {
    test(`in shards of ${requestBytes} bytes`, async () => {
      const bodies: Body[] = [];
      const sharded = new ShardedClient([service.url, `${service.url}/`], { requestBytes, sharedDir: folder.path, fetch: recordingFetch(bodies) });
      const settings = { optimizer: adamw, clip: { max_norm: 1 } };
      const found = await train(sharded, "F32", settings);
      assert.ok(bodies.some((body) => stateOf(body) !== undefined));
      sharded.close();
      assert.deepEqual(folder.files, []);
      assert.deepEqual(found, await train(new Client(service.url), "F32", settings));
    });
  }
});

suite("arrays and states that the caller changes", () => {
  test("changed parameters are sent, and earlier results do not change", async () => {
    const run = async (client: Client): Promise<unknown> => {
      const first = await client.step({ optimizer: adamw, params: tensors("F32", 1), grads: tensors("F32", 2) });
      const second = await client.step({ optimizer: adamw, params: first.params, grads: tensors("F32", 3), state: first.state });
      const before = digests({ params: second.params, state: new State(Uint8Array.from(first.state.bytes)) });
      first.params["bias"]?.data.fill(7);
      const third = await client.step({ optimizer: adamw, params: first.params, grads: tensors("F32", 4), state: second.state });
      const fourth = await client.step({ optimizer: adamw, params: third.params, grads: tensors("F32", 5), state: third.state });
      assert.deepEqual(digests({ params: second.params, state: first.state }), before);
      return [second, third, fourth].map(digests);
    };
    await sharing(async (client, plain) => assert.deepEqual(await run(client), await run(plain)));
  });

  test("a state with changed bytes is sent changed", async () => {
    const run = async (client: Client): Promise<unknown> => {
      let now: Now = { params: tensors("F32", 1), state: null };
      for (let step = 0; step < 3; step++) {
        const { params, state } = await client.step({ optimizer: adamw, ...now, grads: tensors("F32", step) });
        state.bytes.fill(0, state.bytes.length - 4 * SIZE);
        now = { params, state };
      }
      return digests(now as Now & { state: State });
    };
    await sharing(async (client, plain) => assert.deepEqual(await run(client), await run(plain)));
  });

  test("a state whose bytes were not read is sent by file name", async () => {
    const bodies: Body[] = [];
    await sharing(
      async (client) => {
        const params = tensors("F32", 1);
        let state: State | null = null;
        for (let step = 1; step <= 3; step++) {
          ({ state } = await client.step({ optimizer: adamw, params, grads: params, state }));
          assert.deepEqual([state.optimizer, state.revision, state.steps["bias"], [...state.parameters].sort()], ["adamw", 2, step, ["bias", "layer.weight"]]);
          assert.equal(state.sizes.get("bias"), 2 * 400 + 8);
        }
        assert.equal(stateOf(bodies[2]), writtenBy(bodies[1]));
      },
      { fetch: recordingFetch(bodies) },
    );
  });

  test("arrays may change during concurrent calls", async () => {
    const run = async (client: Client): Promise<unknown> => {
      const results = Array.from({ length: 6 }, (_, seed) => {
        const [params, grads] = [tensors("F32", seed), tensors("F32", seed + 50)];
        const result = client.step({ optimizer: adamw, params, grads });
        for (const { data } of [...Object.values(params), ...Object.values(grads)]) data.fill(0);
        return result;
      });
      return (await Promise.all(results)).map(digests);
    };
    await sharing(async (client, plain) => assert.deepEqual(await run(client), await run(plain)));
  });

  test("files are reused, but not while their state is reachable", async () => {
    const params = tensors("F32", 1);
    await sharing(async (client, plain) => {
      let { state } = await client.step({ optimizer: adamw, params, grads: params });
      const expected = await (async () => {
        const { state } = await plain.step({ optimizer: adamw, params, grads: params });
        return (await plain.step({ optimizer: adamw, params, grads: params, state })).state.bytes;
      })();
      const kept = (await client.step({ optimizer: adamw, params, grads: params, state })).state;
      const numbers: number[] = [];
      for (let step = 0; step < 12; step++) {
        ({ state } = await client.step({ optimizer: adamw, params, grads: params, state }));
        await collect();
        numbers.push(folder.files.length);
      }
      assert.equal(new Set(numbers.slice(2)).size, 1, `no more files: ${numbers}`);
      assert.ok((numbers[0] as number) <= 7, `${numbers}`);
      assert.ok(Buffer.from(kept.bytes).equals(Buffer.from(expected)));
    });
  });

  test("unreachable states do not fill the folder", async () => {
    const size = 2 ** 20;
    const params = { w: tensor("F32", 1, 100 * Math.ceil(size / 100)) };
    await sharing(async (client) => {
      let { state } = await client.step({ optimizer: adamw, params, grads: params, reply: { params: "none" } });
      for (let step = 0; step < 60; step++) ({ state } = await client.step({ optimizer: adamw, params, grads: params, state, reply: { params: "none" } }));
      assert.ok(folder.files.length < 50, `${folder.files.length} files after 60 steps`);
    });
  });

  test("a state may grow with new slots, and the old one stays valid", async () => {
    const run = async (client: Client): Promise<unknown> => {
      let now: Now = { params: tensors("F32", 1), state: null };
      const states: (Now & { state: State })[] = [];
      for (const momentum of [0, 0, 0.9, 0.9]) {
        const { params, state } = await client.step({ optimizer: { name: "sgd", lr: 0.1, momentum }, ...now, grads: tensors("F32", 2) });
        now = { params, state };
        states.push({ params, state });
      }
      return states.map(digests);
    };
    await sharing(async (client, plain) => assert.deepEqual(await run(client), await run(plain)));
    // The state is in the folder, and large enough for a new state to overwrite it.
    const late = async (client: Client): Promise<unknown> => {
      const [params, grads] = [tensors("BF16", 1), tensors("BF16", 2)];
      const first = await client.step({ optimizer: adamw, params, grads });
      const second = await client.step({ optimizer: adamw, params, grads, state: first.state });
      const third = await client.step({ optimizer: adamw, params, grads, state: second.state, master_weights: true });
      return [first, second, third].map(digests);
    };
    await sharing(async (client, plain) => assert.deepEqual(await late(client), await late(plain)));
  });

  test("after close results stay readable, and calls use the socket", async () => {
    const params = tensors("F32", 1);
    const steps = async (client: Client, between: () => void, next: Client): Promise<unknown> => {
      const first = await client.step({ optimizer: adamw, params, grads: params });
      const second = await client.step({ optimizer: adamw, params, grads: params, state: first.state });
      between();
      const third = await next.step({ optimizer: adamw, params, grads: params, state: second.state });
      return [first, second, third].map(digests);
    };
    const plain = new Client(service.url);
    const expected = await steps(plain, () => {}, plain);
    const client = new Client(service.url, { sharedDir: folder.path });
    const other = new Client(service.url, { sharedDir: folder.path });
    assert.deepEqual(await steps(client, () => client.close(), client), expected);
    client.close();
    const third = new Client(service.url, { sharedDir: folder.path });
    assert.deepEqual(await steps(third, () => third.close(), other), expected);
    other.close();
    assert.deepEqual(folder.files, []);
  });

  test("files are removed with an unreachable client, and at process exit", async () => {
    await (async () => {
      await new Client(service.url, { sharedDir: folder.path }).norms({ grads: tensors("F32", 1) });
      assert.ok(folder.files.length > 0);
    })();
    await collect();
    assert.deepEqual(folder.files, []);
    const program = `
      import { readdirSync } from "node:fs";
      import { Client } from ${JSON.stringify(new URL("../src/index.ts", import.meta.url).href)};
      globalThis.client = new Client(${JSON.stringify(service.url)}, { sharedDir: ${JSON.stringify(folder.path)} });
      await client.norms({ grads: { w: { shape: [30000], data: new Float32Array(30000) } } });
      console.log(readdirSync(${JSON.stringify(folder.path)}).length);
      if (process.argv.includes("throw")) throw new Error("on purpose");
    `;
    for (const ending of ["return", "throw"]) {
      const run = promisify(execFile)(process.execPath, ["--input-type=module", "-e", program, ending]);
      const { stdout } = await run.catch((error: { stdout: string }) => error);
      assert.ok(Number(stdout) > 0, stdout);
      assert.deepEqual(folder.files, []);
    }
  });
});

suite("lost replies", () => {
  /** Returns a fetch that loses the first replies, after the server has run the call or before it starts. */
  const losing = (numbers: readonly number[], isSent: boolean, lost: Blob[] = []): Fetch => {
    let calls = 0;
    return async (url, init) => {
      if (!numbers.includes(calls++)) return fetch(url, init);
      if (isSent) await (await fetch(url, init)).arrayBuffer();
      else lost.push(init.body as Blob);
      throw new TypeError("the connection was lost");
    };
  };

  test("a retried step gives the right bytes", async () => {
    const expected = await train(new Client(service.url), "F32", { optimizer: adamw });
    for (const isSent of [true, false]) {
      const run = async (client: Client): Promise<void> => assert.deepEqual(await train(client, "F32", { optimizer: adamw }), expected);
      await sharing(run, { fetch: losing([0, 2, 3, 5], isSent) });
    }
  });

  test("a late call changes no other result", async () => {
    const expected = await train(new Client(service.url), "F32", { optimizer: adamw }, 8);
    const late: Blob[] = [];
    const lose = losing([2, 4], false, late);
    let calls = 0;
    // Before each further call, the server receives the lost requests late.
    const overtaken: Fetch = async (url, init) => {
      if (calls++ > 5) for (const body of late) await (await service.post("/v1/step", new Uint8Array(await body.arrayBuffer()), MSGPACK)).arrayBuffer();
      return lose(url, init);
    };
    const run = async (client: Client): Promise<void> => {
      let now: Now = { params: tensors("F32", 1), state: null };
      const results: (Now & { state: State })[] = [];
      for (let step = 0; step < 8; step++) {
        const result = await client.step({ optimizer: adamw, ...now, grads: tensors("F32", 10 + step) });
        now = { params: result.params, state: result.state };
        results.push(result);
        await collect();
      }
      assert.equal(late.length, 2);
      assert.deepEqual(results.map(digests), expected);
    };
    await sharing(run, { fetch: overtaken });
  });

  test("an abandoned step does not write into later results", async () => {
    const bodies: Body[] = [];
    let isCut = false;
    const cutting: Fetch = (url, init) => (isCut ? Promise.reject(new TypeError("cut")) : fetch(url, init));
    await sharing(
      async (client) => {
        const params = tensors("F32", 1);
        const first = await client.step({ optimizer: adamw, params, grads: params });
        const { state } = await client.step({ optimizer: adamw, params, grads: params, state: first.state });
        isCut = true;
        await assert.rejects(client.step({ optimizer: adamw, params, grads: params, state }), { name: "TransportError" });
        isCut = false;
        const lost = filesOf(bodies.at(-1));
        for (let step = 0; step < 3; step++) {
          await client.step({ optimizer: adamw, params, grads: params, state: first.state });
          await collect();
          assert.deepEqual(
            filesOf(bodies.at(-1)).filter((file) => lost.includes(file)),
            [],
          );
        }
      },
      { fetch: recordingFetch(bodies, cutting), retries: 0 },
    );
  });

  test("a refusal frees the files", async () => {
    await sharing(async (client) => {
      const params = tensors("F32", 1);
      for (let call = 0; call < 10; call++)
        await assert.rejects(client.step({ optimizer: { name: "adamw", lr: -1 }, params, grads: params }), { code: "INVALID_PARAMS", field: "/optimizer/lr" });
      assert.equal(folder.files.length, 3);
    });
  });

  test("a reply that names another place is invalid", async () => {
    const replies: readonly ((own: Place) => unknown)[] = [
      () => ({ file: "other", offset: 0, length: 1 }),
      () => ({ file: "", offset: 0, length: 1 }),
      ...[-1, 1.5, 2 ** 40, 2 ** 20, Number.NaN, "100", null].map((length) => (own: Place) => ({ ...own, length })),
      () => ({ length: 1 }),
      () => "x",
      () => null,
    ];
    for (const replyOf of replies) {
      const bodies: Body[] = [];
      const lying: Fetch = async () => {
        const { into } = (bodies.at(-1) as Places).reply ?? {};
        return new Response(Uint8Array.from(pack({ params: replyOf(into?.params as Place), step: 1, lr: 1, skipped: false })), {
          headers: { "Content-Type": MSGPACK },
        });
      };
      const client = new Client("http://x", { sharedDir: folder.path, fetch: recordingFetch(bodies, lying) });
      const params = tensors("F32", 1);
      await assert.rejects(client.step({ optimizer: adamw, params, grads: params }), {
        name: "TransportError",
        message: /reply is none of stepd: (expected a result in the place that|params: expected bytes)/,
      });
      client.close();
    }
    assert.deepEqual(folder.files, []);
  });
});

suite("errors", () => {
  test("an invalid folder is refused at once", () => {
    using own = new TestFolder();
    const file = join(own.path, "file");
    writeFileSync(file, "");
    for (const sharedDir of [join(own.path, "none"), file, ""])
      assert.throws(() => new Client(service.url, { sharedDir }), {
        name: "TypeError",
        message: /^sharedDir: expected a folder that this process may write to, found "/,
      });
    assert.throws(() => new ShardedClient([service.url], { sharedDir: "/none" }), { name: "TypeError", message: /^sharedDir: / });
  });

  test("without node:fs the option is refused", () => {
    const { getBuiltinModule } = process;
    try {
      Object.assign(process, { getBuiltinModule: undefined });
      assert.throws(() => new Client(service.url, { sharedDir: folder.path }), { name: "TypeError", message: /^sharedDir: expected Node from 20.16 on/ });
      new Client(service.url);
    } finally {
      Object.assign(process, { getBuiltinModule });
    }
  });

  test("a server without a shared folder refuses files", async () => {
    await using other = await TestService.start();
    using own = new TestFolder();
    const client = new Client(other.url, { sharedDir: own.path });
    const params = tensors("F32", 1);
    await assert.rejects(client.step({ optimizer: adamw, params, grads: params }), (error) => {
      assert.ok(error instanceof StepdError);
      assert.equal(error.code, "INVALID_PARAMS");
      assert.match(error.message, /this server shares no folder \(STEPD_SHARED_DIR\)/);
      return true;
    });
    client.close();
    assert.deepEqual(own.files, []);
  });

  test("files have mode 0660 and unguessable names", async () => {
    const umask = process.umask(0);
    try {
      await sharing(async (client) => {
        await client.norms({ grads: tensors("F32", 1) });
        for (const file of folder.files) {
          assert.match(file, /^stepd-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/);
          assert.equal(statSync(join(folder.path, file)).mode & 0o777, 0o660);
        }
      });
    } finally {
      process.umask(umask);
    }
  });

  test("a browser bundle imports no Node module", async () => {
    const entry = new URL("../src/index.ts", import.meta.url).pathname;
    const { metafile, outputFiles } = await build({ entryPoints: [entry], bundle: true, format: "esm", platform: "browser", write: false, metafile: true });
    assert.ok(outputFiles.length === 1);
    for (const { imports } of Object.values(metafile.inputs))
      for (const { path, external, kind } of imports) assert.ok(!external && kind === "import-statement" && !path.startsWith("node:"), path);
    assert.doesNotMatch(outputFiles[0]?.text ?? "", /\bimport\b|\brequire\(|\beval\(|new Function/);
  });
});
