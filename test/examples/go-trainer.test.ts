/** Tests trainers in Go and Python that continue each other's runs: data, files and steps are equal, byte for byte. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { type Ended, runCommand } from "../support/command.ts";
import { goTrainer } from "../support/go.ts";
import "../support/python.ts";
import { requireSame } from "../support/same.ts";
import { TestService } from "../support/service.ts";
import { readFile, readState, readTensors } from "../support/tensors.ts";
import { root } from "../support/tree.ts";

const EPOCHS = 15;
const STEPS = 330;
const HALF = 100; // Step 100 is in the middle of an epoch.

type Language = "go" | "python";
const directions: readonly (readonly [Language, Language])[] = [
  ["go", "python"],
  ["python", "go"],
];

const folder = mkdtempSync(join(os.tmpdir(), "stepd-go-trainer-"));
const at = (name: string): string => join(folder, name);
const digits = join(root, "examples/digits");
const trainer = join(root, "examples/go-trainer");

/**
 * The commands of the trainers. They omit the setup in the run scripts, which export the data and take longer than training.
 */
const commands: Record<Language, readonly string[]> = { go: [], python: [] };
let service: TestService;
before(async () => {
  service = await TestService.start();
  const python = execFileSync(join(digits, "environment"), { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }).trim();
  execFileSync(python, [join(digits, "train.py"), "--epochs", `${EPOCHS}`, "--export", at("digits")]);
  commands.go = [await goTrainer(), "--data", at("digits"), "--settings", join(digits, "settings.json")];
  commands.python = [python, join(digits, "train.py")];
});
after(async () => {
  await service.stop();
  rmSync(folder, { recursive: true });
});

const run = ([command = "", ...given]: readonly string[], options: readonly string[], url: string): Promise<Ended> =>
  runCommand(command, [...given, "--epochs", `${EPOCHS}`, ...options], { cwd: folder, env: { ...process.env, STEPD_URL: url } });

const train = (language: Language, ...options: readonly string[]): Promise<Ended> => run(commands[language], options, service.url);

/** Runs the Go trainer as a user does, from another folder than the trainer's own. */
const runScript = (options: readonly string[], url = service.url): Promise<Ended> => run([join(trainer, "run")], options, url);

/** Runs a training that must succeed. */
const trained = async (language: Language, ...options: readonly string[]): Promise<Ended> => {
  const done = await train(language, ...options);
  assert.equal(done.code, 0, done.out + done.log);
  return done;
};

const state = (name: string): Buffer => readFileSync(at(`${name}.state.safetensors`));
/** Returns the bytes of each tensor by name, because the order of tensors depends on the writer. */
const tensors = (name: string): Record<string, string> =>
  Object.fromEntries([...readFile(readFileSync(at(`${name}.safetensors`))).entries].map(([key, { bytes }]) => [key, bytes.toString("hex")]));

const requireSameRun = (found: string, expected: string): void => {
  requireSame(tensors(`${found}.params`), tensors(`${expected}.params`), "params");
  assert.ok(state(found).equals(state(expected)), `the states of ${found} and ${expected} differ`);
};

const requireTrained = ({ out }: Ended): void => {
  const [, accuracy, steps] = /test accuracy ([\d.]+)% after (\d+) steps/.exec(out) ?? [];
  assert.equal(Number(steps), STEPS, out);
  assert.ok(Number(accuracy) > 95, out);
};

test("the Go trainer trains to over 95 % on its own server", async () => {
  const { code, out, log } = await runScript([], "");
  assert.equal(code, 0, out + log);
  requireTrained({ code, out, log });
  const losses = [...out.matchAll(/^epoch +\d+ +loss ([\d.]+)$/gm)].map(([, loss]) => Number(loss));
  assert.equal(losses.length, EPOCHS, out);
  assert.ok((losses.at(-1) ?? 1) < 0.2 * (losses[0] ?? 0), out);
  assert.match(log, /100%.*330\/330/);
});

for (const language of ["go", "python"] as const)
  test(`${language}: two halves of a run give the same bytes as the whole run`, async () => {
    await trained(language, "--save", `${language}-whole`);
    await trained(language, "--stop-after", `${HALF}`, "--save", language);
    assert.deepEqual([...new Set(Object.values(readState(state(language)).steps))], [HALF]);
    requireTrained(await trained(language, "--resume", language, "--save", `${language}-halves`));
    requireSameRun(`${language}-halves`, `${language}-whole`);
  });

for (const [first, second] of directions) {
  test(`${second} reads the run of ${first} and writes the same bytes`, async () => {
    await trained(second, "--resume", first, "--stop-after", `${HALF}`, "--save", `${second}-of-${first}`);
    requireSameRun(`${second}-of-${first}`, first);
  });

  test(`${second} continues the run of ${first} to over 95 %`, async () => {
    requireTrained(await trained(second, "--resume", first, "--save", `${first}-then-${second}`));
    const { optimizer, steps } = readState(state(`${first}-then-${second}`));
    assert.deepEqual([optimizer, ...new Set(Object.values(steps))], ["adamw", STEPS]);
  });

  test(`${second} replays a step of ${first} to the same bytes, and its own gradients agree within float32 accuracy`, async () => {
    const next = `${HALF + 1}`;
    await trained(first, "--resume", first, "--stop-after", next, "--save", `${first}-next`);
    await trained(second, "--resume", first, "--stop-after", next, "--save", `${second}-replay`, "--replay", `${first}-next.grads.safetensors`);
    requireSameRun(`${second}-replay`, `${first}-next`);
    await trained(second, "--resume", first, "--stop-after", next, "--save", `${second}-own`);
    const own = readTensors(readFileSync(at(`${second}-own.grads.safetensors`)));
    const theirs = readTensors(readFileSync(at(`${first}-next.grads.safetensors`)));
    for (const [name, { data }] of Object.entries(theirs)) {
      const largest = Math.max(...data.map(Math.abs));
      const off = Math.max(...data.map((value, index) => Math.abs(value - (own[name]?.data[index] ?? Number.NaN))));
      assert.ok(largest > 1e-4 && off < 1e-5 * largest, `${name}: off by ${off} of ${largest}`);
    }
  });
}

test("another seed gives another run, and data of a wrong seed are refused", async () => {
  await trained("go", "--stop-after", "1", "--save", "seed-7");
  const { code, log } = await runScript(["--seed", "8", "--stop-after", "1", "--save", "seed-8"]);
  assert.equal(code, 0, log);
  assert.notDeepEqual(tensors("seed-8.params"), tensors("seed-7.params"));
  const other = await train("go", "--seed", "8");
  assert.equal(other.code, 1, other.out);
  assert.match(other.log, /expected data of seed 8, found 7/);
});

test("an unreadable run is an error that names the file", async () => {
  const missing = await train("go", "--resume", "nowhere");
  assert.equal(missing.code, 1, missing.out);
  assert.match(missing.log, /nowhere\.params\.safetensors/);
  await trained("go", "--stop-after", "1", "--save", "cut");
  writeFileSync(at("cut.state.safetensors"), state("cut").subarray(0, -1));
  const cut = await train("go", "--resume", "cut");
  assert.equal(cut.code, 1, cut.out);
  assert.match(cut.log, /cut\.state\.safetensors: stepd: not a valid safetensors file/);
});

test("the Go trainer exits with 1 if it does not learn enough", async () => {
  const { code, out } = await train("go", "--epochs", "1", "--lr", "0");
  assert.equal(code, 1, out);
});
