/** Tests that the Plan panel reads tensor sizes as people write them. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { parseSizes, trafficOf, transferSeconds } from "../../page/plan/sizes.ts";

test("a line holds a name and a shape, or only a number of parameters", () => {
  assert.deepEqual(parseSizes("layer.weight 768x3072\n\nlayer.bias: [3_072]\nhead = 10 × 20\n1000000"), [
    { name: "layer.weight", shape: [768, 3072] },
    { name: "layer.bias", shape: [3072] },
    { name: "head", shape: [10, 20] },
    { name: "tensor 5", shape: [1000000] },
  ]);
});

test("errors name an invalid line, a repeated name, and an empty list", () => {
  assert.throws(() => parseSizes("a 3\nb x"), /^Error: line 2: expected a name and a shape.*found “b x”$/);
  assert.throws(() => parseSizes("a 3\na 4"), /“a” twice/);
  assert.throws(() => parseSizes(" \n"), /at least one tensor/);
});

test("the traffic of a step and the time that it takes on a network", () => {
  const [plain, json, cached] = trafficOf({ bytes_in: 1600, bytes_out: 1200, state_bytes: 800 }, 400);
  assert.deepEqual([plain?.bytesIn, json?.bytesOut, cached], [1600, 1600, { name: cached?.name, bytesIn: 400, bytesOut: 400 }]);
  assert.equal(transferSeconds({ name: "", bytesIn: 1e9, bytesOut: 25e7 }, 10), 1);
});
