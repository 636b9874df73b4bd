/** Tests the number of bytes that a call takes from the budget of the heap. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { HeapBudget } from "../../src/http/heap.ts";

test("a value counts 8 bytes, four bytes of strings or of a reply count as one byte, and headers count in addition", () => {
  const budget = new HeapBudget(1000);
  const call = budget.open();
  call.growToReply(1201);
  assert.equal(call.held, 301);
  call.growToValues(50, 9);
  assert.equal(call.held, 403);
  call.growToText(402);
  call.addHeader(5);
  assert.equal(budget.used, 408);
  call[Symbol.dispose]();
  assert.equal(budget.used, 0);
});
