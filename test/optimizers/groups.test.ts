/** Tests how parameters are assigned to groups. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { groupFinder, requireFewPatterns } from "../../src/engine/groups.ts";

const optimizer = { name: "sgd" };
const find = (...groups: readonly (readonly string[])[]) => groupFinder(groups.map((tensors) => ({ tensors, optimizer })));

test("the first group that matches by name or pattern takes the parameter", () => {
  const group = find(["b", "head.*"], ["*.bias"], ["b", "a.bias", "c"], ["*"]);
  assert.deepEqual(["b", "head.bias", "a.bias", "c", "zz"].map(group), [0, 0, 1, 2, 3]);
  assert.equal(find(["b"], ["c.*"])("d"), -1);
  assert.equal(find()("d"), -1);
  assert.equal(find(["c"], ["c"])("c"), 0);
  assert.equal(find(["__proto__"], ["constructor"])("constructor"), 1);
});

test("* matches any characters, or none", () => {
  const cases: readonly (readonly [pattern: string, matches: readonly string[], others: readonly string[]])[] = [
    ["*", ["", "a", "*"], []],
    ["a*", ["a", "ab", "a*"], ["", "ba"]],
    ["*a", ["a", "ba"], ["ab"]],
    ["a*b*c", ["abc", "axbxc", "abbc"], ["ac", "acb", "ab"]],
    ["a*a", ["aa", "aba"], ["a"]],
    ["*.b.*", ["x.b.y", ".b."], ["b", "x.b"]],
    ["a.b*", ["a.b", "a.bc"], ["axb"]],
    ["a**b***c", ["abc", "axbxc"], ["ac"]],
    ["ab*ba", ["abba", "ab.ba"], ["aba"]],
    ["a*b*b", ["abb", "axbxb"], ["ab", "axb"]],
  ];
  for (const [pattern, matches, others] of cases) {
    for (const name of matches) assert.equal(find([pattern])(name), 0, `${pattern} and ${name}`);
    for (const name of others) assert.equal(find([pattern])(name), -1, `${pattern} and ${name}`);
  }
});

test("the number of patterns is limited, but not the number of names", () => {
  const groups = (count: number, name: (index: number) => string) => [{ tensors: Array.from({ length: count }, (_, index) => name(index)) }];
  requireFewPatterns(groups(256, (index) => `${index}.*`));
  requireFewPatterns(groups(100_000, (index) => `${index}`));
  assert.throws(() => requireFewPatterns(groups(257, (index) => `${index}.*`)), {
    code: "INVALID_PARAMS",
    detail: { field: "/groups", expected: "at most 256 names with * in all groups", found: "257", tensors: undefined },
  });
});

test("the number of * in all patterns is limited, because each * searches through every name", () => {
  const groups = (stars: number) => [{ tensors: ["a.*"] }, { tensors: ["*a".repeat(stars - 2), "b*"] }];
  requireFewPatterns(groups(1024));
  assert.throws(() => requireFewPatterns(groups(1025)), {
    code: "INVALID_PARAMS",
    detail: { field: "/groups", expected: "at most 1024 * in all groups", found: "1025", tensors: undefined },
  });
});
