/** Tests that the code of the built kernels contains no instruction whose result may differ between machines. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import binaryen from "binaryen";

const { Features } = binaryen;

/** Returns the number of occurrences of each instruction in a module. */
const countOpcodes = (bytes: Uint8Array): ReadonlyMap<string, number> => {
  const module = binaryen.readBinary(bytes);
  module.setFeatures(Features.All);
  const counts = new Map<string, number>();
  for (const [, name = ""] of module.emitText().matchAll(/\(\s*([a-z]\w*\.[\w.]+)/g)) counts.set(name, (counts.get(name) ?? 0) + 1);
  module.dispose();
  return counts;
};

/** Matches the names of the relaxed SIMD proposal's instructions (0xfd 0x100 and above), some of which are fused. */
const RELAXED = /relaxed|laneselect|dot_i8x16_i7x16|madd|fma/;

const relaxedIn = (bytes: Uint8Array): readonly string[] => [...countOpcodes(bytes).keys()].filter((name) => RELAXED.test(name));

const kernels = readFileSync(new URL("../../build/kernels.wasm", import.meta.url));

const assemble = (name: string, operands: number): Uint8Array => {
  const gets = ["(local.get 0)", "(local.get 1)", "(local.get 2)"].slice(0, operands).join(" ");
  const module = binaryen.parseText(`(module (func (export "planted") (param v128 v128 v128) (result v128) (${name} ${gets})))`);
  module.setFeatures(Features.All);
  return module.emitBinary();
};

test("the kernels use SIMD instructions", () => {
  const counts = countOpcodes(kernels);
  for (const name of ["v128.load", "v128.store", "f32x4.mul", "f32x4.div", "f32x4.sqrt", "f64x2.add"])
    assert.ok((counts.get(name) ?? 0) > 0, `no ${name} in build/kernels.wasm`);
});

test("the kernels contain no relaxed SIMD instruction, hence no fused multiply-add", () => {
  assert.deepEqual(relaxedIn(kernels), []);
});

test("the kernels import only memory, hence no mathematics of the host", () => {
  const imports = WebAssembly.Module.imports(new WebAssembly.Module(kernels));
  assert.deepEqual(imports, [{ module: "env", name: "memory", kind: "memory" }]);
});

const relaxed = new Map([
  ["f32x4.relaxed_madd", 3],
  ["f32x4.relaxed_nmadd", 3],
  ["f64x2.relaxed_madd", 3],
  ["f64x2.relaxed_nmadd", 3],
  ["i8x16.relaxed_laneselect", 3],
  ["f32x4.relaxed_min", 2],
  ["f64x2.relaxed_max", 2],
  ["i8x16.relaxed_swizzle", 2],
  ["i16x8.relaxed_q15mulr_s", 2],
  ["i16x8.relaxed_dot_i8x16_i7x16_s", 2],
  ["i32x4.relaxed_dot_i8x16_i7x16_add_s", 3],
  ["i32x4.relaxed_trunc_f32x4_s", 1],
]);

for (const [name, operands] of relaxed) {
  test(`a planted ${name} is found`, () => {
    const planted = assemble(name, operands);
    assert.ok(WebAssembly.validate(planted as BufferSource), "the planted module is not valid");
    assert.equal(relaxedIn(planted).length, 1);
  });
}

test("a planted bitselect, which is deterministic, is not reported", () => {
  const planted = assemble("v128.bitselect", 3);
  assert.deepEqual(relaxedIn(planted), []);
  assert.equal(countOpcodes(planted).get("v128.bitselect"), 1);
});
