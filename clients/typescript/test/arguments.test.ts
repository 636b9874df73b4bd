/** Tests that every public function and method throws a one-line error for wrong arguments, before anything is sent. */
import assert from "node:assert/strict";
import { after, before, suite, test } from "node:test";
import { TestService } from "../../../test/support/service.ts";
import { Client, ShardedClient, State, StepdError, TransportError, toTensors } from "../src/index.ts";

/** Nothing listens at this address, so a call that is sent fails with another error. */
const URL = "http://127.0.0.1:1";
const optimizer = { name: "adamw" };
const w = { w: { shape: [2], data: Float32Array.of(1, 2) } };
const good = { optimizer, params: w, grads: w };
const result = { params: w, state: {}, step: 1 };

type Case = readonly [what: string, argument: unknown, words: RegExp];

const tensorsCases = (field: string): readonly Case[] =>
  (
    [
      ["nothing", undefined, "expected tensors by name.*, found undefined"],
      ["null", null, "expected tensors by name.*, found null"],
      ["a list", [w.w], "expected tensors by name.*, found Array"],
      ["an array", w.w.data, "expected tensors by name.*, found Float32Array"],
      ["a Map", new Map([["w", w.w]]), "expected tensors by name.*, found Map"],
      ["a Promise, for want of an await", Promise.resolve(w), "expected tensors by name.*, found Promise"],
      ["a reserved name", { __metadata__: w.w }, "no tensor can be called __metadata__"],
      ["another reserved name", JSON.parse('{"__proto__": {}}'), "no tensor can be called __proto__"],
      ["a lone surrogate", { "\ud800": w.w }, "the name .* has a lone surrogate"],
    ] as const
  ).map(([what, value, words]): Case => [`${field}: ${what}`, { ...good, [field]: value }, new RegExp(`^${field}: ${words}`)]);

const tensorCases = (field: string): readonly Case[] =>
  (
    [
      ["null", null, "expected { shape, data }, found null"],
      ["nothing", undefined, "expected { shape, data }, found undefined"],
      ["a list", [1, 2], "expected { shape, data }, found Array"],
      ["an array", w.w.data, "expected { shape, data }, found Float32Array"],
      ["of a shape of BigInts", { shape: [2n], data: w.w.data }, "expected a shape of sizes from 0 on, found \\[2\\]"],
    ] as const
  ).map(([what, tensor, words]): Case => [`${field}: a tensor that is ${what}`, { ...good, [field]: { w: tensor } }, new RegExp(`tensor "w": ${words}`)]);

/** MessagePack cannot encode these values. */
const unsendable: readonly Case[] = [
  ["a BigInt", { ...good, optimizer: { name: "adamw", lr: 1n } }, /^optimizer: expected numbers, .*, found a bigint/],
  ["a function for a rate", { ...good, optimizer: { name: "adamw", lr: () => 1 } }, /^optimizer: expected numbers, .*, found a function/],
];

const settings: readonly Case[] = [
  ["no input", undefined, /expected an object with .*, found undefined/],
  ["null", null, /expected an object with .*, found null/],
  ["a list", [good], /expected an object with .*, found Array/],
  ["no optimizer", { ...good, optimizer: undefined }, /^optimizer: expected an optimizer such as .*, found undefined/],
  ["the name of an optimizer", { ...good, optimizer: "adamw" }, /^optimizer: expected an optimizer such as .*, found "adamw"/],
  ["a Promise of an optimizer", { ...good, optimizer: Promise.resolve(optimizer) }, /^optimizer: expected an optimizer such as .*, found Promise/],
  ["groups that are none", { ...good, groups: { tensors: ["w"] } }, /^groups: expected a list of groups, found Object/],
  ["a group that is none", { ...good, groups: ["w"] }, /^groups\[0\]: expected a group such as .*, found "w"/],
];

const states: readonly Case[] = [
  ["a string", "run.safetensors", /^state: expected a State or the bytes of one, found "run.safetensors"/],
  ["a result", result, /^state: expected a State or the bytes of one, found Object/],
  ["a list of bytes", [1, 2], /^state: .*, found Array/],
  ["an ArrayBuffer", new ArrayBuffer(3), /^state: .*, found ArrayBuffer/],
  ["a number", 5, /^state: .*, found 5/],
];

const stateIn = (cases: readonly Case[]): readonly Case[] => cases.map(([what, state, words]) => [`as state ${what}`, { ...good, state }, words]);

const METHODS: Readonly<Record<string, readonly Case[]>> = {
  step: [
    ...settings,
    ...unsendable,
    ...tensorsCases("params").filter(([what]) => !what.endsWith("nothing")),
    ["no params", { optimizer, grads: w }, /^params: expected tensors, or cached/],
    ...tensorsCases("grads"),
    ...tensorCases("params"),
    ...tensorCases("grads"),
    ...stateIn(states),
    ["a schedule's name", { ...good, schedule: "cosine" }, /^schedule: expected an object, found "cosine"/],
    ["a number to clip at", { ...good, clip: 1 }, /^clip: expected an object, found 1/],
    ["a word as reply", { ...good, reply: "none" }, /^reply: expected an object, found "none"/],
    ["a seed", { ...good, stochastic_rounding: 7 }, /^stochastic_rounding: expected an object, found 7/],
    ["a word as cached", { ...good, cached: "yes" }, /^cached: expected that of a.* result, found "?yes/],
  ],
  init: [...settings, ...unsendable, ...tensorsCases("params"), ...tensorCases("params")],
  average: [
    ...settings,
    ...tensorsCases("params"),
    ...stateIn(states),
    ["no state", { optimizer, params: w }, /^state: expected a State or the bytes of one, found undefined/],
  ],
  norms: [
    ["no input", undefined, /^norms: expected an object with grads, found undefined/],
    ...tensorsCases("grads"),
    ...tensorCases("grads"),
    ...tensorsCases("params").filter(([what]) => !what.endsWith("nothing")),
  ],
  reduce: [
    ["no input", undefined, /^reduce: expected an object with updates, found undefined/],
    ["no updates", {}, /^updates: expected a list such as .*, found undefined/],
    ["tensors for updates", { updates: w }, /^updates: expected a list such as .*, found Object/],
    ["an update that is a number", { updates: [5] }, /^updates\[0\]: expected \{ tensors, weight \}, found 5/],
    ["an update without tensors", { updates: [{ weight: 1 }] }, /^updates\[0\]\.tensors: expected tensors by name.*, found undefined/],
    ["a list for params", { updates: [{ tensors: w }], params: [1] }, /^params: expected tensors by name.*, found Array/],
    ["text for an accumulator", { updates: [], accumulator: "x" }, /^accumulator: expected the bytes of an earlier result, found "x"/],
    ["a method's name", { updates: [], method: "mean" }, /^method: expected a method such as .*, found "mean"/],
  ],
  distances: [
    ["no input", undefined, /^distances: expected an object with updates, found undefined/],
    ["no updates", {}, /^updates: expected a list such as .*, found undefined/],
    ["tensors for updates", { updates: w }, /^updates: expected a list such as .*, found Object/],
    ["an update that is a number", { updates: [5] }, /^updates\[0\]: expected .*, found 5/],
    ["an earlier result that is a number", { updates: [], distances: 5 }, /^distances: expected an earlier result, found 5/],
  ],
  plan: [
    ...settings,
    ["no tensors", { optimizer }, /^tensors: expected shapes by name/],
    ["a list of shapes", { optimizer, tensors: [[2, 3]] }, /^tensors: expected shapes by name.*, found Array/],
  ],
  inspect: [...states, ["nothing", undefined, /^state: .*, found undefined/]],
  convert: [
    ["no input", undefined, /^convert: expected an object with state, found undefined/],
    ...stateIn(states),
    ["a format's name", { state: new Uint8Array(8), to: "torch" }, /^to: expected a convention such as .*, found "torch"/],
    ["a format's name", { state: new Uint8Array(8), from: ["torch"] }, /^from: expected a convention such as .*, found Array/],
  ],
  evaluateSchedule: [
    ["no input", undefined, /^evaluateSchedule: expected an object with schedule, found undefined/],
    ["no schedule", {}, /^schedule: expected a schedule such as .*, found undefined/],
    ["its name", { schedule: "cosine" }, /^schedule: expected a schedule such as .*, found "cosine"/],
  ],
  describe: [
    ["nothing", undefined, /^name: expected a name, found undefined/],
    ["no name", "", /^name: expected a name, found ""/],
    ["an optimizer", optimizer, /^name: expected a name, found Object/],
    ["a number", 5, /^name: expected a name, found 5/],
  ],
};

const CALL_OPTIONS: readonly Case[] = [
  ["a timeout of 0", { timeoutMs: 0 }, /^timeoutMs: expected milliseconds, a number above 0, found 0/],
  ["a timeout in words", { timeoutMs: "5s" }, /^timeoutMs: expected milliseconds/],
  ["a timeout of NaN", { timeoutMs: Number.NaN }, /^timeoutMs: expected milliseconds/],
  ["a number", 5, /^options: expected an object with some of signal, timeoutMs, found 5$/],
  ["null", null, /^options: expected an object with some of signal, timeoutMs, found null$/],
  ["the signal by itself", new AbortController().signal, /^options: expected an object with some of signal, timeoutMs, found AbortSignal$/],
  ["an option that is none", { timeout: 5 }, /^options: expected some of signal, timeoutMs, found "timeout"$/],
  ["a controller", { signal: new AbortController() }, /^signal: expected an AbortSignal, found AbortController/],
];

const CONSTRUCTORS: readonly (readonly [what: string, url: unknown, options: unknown, words: RegExp])[] = [
  ["no url", undefined, undefined, /^url: expected the server's root/],
  ["no scheme", "127.0.0.1:8080", undefined, /^url: expected the server's root/],
  ["another scheme", "unix:///run/stepd.sock", undefined, /^url: expected the server's root/],
  ["null for options", URL, null, /^options: expected an object with some of token, .*, found null$/],
  ["a number for options", URL, 5, /^options: expected an object with some of token, timeoutMs, .*, found 5$/],
  ["an option that is none", URL, { timeout: 5 }, /^options: expected some of token, timeoutMs, .*, found "timeout"$/],
  ["an option of Python's", URL, { shared_dir: undefined }, /^options: expected some of .*sharedDir.*, found "shared_dir"$/],
  ["a token that is none", URL, { token: 5 }, /^token: expected a string, found number/],
  ["a timeout in words", URL, { timeoutMs: "60" }, /^timeoutMs: expected milliseconds/],
  ["a timeout of 0", URL, { timeoutMs: 0 }, /^timeoutMs: expected milliseconds/],
  ["negative retries", URL, { retries: -1 }, /^retries: expected a number from 0 on, found -1/],
  ["retries in words", URL, { retries: "4" }, /^retries: expected a number from 0 on, found 4/],
  ["a negative wait", URL, { refusedMs: -1 }, /^refusedMs: expected a number from 0 on, found -1/],
  ["a logger that is none", URL, { warn: true }, /^warn: expected a function, found true/],
  ["a fetch that is none", URL, { fetch: "fetch" }, /^fetch: expected a function, found "fetch"/],
  ["a folder that is none", URL, { sharedDir: "/nowhere/x" }, /^sharedDir: expected a folder/],
];

type Methods = Readonly<Record<string, (...given: unknown[]) => Promise<unknown>>>;

/**
 * Returns a function that matches a TypeError or RangeError of one line, worded by the client and not by the JavaScript engine.
 */
const isOneLineError =
  (words: RegExp) =>
  (error: unknown): boolean => {
    assert.ok(error instanceof TypeError || error instanceof RangeError, String(error));
    assert.match(error.message, words);
    assert.doesNotMatch(error.message, /\n|Cannot |is not iterable|of undefined/);
    return true;
  };

suite("wrong arguments", () => {
  const clients = { Client: new Client(URL, { retries: 0 }), ShardedClient: new ShardedClient([URL, URL], { retries: 0, requestBytes: 1 }) };
  for (const [kind, client] of Object.entries(clients)) {
    const methods = client as unknown as Methods;
    for (const [method, cases] of Object.entries(METHODS)) {
      if (!(method in client)) continue;
      test(`${kind}.${method}`, async () => {
        for (const [what, argument, words] of cases) await assert.rejects(async () => methods[method]?.call(client, argument), isOneLineError(words), what);
      });
    }
  }

  for (const method of ["optimizers", "info", "isReady"])
    test(`options of Client.${method}`, async () => {
      for (const [what, options, words] of CALL_OPTIONS)
        await assert.rejects(async () => (clients.Client as unknown as Methods)[method]?.call(clients.Client, options), isOneLineError(words), what);
    });

  test("options of a step", async () => {
    for (const client of Object.values(clients))
      for (const [what, options, words] of CALL_OPTIONS) {
        const step = (client as unknown as Methods)["step"];
        await assert.rejects(async () => step?.call(client, { optimizer, params: w, grads: w }, options), isOneLineError(words), what);
      }
  });

  test("constructors", () => {
    const makers: readonly ((url: unknown, options: unknown) => unknown)[] = [
      (url, options) => new Client(url as string, options as undefined),
      (url, options) => new ShardedClient([url as string], options as undefined),
    ];
    for (const [what, url, options, words] of CONSTRUCTORS) for (const make of makers) assert.throws(() => make(url, options), isOneLineError(words), what);
    assert.throws(() => new ShardedClient(URL as unknown as string[]), isOneLineError(/^urls: expected a list of the servers' roots, found "http/));
    assert.throws(() => new ShardedClient(undefined as unknown as string[]), isOneLineError(/^urls: expected a list/));
    assert.throws(() => new ShardedClient([5 as unknown as string]), isOneLineError(/^url: expected/));
  });

  test("states and files", () => {
    const untyped = (value: unknown): never => value as never;
    for (const value of ["x", undefined, null, [1], new ArrayBuffer(8)])
      assert.throws(() => new State(untyped(value)), isOneLineError(/^expected the bytes of a state in a Uint8Array, found/));
    assert.throws(() => new State(new Uint8Array(3)), isOneLineError(/a safetensors file has at least 8 bytes/));
    assert.throws(() => State.join([]), isOneLineError(/there is no state to join/));
    assert.throws(() => State.join(untyped("x")), isOneLineError(/^states: expected a list of State/));
    assert.throws(() => State.join(untyped([new Uint8Array(8)])), isOneLineError(/^states: expected a list of State/));
    assert.throws(() => toTensors(new Uint8Array(9)), isOneLineError(/./));
  });

  test("every public method has its cases", () => {
    const own = Object.getOwnPropertyNames(Client.prototype).filter((name) => !["constructor", "url", "close"].includes(name));
    assert.deepEqual(own.sort(), [...Object.keys(METHODS), "optimizers", "info", "isReady"].sort());
  });
});

suite("names", () => {
  let service: TestService;
  before(async () => {
    service = await TestService.start();
  });
  after(() => service[Symbol.asyncDispose]());

  test("unusual names survive a step", async () => {
    const names = ["", "a\0b", "x".repeat(1024), "*", "step/w", "constructor", "toString", "\uffff", "😀"];
    const params = Object.fromEntries(names.map((name) => [name, w.w]));
    for (const client of [new Client(service.url), new ShardedClient([service.url], { requestBytes: 1 })]) {
      const first = await client.step({ optimizer: { name: "adamw" }, params, grads: params });
      assert.deepEqual(Object.keys(first.params), names);
      assert.equal((await client.step({ optimizer: { name: "adamw" }, params: first.params, grads: params, state: first.state })).step, 2);
    }
  });

  test("server errors and transport errors are distinct", async () => {
    await assert.rejects(new Client(service.url).describe("adamv"), StepdError);
    await assert.rejects(new Client(URL, { retries: 0 }).describe("adamw"), TransportError);
  });
});
