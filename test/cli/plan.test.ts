/** Tests `stepd plan`: the server's plan, and the transfer time over a network. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { TestService } from "../support/service.ts";
import { rawTensors } from "../support/tensors.ts";
import { Folder, stepd } from "./_command.ts";

test("a file, and its shapes as options, give the plan of a server with the same memory", async () => {
  using folder = new Folder();
  await using service = await TestService.start({ STEPD_ARENA_MIB: "64", STEPD_WORKERS: "1" });
  const header = {
    w: { dtype: "F32", shape: [1000, 700], data_offsets: [0, 2_800_000] },
    "b/x": { dtype: "BF16", shape: [], data_offsets: [2_800_000, 2_800_002] },
  };
  const path = folder.write("params", rawTensors(JSON.stringify(header), Buffer.alloc(2_800_002)));
  const tensors = { w: { shape: [1000, 700], dtype: "F32" }, "b/x": { shape: [], dtype: "BF16" } };
  const optimizer = { name: "adam", betas: [0.8, 0.9], amsgrad: true };
  const expected = await service.call<Record<string, unknown>>("optimizer.plan", { optimizer, tensors, grad_dtype: "F16", master_weights: true });
  const options = ["--optimizer", "adam", "--set", "betas=0.8,0.9", "--set", "amsgrad=true", "--grad-dtype", "F16", "--master-weights"];
  for (const shapes of [[path], ["--tensor", "w=1000x700:F32", "--tensor", "b/x=:BF16"]]) {
    const { code, stdout, stderr } = await stepd("plan", ...shapes, ...options, "--arena-mib", "64", "--json");
    assert.equal(code, 0, stderr);
    const { links, ...plan } = JSON.parse(stdout) as { links: { gbit_per_second: number; in_seconds: number; out_seconds: number }[] };
    assert.deepEqual(plan, expected);
    const { bytes_in: down = 0, bytes_out: up = 0 } = expected as Record<string, number>;
    assert.deepEqual(
      links,
      [1, 10, 25].map((gbit) => ({ gbit_per_second: gbit, in_seconds: (down * 8) / (gbit * 1e9), out_seconds: (up * 8) / (gbit * 1e9) })),
    );
  }
});

test("plan counts slices of a tensor that does not fit, or names it if its optimizer needs it whole", async () => {
  const planned = async (...more: readonly string[]): Promise<string> => {
    const { code, stdout } = await stepd("plan", "--tensor", "large=10000x10000", "--tensor", "small=3", "--arena-mib", "100", ...more);
    assert.equal(code, 0);
    assert.match(stdout, /^memory: 1\.60 GB as one call, which does not fit into 105 MB$/m);
    return stdout;
  };
  assert.match(await planned(), /^calls: {2}128$/m);
  assert.match(await planned("--optimizer", "lamb"), /^calls: {2}none: these tensors alone are too large: large$/m);
});

test("a file with an unsupported dtype is refused by its name", async () => {
  using folder = new Folder();
  const path = folder.write("params", rawTensors('{"ids":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}', Buffer.alloc(8)));
  const { code, stderr } = await stepd("plan", path);
  assert.equal(code, 1);
  assert.match(stderr, /^stepd: [^\n]+: ids\/dtype: expected one of F32, .*, found "I64"\n$/);
});
