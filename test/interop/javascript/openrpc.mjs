/**
 * Reads an OpenRPC document with OpenRPC's own tools and checks calls by it: openrpc.mjs URL.
 *
 * The calls come as JSON on standard input: [{method, params}]. What goes out says for each whether the document takes it.
 */
import { text } from "node:stream/consumers";
import { MethodCallValidator, parseOpenRPCDocument, validateOpenRPCDocument } from "@open-rpc/schema-utils-js";

const [url] = process.argv.slice(2);
const document = await (await fetch(url)).json();
// By the meta-schema of OpenRPC.
const valid = validateOpenRPCDocument(document);
if (valid !== true) throw valid;
const parsed = await parseOpenRPCDocument(document, { dereference: true });
const validator = new MethodCallValidator(parsed);
const calls = JSON.parse(await text(process.stdin));
const taken = calls.map(({ method, params }) => validator.validate(method, params).length === 0);
process.stdout.write(JSON.stringify({ methods: parsed.methods.map(({ name }) => name), taken }));
