/** The machine-readable descriptions of the service, from the methods and their schemas. */
import { errors } from "../errors/errors.ts";
import { schemas } from "../generated/schemas.gen.ts";
import type { Method } from "./method.ts";

type Schema = Readonly<Record<string, unknown>>;

/** Inside one document the schemas stand under one key, so references to files become references to it. */
const inside = (schema: unknown, home: string): unknown => {
  if (Array.isArray(schema)) return schema.map((item) => inside(item, home));
  if (typeof schema !== "object" || schema === null) return schema;
  return Object.fromEntries(
    Object.entries(schema)
      .filter(([key]) => !["$id", "$schema", "$comment", "tsType", "blob"].includes(key))
      .map(([key, value]) => [key, key === "$ref" ? reference(value as string, home) : inside(value, home)]),
  );
};

const keyOf = (id: string): string => id.replace(".schema.json", "");

const reference = (ref: string, home: string): string => {
  const [file = "", pointer = ""] = ref.split("#");
  return `#/${home}/${keyOf(file === "" ? "tensor.schema.json" : file)}${pointer}`;
};

const allSchemas = (home: string): Schema => Object.fromEntries(schemas.map((schema) => [keyOf(schema.$id), inside(plain(schema), home)]));

/** Standard JSON Schema for what schemas/ says with stepd's own keyword and with conditions, which give better errors than oneOf. */
const plain = (value: unknown): unknown => {
  if (Array.isArray(value)) return value.map(plain);
  if (typeof value !== "object" || value === null) return value;
  const { if: condition, then: _, else: otherwise, ...rest } = value as Record<string, unknown>;
  const own = Object.fromEntries(Object.entries(rest).map(([key, item]) => [key, plain(item)]));
  if (condition !== undefined) return { ...own, oneOf: [plain(condition), plain(otherwise)] };
  return "blob" in rest ? { ...own, type: "string", contentEncoding: "base64" } : own;
};

const propertiesOf = (id: string): { readonly properties: Readonly<Record<string, Schema>>; readonly required: readonly string[] } => {
  const schema = schemas.find(({ $id }) => $id === id);
  return { properties: (schema?.["properties"] ?? {}) as Record<string, Schema>, required: (schema?.["required"] ?? []) as string[] };
};

/** The OpenRPC 1.3 document. */
export const openRpc = (methods: readonly Method[], version: string): Schema => ({
  openrpc: "1.3.2",
  info: {
    title: "stepd",
    version,
    description: "A stateless optimizer service. JSON-RPC 2.0 at POST /rpc, in JSON or MessagePack.",
    license: { name: "Apache-2.0" },
  },
  methods: methods.map(({ name, summary, params, result }) => {
    const { properties, required } = propertiesOf(params);
    return {
      name,
      summary,
      paramStructure: "by-name",
      params: Object.entries(properties).map(([key, schema]) => ({
        name: key,
        required: required.includes(key),
        schema: inside(plain(schema), "components/schemas"),
      })),
      result: { name: "result", schema: { $ref: reference(result, "components/schemas") } },
      errors: Object.entries(errors).map(([error, { code, title }]) => ({ code, message: title, data: { name: error } })),
    };
  }),
  components: { schemas: allSchemas("components/schemas") },
});

const MEDIA_TYPES = ["application/json", "application/vnd.msgpack"];

/** Problem details in JSON have a name of their own, those in MessagePack have not. */
const PROBLEM_TYPES = ["application/problem+json", "application/vnd.msgpack"];

const PROBLEM = { $ref: "#/components/schemas/problem" };

const content = (id: string): Schema => Object.fromEntries(MEDIA_TYPES.map((type) => [type, { schema: { $ref: reference(id, "components/schemas") } }]));

/** The OpenAPI 3.1 document of the REST twin. */
export const openApi = (methods: readonly Method[], version: string): Schema => {
  const paths: Record<string, Record<string, unknown>> = {};
  for (const { name, summary, params, result, rest } of methods) {
    if (!rest) continue;
    const { properties } = propertiesOf(params);
    const inPath = Object.keys(properties).filter((key) => rest.path.includes(`{${key}}`));
    paths[rest.path] = {
      ...paths[rest.path],
      [rest.verb.toLowerCase()]: {
        operationId: name,
        summary,
        ...(inPath.length > 0 && {
          parameters: inPath.map((key) => ({ name: key, in: "path", required: true, schema: inside(plain(properties[key]), "components/schemas") })),
        }),
        ...(rest.verb === "POST" && { requestBody: { required: true, content: content(params) } }),
        responses: {
          200: { description: "The result", content: content(result) },
          default: { description: "A problem (RFC 9457)", content: Object.fromEntries(PROBLEM_TYPES.map((type) => [type, { schema: PROBLEM }])) },
        },
      },
    };
  }
  const problem = {
    title: "Problem",
    type: "object",
    required: ["type", "title", "status", "detail", "code", "name"],
    properties: {
      type: { type: "string" },
      title: { type: "string" },
      status: { type: "integer" },
      detail: { type: "string" },
      code: { type: "integer" },
      ...propertiesOf("error.schema.json").properties,
    },
  };
  return {
    openapi: "3.1.0",
    info: {
      title: "stepd",
      version,
      description: "A stateless optimizer service: the REST twin of its JSON-RPC methods. Blobs are base64 strings in JSON and bin in MessagePack.",
      license: { name: "Apache-2.0", identifier: "Apache-2.0" },
    },
    paths,
    components: { schemas: { ...allSchemas("components/schemas"), problem } },
  };
};
