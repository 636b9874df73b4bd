/**
 * A reporter of Node's test runner that prints a line per test file as it ends, with its tests and seconds, each failure at once,
 * and all failures and totals again at the end.
 */
import { relative } from "node:path";
import { spec, type TestEvent } from "node:test/reporters";
import { root } from "./tree.ts";

type Summary = Extract<TestEvent, { type: "test:summary" }>["data"];

const lineOf = ({ file, counts, duration_ms, success }: Summary): string => {
  const skipped = counts.skipped > 0 ? `, ${counts.skipped} skipped` : "";
  const failed = success ? "" : `, ${counts.tests - counts.passed - counts.skipped - counts.todo} failed`;
  return `${success ? "ok    " : "FAILED"} ${relative(root, file ?? "")}: ${counts.passed} passed${failed}${skipped} (${(duration_ms / 1000).toFixed(1)} s)\n`;
};

/** Failures, printed output and the totals, which have no file. The runner's own reporter formats these events. */
const isDetail = ({ type, data }: TestEvent): boolean =>
  type === "test:fail" || type === "test:stderr" || type === "test:stdout" || (type === "test:diagnostic" && data.file === undefined);

export default async function* (source: AsyncIterable<TestEvent>): AsyncGenerator<string> {
  const details = new spec();
  details.setEncoding("utf8");
  for await (const event of source) {
    if (event.type === "test:summary" && event.data.file !== undefined) yield lineOf(event.data);
    if (!isDetail(event)) continue;
    details.write(event);
    yield details.read() ?? "";
  }
  details.end();
  for await (const text of details) yield text;
}
