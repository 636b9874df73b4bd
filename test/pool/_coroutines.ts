/**
 * Turns the sources of the pool into generators, so that a test decides which thread makes the next access to shared memory. The code
 * stays that of src/pool: each call of `Atomics`, each `await` and each call of a function that has one becomes a `yield*`.
 */
import { readFileSync } from "node:fs";
import { stripTypeScriptTypes } from "node:module";
import { join } from "node:path";
import { type AnyNode, type Node, parse } from "acorn";
import { root } from "../support/tree.ts";

/** A place from which a thread continues when the test lets it. */
export type Steps<T = unknown> = Generator<unknown, T, unknown>;

/** The functions of src/pool that become generators. `runShard` is the test's own. */
const GENERATORS: ReadonlySet<string> = new Set(["markFinished", "runShard", "#runOnWorkers", "#runOnce", "#spawn", "#replace"]);

/** Replaces parts of a source. A fault of the test replaces `[from, to]`. */
export type Fault = readonly [file: string, from: string, to: string];

interface Edit {
  readonly start: number;
  readonly end: number;
  readonly text: string;
}

const childrenOf = (node: Node): AnyNode[] =>
  Object.values(node)
    .flat()
    .filter((value): value is AnyNode => typeof value === "object" && value !== null && typeof (value as AnyNode).type === "string");

const calledName = (node: AnyNode): string | undefined => {
  if (node.type !== "CallExpression") return undefined;
  if (node.callee.type === "Identifier") return node.callee.name;
  if (node.callee.type !== "MemberExpression") return undefined;
  const { object, property } = node.callee;
  if (object.type === "Identifier" && object.name === "Atomics") return "Atomics";
  return property.type === "PrivateIdentifier" ? `#${property.name}` : undefined;
};

const isStep = (node: AnyNode): boolean => {
  const name = calledName(node);
  return node.type === "AwaitExpression" || (name !== undefined && (name === "Atomics" || GENERATORS.has(name)));
};

const hasStep = (node: AnyNode): boolean => isStep(node) || childrenOf(node).some(hasStep);

/** Returns the source of a file of src/pool as a script, with generators in place of functions that block or wait. */
export const coroutines = (file: string, faults: readonly Fault[]): string => {
  let source = readFileSync(join(root, "src/pool", file), "utf8");
  for (const [, from, to] of faults.filter(([where]) => where === file)) {
    if (source.split(from).length !== 2) throw new Error(`${file} has not exactly one ${JSON.stringify(from)}`);
    source = source.replace(from, to);
  }
  const script = stripTypeScriptTypes(source);
  const edits: Edit[] = [];
  const replace = (start: number, end: number, text: string): unknown => edits.push({ start, end, text });
  const wrap = (node: AnyNode, before: string): void => {
    replace(node.start, node.start, `(${before} `);
    replace(node.end, node.end, ")");
  };
  /** Makes a generator of an arrow function. */
  const turnArrow = (node: AnyNode & { type: "ArrowFunctionExpression" }, isCallback: boolean): void => {
    const [first] = node.params;
    const last = node.params.at(-1);
    const arrow = script.indexOf("=>", last?.end ?? node.start);
    replace(node.start, node.start, isCallback ? "(function* " : "function* ");
    if (first && script[node.start] !== "(") throw new Error(`${file}: expected parentheses around the parameters of an arrow function`);
    replace(arrow, arrow + 2, "");
    if (node.body.type !== "BlockStatement") throw new Error(`${file}: expected a block as the body of an arrow function`);
    if (isCallback) replace(node.end, node.end, ").bind(this)");
  };
  const visit = (node: AnyNode, isGenerator: boolean): void => {
    let inside = isGenerator;
    if (node.type === "ImportDeclaration" || (node.type === "ExportNamedDeclaration" && !node.declaration)) {
      replace(node.start, node.end, "");
      return;
    }
    if (node.type === "ExportNamedDeclaration" && node.declaration) replace(node.start, node.declaration.start, "");
    if (node.type === "MethodDefinition" && node.key.type === "PrivateIdentifier" && GENERATORS.has(`#${node.key.name}`)) {
      inside = true;
      replace(node.start, node.key.start, "*");
    }
    if (node.type === "VariableDeclarator" && node.id.type === "Identifier" && GENERATORS.has(node.id.name) && node.init?.type === "ArrowFunctionExpression") {
      turnArrow(node.init, false);
      for (const child of childrenOf(node.init)) visit(child, true);
      return;
    }
    if (isGenerator && node.type === "ArrowFunctionExpression") {
      inside = hasStep(node);
      if (inside) turnArrow(node, true);
    }
    if (inside && node.type === "AwaitExpression") {
      replace(node.start, node.argument.start, "(yield* pause(");
      replace(node.end, node.end, "))");
    } else if (inside && isStep(node)) wrap(node, "yield*");
    if (node.type === "MetaProperty") replace(node.start, node.end, '({ url: "file:///" })');
    for (const child of childrenOf(node)) visit(child, inside);
  };
  const program = parse(script, { ecmaVersion: "latest", sourceType: "module" });
  for (const statement of program.body) visit(statement, file === "worker.ts");
  let result = script;
  // Of two edits at one place, the later belongs to the inner node; it is inserted first when working from the end.
  const ordered = edits.map((edit, order) => ({ ...edit, order })).sort((a, b) => b.start - a.start || b.order - a.order);
  for (const { start, end, text } of ordered) result = result.slice(0, start) + text + result.slice(end);
  return result;
};
