/**
 * Bundles a module and counts which branches run. @jazzer.js/core would do this, but its library needs glibc 2.38, and Debian 12 has
 * 2.36.
 */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { type AnyNode, type Node, parse } from "acorn";
import { build } from "esbuild";
import { root } from "../support/tree.ts";

const childrenOf = (node: Node): AnyNode[] =>
  Object.values(node)
    .flat()
    .filter((value): value is AnyNode => typeof value === "object" && value !== null && typeof (value as AnyNode).type === "string");

/** Returns the script with a counter in each branch and function, and the number of counters. */
export const instrument = (script: string): { readonly code: string; readonly counters: number } => {
  const inserts: { readonly at: number; readonly order: number; readonly text: string }[] = [];
  let counters = 0;
  const insert = (at: number, text: string): unknown => inserts.push({ at, order: inserts.length, text });
  const counter = (): string => `__counts[${counters++}]++`;
  const inStatement = (node: AnyNode): void => {
    if (node.type === "BlockStatement") insert(node.start + 1, `${counter()};`);
    else {
      insert(node.start, `{${counter()};`);
      insert(node.end, "}");
    }
  };
  const inExpression = (node: AnyNode): void => {
    insert(node.start, `(${counter()},(`);
    insert(node.end, "))");
  };
  const visit = (node: AnyNode): void => {
    if (node.type === "IfStatement") {
      inStatement(node.consequent);
      if (node.alternate) inStatement(node.alternate);
    } else if (/^(For|While|DoWhile)/.test(node.type)) inStatement((node as AnyNode & { body: AnyNode }).body);
    else if (node.type === "ConditionalExpression") for (const branch of [node.consequent, node.alternate]) inExpression(branch);
    else if (node.type === "LogicalExpression") inExpression(node.right);
    else if (node.type === "SwitchCase" && node.consequent[0]) insert(node.consequent[0].start, `${counter()};`);
    else if (node.type === "ArrowFunctionExpression" && node.body.type !== "BlockStatement") inExpression(node.body);
    else if ("body" in node && /Function/.test(node.type)) inStatement(node.body as AnyNode);
    for (const child of childrenOf(node)) visit(child);
  };
  visit(parse(script, { ecmaVersion: "latest", sourceType: "module" }));
  let code = script;
  // An insert before another one at the same place is the outer node's at a start, and the inner node's at an end.
  const isEnd = (text: string): boolean => text === "}" || text === "))";
  const ordered = inserts.sort((a, b) => b.at - a.at || (isEnd(a.text) && isEnd(b.text) ? a.order - b.order : b.order - a.order));
  for (const { at, text } of ordered) code = code.slice(0, at) + text + code.slice(at);
  return { code: `const __counts = globalThis.__counts;\n${code}`, counters };
};

/** Imports a module of the repository with counters. Packages are imported as they are. */
export const importCounted = async <Module>(entry: string, name: string): Promise<{ readonly module: Module; readonly counts: Uint8Array }> => {
  const { outputFiles } = await build({ entryPoints: [join(root, entry)], bundle: true, format: "esm", platform: "node", packages: "external", write: false });
  const { code, counters } = instrument(outputFiles[0]?.text ?? "");
  const counts = new Uint8Array(Math.ceil(counters / 8) * 8);
  Object.assign(globalThis, { __counts: counts });
  const file = join(root, "build", `${name}.mjs`);
  writeFileSync(file, code);
  return { module: (await import(pathToFileURL(file).href)) as Module, counts };
};
