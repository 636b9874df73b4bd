/**
 * Reads an OpenRPC document with OpenRPC's own tools and validates calls with it: openrpc.mjs URL.
 *
 * Reads the calls as JSON from standard input: [{method, params}]. Prints for each call whether the document accepts it.
 */
import { text } from "node:stream/consumers";
import { MethodCallValidator, parseOpenRPCDocument, validateOpenRPCDocument } from "@open-rpc/schema-utils-js";

const [url] = process.argv.slice(2);
const document = await (await fetch(url)).json();
// OpenRPC's meta-schema validates the document itself.
const valid = validateOpenRPCDocument(document);
if (valid !== true) throw valid;
const parsed = await parseOpenRPCDocument(document, { dereference: true });
const validator = new MethodCallValidator(parsed);
const calls = JSON.parse(await text(process.stdin));
const taken = calls.map(({ method, params }) => validator.validate(method, params).length === 0);
process.stdout.write(JSON.stringify({ methods: parsed.methods.map(({ name }) => name), taken }));
