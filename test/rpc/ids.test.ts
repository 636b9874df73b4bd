/** Tests that a reply has exactly the id of its call, in either format, or that the service refuses the id. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { JSON_TYPE, MSGPACK, readReply, TestService } from "../support/service.ts";

let service: TestService;
before(async () => {
  service = await TestService.start({ STEPD_WORKERS: "1" });
});
after(() => service[Symbol.asyncDispose]());

const jsonCall = (id: string, method = "optimizer.list"): string => `{"id" :\t${id} , "jsonrpc":"2.0", "method":"${method}","params":{}}`;

/** Returns the text of the id in a JSON reply, where the id is the last member. */
const idOf = (text: string): string => text.slice(text.lastIndexOf('"id":') + 5, -1);

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex");

const text = (value: string): Buffer => Buffer.concat([Buffer.from([0xa0 | value.length]), Buffer.from(value)]);

const packedCall = (id: Buffer, method = "optimizer.list"): Buffer =>
  Buffer.concat([Buffer.from([0x83]), text("jsonrpc"), text("2.0"), text("id"), id, text("method"), text(method)]);

/** Returns the bytes of the id in a MessagePack reply, where the id is the last member. */
const packedIdOf = (bytes: Buffer): string => hex(bytes.subarray(bytes.lastIndexOf(text("id")) + 3));

const post = async (body: string | Uint8Array, type: string, accept: string): Promise<Buffer> => {
  const response = await service.post("/rpc", body, type, { Accept: accept });
  assert.equal(response.status, 200);
  return Buffer.from(await response.arrayBuffer());
};

/** Maps ids in JSON to the same numbers in MessagePack, in hexadecimal. */
const TEXTS: Readonly<Record<string, string>> = {
  "7": "07",
  "-1": "ff",
  "9007199254740991": "cb433fffffffffffff",
  "9007199254740993": "d30020000000000001",
  "-9007199254740993": "d3ffdfffffffffffff",
  "9223372036854775807": "d37fffffffffffffff",
  "-9223372036854775808": "d38000000000000000",
  "18446744073709551615": "cfffffffffffffffff",
  "0.5": "cb3fe0000000000000",
  "1.0": "cb3ff0000000000000",
  "-0": "cb8000000000000000",
  "-0.0": "cb8000000000000000",
  "1e5": "cb40f86a0000000000",
  "1E+2": "cb4059000000000000",
  "0.10": "cb3fb999999999999a",
  "0.1234567890123456789012345": "cb3fbf9add3746f65f",
  "12345678901234567.0": "cb4345ee2a2eb5a5c4",
  "1e-400": "cb0000000000000000",
  "1.7976931348623157e308": "cb7fefffffffffffff",
};

for (const [id, packed] of Object.entries(TEXTS)) {
  test(`the id ${id} of JSON returns unchanged`, async () => {
    for (const method of ["optimizer.list", "none"]) {
      assert.equal(idOf((await post(jsonCall(id, method), JSON_TYPE, JSON_TYPE)).toString()), id);
      const found = packedIdOf(await post(jsonCall(id, method), JSON_TYPE, MSGPACK));
      // Integers up to 2^53 have several encodings that decode to the same value.
      if (id === "9007199254740991") assert.equal(BigInt(id), 2n ** 53n - 1n);
      else assert.equal(found, packed);
    }
  });
}

test("the ids of a batch return unchanged, with any text between them", async () => {
  const ids = Object.keys(TEXTS);
  const calls = ids.map((id) => jsonCall(id));
  const mixed = ["5", '{"jsonrpc":"2.0","method":"optimizer.list"}', jsonCall('"9007199254740993"'), jsonCall("null"), '[{"id":1.0}]', ...calls];
  const reply = (await post(`[${mixed.join(",")}]`, JSON_TYPE, JSON_TYPE)).toString();
  const found = [...reply.matchAll(/"id":([^,}]+)\}/g)].map(([, id]) => id);
  assert.deepEqual(found, ["null", '"9007199254740993"', "null", "null", ...ids]);
});

test("an id among the parameters is a parameter", async () => {
  const body = '{"jsonrpc":"2.0","method":"optimizer.list","params":{"id":1.0,"x":{"id":2.0}},"id":3.0}';
  const reply = (await post(body, JSON_TYPE, JSON_TYPE)).toString();
  assert.equal(idOf(reply), "3.0");
  assert.match(reply, /"found":"\\"id\\""/);
});

for (const [packed, id] of [
  ["00", "0"],
  ["7f", "127"],
  ["e0", "-32"],
  ["d3ffffffffffffffff", "-1"],
  ["cf0020000000000001", "9007199254740993"],
  ["d38000000000000000", "-9223372036854775808"],
  ["cfffffffffffffffff", "18446744073709551615"],
  ["cb3ff0000000000000", "1.0"],
  ["cb8000000000000000", "-0.0"],
  ["ca3f800000", "1.0"],
  ["ca3dcccccd", "0.10000000149011612"],
  ["cb3fb999999999999a", "0.1"],
  ["cb4415af1d78b58c40", "100000000000000000000.0"],
  ["cb7fefffffffffffff", "1.7976931348623157e+308"],
] as const) {
  test(`the id ${packed} of MessagePack returns unchanged`, async () => {
    // The call is repeated, because the service decodes repeated bodies in another way.
    for (const method of ["optimizer.list", "none", "optimizer.list"]) {
      const body = packedCall(Buffer.from(packed, "hex"), method);
      const found = packedIdOf(await post(body, MSGPACK, MSGPACK));
      // An integer may change its width, but not its value.
      const expected = packed === "d3ffffffffffffffff" ? "ff" : packed === "cf0020000000000001" ? "d30020000000000001" : packed;
      assert.equal(found, expected);
      assert.equal(idOf((await post(body, MSGPACK, JSON_TYPE)).toString()), id);
    }
    const batch = Buffer.concat([Buffer.from([0x92]), packedCall(text("a")), packedCall(Buffer.from(packed, "hex"))]);
    assert.equal(idOf((await post(batch, MSGPACK, JSON_TYPE)).toString().slice(0, -1)), id);
  });
}

for (const id of ["1e400", "-1e400", "18446744073709551616", "-9223372036854775809", "1000000000000000000000000000000"]) {
  test(`the id ${id} is refused, because MessagePack has no such number`, async () => {
    const { id: none, error } = JSON.parse((await post(jsonCall(id), JSON_TYPE, JSON_TYPE)).toString());
    assert.deepEqual([none, error.data.name, error.data.field, error.data.found], [null, "INVALID_REQUEST", "/id", id]);
  });
}

for (const id of ["cb7ff0000000000000", "cb7ff8000000000000", "caff800000"]) {
  test(`the id ${id} is refused, because JSON has no such number`, async () => {
    const reply = (await readReply(await service.post("/rpc", packedCall(Buffer.from(id, "hex")), MSGPACK))) as { id: null; error: { data: { name: string } } };
    assert.deepEqual([reply.id, reply.error.data.name], [null, "INVALID_REQUEST"]);
  });
}
