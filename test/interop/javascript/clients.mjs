/**
 * Calls a service through a JavaScript JSON-RPC package, as its documentation shows: clients.mjs PACKAGE URL.
 *
 * Reads the params of the calls as JSON from standard input. Prints the results as JSON: list, describe, step, and the error of a
 * describe that fails.
 */
import { text } from "node:stream/consumers";

/**
 * Each function connects to a URL and returns a function that calls a method. That function throws the error's code and
 * message.
 */
const PACKAGES = {
  async "@open-rpc/client-js"(url) {
    const { Client, HTTPTransport, RequestManager } = await import("@open-rpc/client-js");
    const client = new Client(new RequestManager([new HTTPTransport(url)]));
    return (method, params) => client.request({ method, params });
  },
  async jayson(url) {
    const { default: jayson } = await import("jayson/promise/index.js");
    const { hostname, port, pathname } = new URL(url);
    const client = jayson.Client.http({ hostname, port, path: pathname });
    return async (method, params) => {
      const { result, error } = await client.request(method, params ?? []);
      if (error) throw error;
      return result;
    };
  },
  async "json-rpc-2.0"(url) {
    const { JSONRPCClient } = await import("json-rpc-2.0");
    const client = new JSONRPCClient(async (request) => {
      const response = await fetch(url, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(request) });
      client.receive(await response.json());
    });
    return (method, params) => client.request(method, params);
  },
};

const [name, url] = process.argv.slice(2);
const call = JSON.parse(await text(process.stdin));
const request = await PACKAGES[name](url);
const { code, message } = await request("optimizer.describe", call.unknown).then(
  () => ({}),
  (failure) => failure,
);
const result = {
  list: await request("optimizer.list"),
  describe: await request("optimizer.describe", call.describe),
  step: await request("optimizer.step", call.step),
  error: { code, message },
};
process.stdout.write(JSON.stringify(result), () => process.exit());
