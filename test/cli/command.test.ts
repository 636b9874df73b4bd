/** Tests what all commands share: help, version, exit status, and one-line errors for wrong usage. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { root } from "../support/tree.ts";
import { COMMANDS, Command, Folder, main, stepd } from "./_command.ts";

const FIXTURE = join(root, "test/fixtures/adamw.safetensors");

test("--version prints the package's version", async () => {
  const { version } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as { version: string };
  assert.deepEqual(await stepd("--version"), { code: 0, stdout: `${version}\n`, stderr: "" });
});

test("--help lists every command, and each command's help lists its options", async () => {
  const { code, stdout } = await stepd("--help");
  assert.equal(code, 0);
  for (const name of COMMANDS) assert.match(stdout, new RegExp(`^  ${name} `, "m"));
  const helps = await Promise.all(COMMANDS.map((name) => stepd(name, "--help")));
  for (const [index, help] of helps.entries()) {
    assert.equal(help.code, 0);
    assert.match(help.stdout, new RegExp(`^Usage: stepd ${COMMANDS[index]}`));
    assert.match(help.stdout, /^ {2}-h, --help +\S/m);
    assert.equal(help.stderr, "");
  }
});

test("--help takes precedence over missing arguments", async () => {
  assert.equal((await stepd("convert", "-h")).code, 0);
});

const WRONG: readonly (readonly [readonly string[], RegExp])[] = [
  [[], /^stepd: expected a command: serve, .*; found none$/],
  [["inspekt"], /^stepd: expected one of .* \(the nearest is inspect\), found "inspekt"$/],
  [["foo"], /^stepd: expected one of serve, inspect, convert, plan, verify, bench, found "foo"$/],
  [["Plan"], /\(the nearest is plan\), found "Plan"$/],
  [["inspect"], /^stepd: FILE: expected an argument, found none$/],
  [["inspect", "a", "b"], /^stepd: expected FILE, found "b" besides$/],
  [["inspect", FIXTURE, "--stat"], /^stepd: --stat: expected an option that --help lists \(the nearest is --stats\), found an unknown one$/],
  [["inspect", FIXTURE, "-x"], /^stepd: -x: expected an option that --help lists, found an unknown one$/],
  [["inspect", FIXTURE, "--JSON"], /^stepd: --JSON: expected an option that --help lists \(the nearest is --json\), found an unknown one$/],
  [["inspect", FIXTURE, "--json=1"], /^stepd: --json: expected no value, found "1"$/],
  [["convert", "a"], /^stepd: OUT: expected an argument, found none$/],
  [["convert", "a", "b", "--to", "pytorch"], /^stepd: --to: expected one of stepd, torch, qhoptim, optax \(the nearest is torch\), found "pytorch"$/],
  [["convert", "a", "b", "--to", "jax"], /^stepd: --to: expected one of stepd, torch, qhoptim, optax, found "jax"$/],
  [["convert", "a", "b", "--to"], /^stepd: --to: expected FORMAT, found nothing$/],
  [["convert", "a", "b", "--to", "--force"], /^stepd: --to: expected FORMAT, found --force$/],
  [["convert", "a", "b", "--to", "torch", "--to", "optax"], /^stepd: --to: expected one value, found 2$/],
  [["convert", "a", "b", "--step", "0"], /^stepd: --step: expected a whole number from 1 to \d+, found "0"$/],
  [["convert", "a", "b", "--betas", "0.9"], /^stepd: --betas: expected two numbers such as 0.9,0.999, found "0.9"$/],
  [["plan"], /^stepd: FILE: expected a file or --tensor, found neither$/],
  [["plan", FIXTURE, "--tensor", "3"], /^stepd: FILE: expected a file or --tensor, found both$/],
  [["plan", "--tensor", "w=3y4"], /^stepd: --tensor: expected a shape such as .*, found "w=3y4"$/],
  [["plan", "--tensor", "3", "--set", "lr"], /^stepd: --set: expected the name of a hyperparameter, = and its value, found "lr"$/],
  [["plan", "--tensor", "3", "--set", "lr=-1"], /^stepd: --set lr: expected at least 0, found -1$/],
  [["plan", "--tensor", "3", "--set", "lrr=1"], /^stepd: --set lrr: expected a known field \(the nearest is lr\), found "lrr"$/],
  [["plan", "--tensor", "3", "--optimizer", "adann"], /^stepd: --optimizer: expected one of .* \(the nearest is adan\), found "adann"$/],
  [["plan", "--tensor", "w=3:F8"], /^stepd: --tensor w\/dtype: expected one of F32, .*, found "F8"$/],
  [["plan", "--tensor", "3", "--grad-dtype", "I64"], /^stepd: --grad-dtype: expected one of F32, .*, found "I64"$/],
  [["plan", "--tensor", "3", "--arena-mib", "5000"], /^stepd: --arena-mib: expected a whole number from 1 to 4096, found "5000"$/],
  [["bench"], /^stepd: URL: expected an argument, found none$/],
  [["bench", "ftp://host"], /^stepd: URL: expected the server's root, such as .*, found "ftp:\/\/host"$/],
  [["bench", "http://h", "--elements", "10,x"], /^stepd: --elements: expected a whole number from 1 to \d+, found "x"$/],
  [["bench", "http://h", "--dtype", "I8"], /^stepd: --dtype: expected one of F32, F64, BF16, F16, found "I8"$/],
  [["serve", "--port", "x"], /^stepd: --port: expected a whole number from 0 to 65535, found "x"$/],
  [["serve", "x"], /^stepd: expected no arguments, found "x" besides$/],
];

for (const [args, expected] of WRONG) {
  test(`wrong usage is refused: stepd ${args.map((arg) => (arg === FIXTURE ? "FILE" : arg)).join(" ")}`, async () => {
    const { code, stdout, stderr } = await stepd(...args);
    assert.equal(code, 2, stderr);
    assert.equal(stdout, "");
    assert.match(stderr, /^[^\n]+\n$/, "one line");
    assert.match(stderr.trimEnd(), expected);
  });
}

test("a pipe closed early by its reader is not a failure", async () => {
  using folder = new Folder();
  const tensors = Array.from({ length: 5000 }, (_, index) => `tensor${index}=1`).flatMap((tensor) => ["--tensor", tensor]);
  folder.write("args", tensors.join("\n"));
  const script = `xargs ${process.execPath} src/cli/main.ts plan --json < ${folder.at("args")} | head -n 1; exit "\${PIPESTATUS[0]}"`;
  const { status, stdout, stderr } = spawnSync("bash", ["--norc", "-c", script], { cwd: root, encoding: "utf8", env: { PATH: process.env["PATH"] } });
  assert.deepEqual({ status, stdout, stderr }, { status: 0, stdout: "{\n", stderr: "" });
});

test("output is coloured only on request or on a terminal", async () => {
  const isColoured = async (env: Readonly<Record<string, string>>): Promise<boolean> => {
    await using command = new Command(["--help"], env);
    return (await command.ended).stdout.includes("\u001b");
  };
  assert.equal(await isColoured({}), false);
  assert.equal(await isColoured({ FORCE_COLOR: "1" }), true);
  const onTerminal = (env: Readonly<Record<string, string>>): string => {
    const command = `${process.execPath} ${main} --help`;
    return spawnSync("script", ["-qec", command, "/dev/null"], { encoding: "utf8", env: { PATH: process.env["PATH"], TERM: "xterm", ...env } }).stdout;
  };
  assert.ok(onTerminal({}).startsWith("\u001b[1mUsage:"));
  assert.match(onTerminal({ NO_COLOR: "1" }), /^Usage:/);
});
