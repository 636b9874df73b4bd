/** Generates the OpenRPC and OpenAPI documents from the methods and their schemas. */
import { errors } from "../errors/errors.ts";
import { schemas } from "../generated/schemas.gen.ts";
import type { Method } from "./method.ts";

type Schema = Readonly<Record<string, unknown>>;

const COMPONENTS_PATH = "components/schemas";

// The documents omit stepd's own keywords and keywords that locate a schema. `discriminator` is redundant: each branch has a constant `name`.
const REMOVED_KEYWORDS = ["$id", "$schema", "$comment", "$defs", "tsType", "blob", "discriminator"];

/** The contents of these keywords are values, not schemas. */
const VALUE_KEYWORDS = ["const", "default", "enum", "examples"];

/** Blobs in JSON are canonical base64 (RFC 4648, section 4): the bits before the padding are zero. */
const BASE64_PATTERN = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/][AQgw]==|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=)?$";

/** This schema matches no value, as `false` does, but some client generators do not support `false`. */
const NEVER: Schema = { not: {} };

const byId = new Map(schemas.map((schema) => [schema.$id, schema]));

/** Finds the schema of a reference in schemas/. A reference without a file points into tensor.schema.json. */
const resolveReference = (reference: string): Schema => {
  const [file, pointer = ""] = reference.split("#");
  const schema = byId.get(file || "tensor.schema.json");
  const found = pointer
    .split("/")
    .slice(1)
    .reduce<unknown>((at, key) => (at as Schema | undefined)?.[key], schema);
  if (!found) throw new Error(`there is no schema ${reference}`);
  return found as Schema;
};

/** OpenRPC forbids recursive references. So recursive schemas, such as a sequence of schedules, are repeated to this depth. */
const MAX_RECURSION = 2;

/**
 * Collects the components of a document: every schema with a title becomes a component of that name. Client generators create one
 * type per component, and they resolve only references to components.
 */
class Components {
  readonly #found = new Map<string, Schema>();
  /** Maps each title to its schema in schemas/. */
  readonly #sources = new Map<unknown, Schema>();
  readonly #isRecursive: boolean;
  /** The titles of the components that are being converted, outermost first. */
  readonly #path: string[] = [];

  constructor({ isRecursive }: { readonly isRecursive: boolean }) {
    this.#isRecursive = isRecursive;
  }

  get schemas(): Schema {
    return Object.fromEntries([...this.#found].sort(([a], [b]) => (a < b ? -1 : 1)));
  }

  /** Converts a schema of schemas/ to standard JSON Schema, without stepd's own keywords and without if/then/else. */
  toStandard(value: unknown): unknown {
    if (Array.isArray(value)) return value.map((item) => this.toStandard(item));
    if (typeof value !== "object" || value === null) return value;
    const { $ref, title, ...rest } = value as Schema;
    if (typeof $ref === "string") return { ...this.#plain(rest), ...(this.toStandard(resolveReference($ref)) as Schema) };
    return typeof title === "string" ? this.#component(title, value as Schema) : this.#plain(rest);
  }

  /** Adds a schema under a title and returns a reference to it. */
  add(title: string, schema: Schema): Schema {
    return this.#component(title, { ...schema, title });
  }

  #component(title: string, schema: Schema): Schema {
    const source = this.#sources.get(title) ?? schema;
    if (source !== schema) throw new Error(`two schemas have the title ${title}`);
    this.#sources.set(title, schema);
    const level = this.#isRecursive ? 0 : this.#levelOf(title);
    // Names of components have no spaces.
    const name = `${title.replaceAll(/[^A-Za-z0-9._-]/g, "")}${level === 0 ? "" : level + 1}`;
    if (!this.#found.has(name)) {
      // The name is registered first, because the schema may contain references to itself.
      this.#found.set(name, {});
      this.#path.push(title);
      this.#found.set(name, this.#plain({ ...schema, title: name }));
      this.#path.pop();
    }
    return { $ref: `#/${COMPONENTS_PATH}/${name}` };
  }

  #levelOf(title: unknown): number {
    return this.#path.filter((outer) => outer === title).length;
  }

  #plain(schema: Schema): Schema {
    const { if: condition, then: _, else: __, ...rest } = schema;
    const own = Object.fromEntries(
      Object.entries(rest)
        .filter(([key]) => !REMOVED_KEYWORDS.includes(key))
        .map(([key, value]) => [key, this.#keyword(key, value)]),
    );
    if (condition !== undefined) return { ...own, oneOf: alternativesOf(schema).map((branch) => this.toStandard(branch)) };
    return "blob" in schema ? { ...own, type: "string", pattern: BASE64_PATTERN } : own;
  }

  #keyword(key: string, value: unknown): unknown {
    if (VALUE_KEYWORDS.includes(key)) return value;
    // The keys of `properties` are field names, even if they look like keywords.
    if (key === "properties")
      return Object.fromEntries(Object.entries(value as Schema).map(([name, schema]) => [name, schema === false ? NEVER : this.toStandard(schema)]));
    if (key !== "oneOf" || this.#isRecursive) return this.toStandard(value);
    return (value as readonly Schema[]).filter(({ title }) => this.#levelOf(title) < MAX_RECURSION).map((branch) => this.toStandard(branch));
  }
}

/** Converts if/then/else to a list of alternatives for `oneOf`. */
const alternativesOf = ({ if: condition, then, else: otherwise }: Schema): readonly unknown[] => {
  const last = otherwise as Schema;
  return [then === true ? condition : then, ...("if" in last ? alternativesOf(last) : [last])];
};

const propertiesOf = (id: string): { readonly properties: Readonly<Record<string, Schema>>; readonly required: readonly string[] } => {
  const schema = resolveReference(id);
  return { properties: (schema["properties"] ?? {}) as Record<string, Schema>, required: (schema["required"] ?? []) as string[] };
};

/** Generates the OpenRPC 1.3 document. OpenRPC tools inline all references, so none may be recursive. */
export const openRpc = (methods: readonly Method[], version: string): Schema => {
  const components = new Components({ isRecursive: false });
  return {
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
        params: Object.entries(properties).map(([key, schema]) => ({ name: key, required: required.includes(key), schema: components.toStandard(schema) })),
        result: { name: "result", schema: components.toStandard(resolveReference(result)) },
        errors: Object.entries(errors).map(([error, { code, title }]) => ({ code, message: title, data: { name: error } })),
      };
    }),
    components: { schemas: components.schemas },
  };
};

/** Describes each tag. A method's tag is the first word of its name. */
const TAGS: Readonly<Record<string, string>> = {
  optimizer: "Optimizers: steps, initial state, norms, plans and descriptions",
  state: "Optimizer states: contents and conversion",
  schedule: "Learning-rate schedules",
  rpc: "The service itself",
};

const MEDIA_TYPES = ["application/json", "application/vnd.msgpack"];

/** Error replies have these media types. Only JSON has a special type for errors. */
const PROBLEM_TYPES = ["application/problem+json", "application/vnd.msgpack"];

/** Generates the OpenAPI 3.1 document of the REST API. */
export const openApi = (methods: readonly Method[], version: string): Schema => {
  const components = new Components({ isRecursive: true });
  const content = (id: string): Schema => Object.fromEntries(MEDIA_TYPES.map((type) => [type, { schema: components.toStandard(resolveReference(id)) }]));
  const problem = components.add("Problem", {
    description: "A problem (RFC 9457).",
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
  });
  const errorResponse = (description: string) => ({ description, content: Object.fromEntries(PROBLEM_TYPES.map((type) => [type, { schema: problem }])) });
  const paths: Record<string, Record<string, unknown>> = {};
  for (const { name, summary, params, result, rest } of methods) {
    if (!rest) continue;
    const { properties } = propertiesOf(params);
    const pathParameters = Object.keys(properties).filter((key) => rest.path.includes(`{${key}}`));
    paths[rest.path] = {
      ...paths[rest.path],
      [rest.verb.toLowerCase()]: {
        operationId: name,
        summary,
        description: resolveReference(rest.verb === "POST" ? params : result)["description"],
        tags: [name.split(".")[0]],
        ...(pathParameters.length > 0 && {
          parameters: pathParameters.map((key) => ({ name: key, in: "path", required: true, schema: components.toStandard(properties[key]) })),
        }),
        ...(rest.verb === "POST" && { requestBody: { required: true, content: content(params) } }),
        responses: {
          200: { description: "The result", content: content(result) },
          "4XX": errorResponse("The request is invalid or cannot be served"),
          "5XX": errorResponse("The server failed, or is shutting down"),
        },
      },
    };
  }
  return {
    openapi: "3.1.0",
    info: {
      title: "stepd",
      version,
      description: "A stateless optimizer service: the REST twin of its JSON-RPC methods. Blobs are base64 strings in JSON and bin in MessagePack.",
      license: { name: "Apache-2.0", identifier: "Apache-2.0" },
    },
    servers: [{ url: "/" }],
    tags: Object.entries(TAGS).map(([name, description]) => ({ name, description })),
    // Authentication is optional, because a server without tokens accepts all calls.
    security: [{}, { bearer: [] }],
    paths,
    components: { schemas: components.schemas, securitySchemes: { bearer: { type: "http", scheme: "bearer" } } },
  };
};
