/** Tests the page's doctor on files of torch and safetensors, on files with faults, and on pairs of files. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { suite, test } from "node:test";
import { type Checkpoint, type Definition, dtypeOf, type Finding } from "../../page/doctor/checkpoint.ts";
import { compare } from "../../page/doctor/compare.ts";
import { examine, summarize } from "../../page/doctor/examine.ts";
import { readFile } from "../../page/doctor/read.ts";
import { addValues, decodeNumbers, newStatistics, powerOf } from "../../page/doctor/values.ts";
import { registry } from "../../src/optimizers/registry.ts";
import { TestService } from "../support/service.ts";
import { brokenFiles, pickledBomb, pickledState, pickledTensor, pickledWeights, type State, state, stateFile, torchArchive, torchFile } from "./_files.ts";

const definitions = new Map<string, Definition>(
  [...registry.values()].map(({ name, family, allSlots }) => [
    name,
    { name, family, slots: { default: name.startsWith("adam") ? ["exp_avg", "exp_avg_sq"] : [], all: allSlots } },
  ]),
);

const read = async (file: File): Promise<Checkpoint> => {
  const { checkpoint, findings } = await readFile(file);
  assert.ok(checkpoint, findings.map(({ sentence }) => sentence).join());
  return checkpoint;
};

const codes = (findings: readonly Finding[]): readonly string[] => findings.filter(({ level }) => level !== "note").map(({ code }) => code);

const diagnose = async (file: File): Promise<readonly Finding[]> => {
  const { checkpoint, findings } = await readFile(file);
  return [...findings, ...(checkpoint ? (await examine(checkpoint, definitions)).findings : [])];
};

suite("the doctor reads", () => {
  test("a state of stepd", async () => {
    const checkpoint = await read(new File([readFileSync(join(import.meta.dirname, "../fixtures/adamw.safetensors"))], "adamw.safetensors"));
    assert.equal(summarize(checkpoint), "A state of stepd of adamw at step 41, for 2 parameters in 4 tensors.");
    const { findings, slots } = await examine(checkpoint, definitions);
    assert.deepEqual(codes(findings), []);
    const { count, zeros, min, max } = slots.get("exp_avg") ?? newStatistics();
    assert.deepEqual([count, zeros, min, max], [9, 1, -0.25, 0.5]);
  });

  test("states of torch, with numbers, with names, and within a trainer's dictionary", async () => {
    const numbered = await read(torchFile("adamw"));
    assert.equal(summarize(numbered), "A state of a torch optimizer, by its content of adamw at step 7, for 2 parameters in 4 tensors.");
    assert.equal(numbered.groups[0]?.values["lr"], 0.01);
    assert.deepEqual(
      [...(await read(torchFile("adamw-names"))).steps],
      [
        ["weight", 7],
        ["bias", 7],
      ],
    );
    const sgd = await read(torchFile("sgd"));
    assert.deepEqual([sgd.optimizer, sgd.tensors.map(({ slot }) => slot)], ["sgd", ["momentum_buffer", "momentum_buffer"]]);
    assert.equal((await read(torchFile("radam"))).optimizer, "radam");
    for (const name of ["adamw", "adamw-names", "sgd", "radam"]) assert.deepEqual(codes(await diagnose(torchFile(name))), [], name);
  });

  test("tensors in BF16, and tensors whose strides are not in row-major order", async () => {
    const [whole, bf16] = [await read(torchFile("adamw")), await read(torchFile("adamw-bf16"))];
    const valuesOf = async ({ tensors }: Checkpoint) => {
      const [{ read: bytes, dtype }] = tensors as [Checkpoint["tensors"][number]];
      return Array.from(decodeNumbers(await bytes(), dtype));
    };
    const [exact, rounded] = [await valuesOf(whole), await valuesOf(bf16)];
    assert.equal(rounded.length, 6);
    for (const [index, value] of exact.entries()) assert.ok(Math.abs(value - (rounded[index] as number)) <= Math.abs(value) / 256, `${exact} ${rounded}`);
  });

  test("moments in Q8, as the service widens them", async () => {
    await using service = await TestService.start();
    const elements = 4100;
    const tensor = (scale: number) => ({ w: { shape: [elements], values: Array.from({ length: elements }, (_, index) => Math.sin(index) * scale) } });
    const call = { optimizer: { name: "adamw", state_dtype: "Q8" }, params: tensor(1), grads: tensor(0.1) };
    const { state: narrow } = await service.call<{ state: Uint8Array<ArrayBuffer> }>("optimizer.step", call);
    const { state: wide } = await service.call<{ state: Uint8Array<ArrayBuffer> }>("state.convert", { state: narrow, state_dtype: "F32" });
    const [a, b] = [await read(new File([narrow], "q8")), await read(new File([wide], "f32"))];
    assert.deepEqual(a.tensors.map(dtypeOf), ["Q8", "Q8"]);
    assert.deepEqual(codes((await examine(a, definitions)).findings), []);
    // The dtypes differ, and no value.
    assert.deepEqual(codes(await compare(a, b, definitions)), ["other-dtype", "other-dtype"]);
  });

  test("a histogram by powers of two, also of values below the normal ones", () => {
    const statistics = newStatistics();
    addValues(statistics, Float32Array.of(1, 1.5, -2, 3, 0, 2 ** -149, 2 ** -130, Number.NaN));
    const bins = statistics.histogram.flatMap((count, bin) => (count > 0 ? [[powerOf(bin), count]] : []));
    assert.deepEqual(bins, [
      [-149, 1],
      [-130, 1],
      [0, 2],
      [1, 2],
    ]);
    assert.deepEqual([statistics.zeros, statistics.nonFinite, statistics.negative], [1, 1, 1]);
  });
});

suite("the doctor names what is wrong with one file:", () => {
  for (const { code, file, sentence } of brokenFiles()) {
    test(code, async () => {
      const findings = await diagnose(file);
      assert.deepEqual(codes(findings), [code]);
      assert.match(findings.find((finding) => finding.code === code)?.sentence ?? "", sentence);
    });
  }

  test("a pickle that would run a program, without running it", async () => {
    const [danger, ...others] = await diagnose(torchFile("harmful"));
    assert.deepEqual([danger?.code, codes(others)], ["runs-code", []]);
    assert.match(danger?.sentence ?? "", /(posix|nt)\.system/);
  });
});

suite("a file that would take the browser's memory or time is refused:", () => {
  test("compressed entries", async () => {
    const [found] = await diagnose(await torchArchive(pickledWeights(pickledTensor([1])), 9));
    assert.equal(found?.code, "compressed-entry");
  });

  test("a tensor that repeats its one element to terabytes", async () => {
    const findings = await diagnose(await torchArchive(pickledWeights(pickledTensor([2 ** 20, 2 ** 20]))));
    assert.match(findings.find(({ code }) => code === "bad-pickle")?.sentence ?? "", /repeats the 4 bytes of “data\/0” to \d+ bytes/);
  });

  test("lists that contain each other a thousand times", async () => {
    assert.deepEqual(codes(await diagnose(await torchArchive(pickledBomb()))), ["not-a-checkpoint"]);
  });

  test("entries of a wrong size", async () => {
    const bytes = Buffer.from(await (await torchArchive(pickledWeights(pickledTensor([1])))).arrayBuffer());
    // An entry of the central directory has its uncompressed size at byte 24.
    bytes.writeUInt32LE(2 ** 20, bytes.indexOf("PK\x01\x02") + 24);
    assert.deepEqual(codes(await diagnose(new File([bytes], "archive.pt"))), ["damaged-archive"]);
  });
});

suite("the doctor reads", () => {
  test("a learning rate that is a tensor", async () => {
    const { groups } = await read(await torchArchive(pickledState(pickledTensor([]), pickledTensor([1]))));
    assert.equal(groups[0]?.values["lr"], 0.5);
  });

  test("slots of a dtype that it does not know as such, and the rest of the file", async () => {
    const findings = await diagnose(await torchArchive(pickledState(pickledTensor([]), pickledTensor([1], "ComplexFloatStorage"))));
    assert.match(findings.find(({ code }) => code === "unread-slot")?.sentence ?? "", /“exp_avg”, whose values are of “torch\.ComplexFloatStorage”/);
  });

  test("a state of very many parameters", async () => {
    const many: State = new Map(Array.from({ length: 150_000 }, (_, index) => [`step/${index}`, { dtype: "I64", shape: [], values: [1] }]));
    assert.deepEqual(codes(await diagnose(stateFile(many))), []);
  });
});

suite("the doctor says why a resume would differ:", () => {
  const base = (): State => state();
  const scaled = (factor: number, slot: string): State => {
    const copy = base();
    for (const [key, tensor] of copy) if (key.startsWith(`${slot}/`)) copy.set(key, { ...tensor, values: tensor.values.map((value) => value * factor) });
    return copy;
  };
  const renamed = (rename: (name: string) => string): State =>
    new Map([...base()].map(([key, tensor]) => [key.replace(/\/(.*)$/, (_, name: string) => `/${rename(name)}`), tensor]));
  const without = (isOut: (key: string) => boolean): State => new Map([...base()].filter(([key]) => !isOut(key)));
  const withStep = (step: number): State =>
    new Map([...base()].map(([key, tensor]) => [key, key.startsWith("step/") ? { ...tensor, values: [step] } : tensor]));
  const transposed = (): State =>
    new Map([...base()].map(([key, tensor]) => [key, tensor.shape.length === 2 ? { ...tensor, shape: tensor.shape.toReversed() } : tensor]));
  const cases: readonly (readonly [code: string, other: File, sentence: RegExp])[] = [
    ["renamed", stateFile(renamed((name) => `module.${name}`)), /“module\.” before the names of A, which DataParallel/],
    ["renamed", stateFile(renamed((name) => (name === "layer.weight" ? "head.weight" : name))), /“layer\.weight” to “head\.weight”/],
    ["renamed", stateFile(renamed((name) => `head.${name.split(".")[1]}2`)), /2 parameters seem renamed, by order and shape: “layer\.bias” to “head\.bias2”/],
    ["other-optimizer", stateFile(base(), "lamb"), /either goes on/],
    ["other-step", stateFile(withStep(40)), /step 41 in A and 40 in B/],
    ["missing-slot", stateFile(without((key) => key === "exp_avg_sq/layer.bias")), /B lacks the slot exp_avg_sq of “layer\.bias”/],
    ["missing-parameter", stateFile(without((key) => key.endsWith("layer.bias"))), /“layer\.bias” is in A and not in B/],
    ["bias-corrected", stateFile(scaled(1 / (1 - 0.9 ** 41), "exp_avg")), /exp_avg of B is divided by its bias correction 1 - 0\.9\^step/],
    ["bias-corrected", stateFile(scaled(1 / (1 - 0.999 ** 41), "exp_avg_sq")), /exp_avg_sq of B/],
    ["scaled", stateFile(scaled(1024, "exp_avg")), /1024 times/],
    ["transposed", stateFile(transposed()), /“layer\.weight” is transposed/],
    ["lost-in-b", stateFile(scaled(0, "exp_avg_sq")), /“layer\.bias”.*zero everywhere in B/],
  ];
  for (const [code, other, sentence] of cases) {
    test(`${code}: ${sentence.source}`, async () => {
      const findings = await compare(await read(stateFile(base())), await read(other), definitions);
      assert.deepEqual(codes(findings), [code]);
      assert.match(findings.find((finding) => finding.code === code)?.sentence ?? "", sentence);
    });
  }

  test("another learning rate and other steps, of two files of torch", async () => {
    const findings = await compare(await read(torchFile("adamw-names")), await read(torchFile("adamw-later")), definitions);
    assert.deepEqual(new Set(codes(findings)), new Set(["other-step", "other-values", "other-rate"]));
    assert.match(findings.find(({ code }) => code === "other-rate")?.sentence ?? "", /lr is 0\.01 in A and 0\.005 in B/);
  });

  test("parameters by number against parameters by name", async () => {
    const findings = await compare(await read(torchFile("adamw")), await read(torchFile("adamw-names")), definitions);
    assert.deepEqual(
      findings.map(({ code }) => code),
      ["numbered", "same"],
    );
  });

  test("a narrower dtype", async () => {
    const findings = await compare(await read(torchFile("adamw")), await read(torchFile("adamw-bf16")), definitions);
    assert.ok(codes(findings).includes("other-dtype"));
  });

  test("another group, and with it another learning rate", async () => {
    const groups = (first: readonly string[], second: readonly string[]) => [
      { parameters: first, values: { lr: 0.1 } },
      { parameters: second, values: { lr: 0.01 } },
    ];
    const plain = await read(torchFile("adamw-names"));
    const [a, b] = [
      { ...plain, groups: groups(["weight"], ["bias"]) },
      { ...plain, groups: groups(["bias"], ["weight"]) },
    ];
    const findings = await compare(a, b, definitions);
    assert.match(findings.find(({ code }) => code === "moved-group")?.sentence ?? "", /“weight” and “bias” are in another parameter group/);
    assert.equal(findings.filter(({ code }) => code === "other-rate").length, 2);
  });

  test("nothing, where both are the same", async () => {
    assert.deepEqual(
      (await compare(await read(stateFile(base())), await read(stateFile(base())), definitions)).map(({ code }) => code),
      ["same"],
    );
  });
});
