/** The machine-readable descriptions of the service, from the methods and their schemas. */
import { errors } from "../errors/errors.ts";
import { schemas } from "../generated/schemas.gen.ts";
import type { Method } from "./method.ts";

type Schema = Readonly<Record<string, unknown>>;

const HOME = "components/schemas";

/** What only stepd reads, or says where a schema stands. The constants of `name` say what `discriminator` does, and need no table of components. */
const OWN = ["$id", "$schema", "$comment", "$defs", "tsType", "blob", "discriminator"];

/** Keywords that hold values instead of schemas. */
const VALUES = ["const", "default", "enum", "examples"];

/** A blob in JSON (RFC 4648, 4): the characters in front of the padding have no bits left over. */
const BASE64 = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/][AQgw]==|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=)?$";

/** A schema that nothing passes; not all generators know `false`. */
const NEVER: Schema = { not: {} };

const byId = new Map(schemas.map((schema) => [schema.$id, schema]));

/** The schema that a reference in schemas/ names. References without a file are of the tensors' file. */
const lookUp = (reference: string): Schema => {
  const [file, pointer = ""] = reference.split("#");
  const schema = byId.get(file || "tensor.schema.json");
  const found = pointer
    .split("/")
    .slice(1)
    .reduce<unknown>((at, key) => (at as Schema | undefined)?.[key], schema);
  if (!found) throw new Error(`there is no schema ${reference}`);
  return found as Schema;
};

/** How often a schema may be in itself where references may not lead back: a sequence in a sequence of schedules. */
const MAX_LEVELS = 2;

/**
 * The components of a document: each schema that has a title, by that title. Generators of clients make a type of each, and
 * look for references nowhere else.
 */
class Components {
  readonly #found = new Map<string, Schema>();
  /** What each title stands for. */
  readonly #sources = new Map<unknown, Schema>();
  readonly #isRecursive: boolean;
  /** Titles of the components that are in the making, the outermost first. */
  readonly #within: string[] = [];

  constructor({ isRecursive }: { readonly isRecursive: boolean }) {
    this.#isRecursive = isRecursive;
  }

  get schemas(): Schema {
    return Object.fromEntries([...this.#found].sort(([a], [b]) => (a < b ? -1 : 1)));
  }

  /** Standard JSON Schema for one of schemas/, which has a keyword of its own and conditions, for better errors. */
  standard(value: unknown): unknown {
    if (Array.isArray(value)) return value.map((item) => this.standard(item));
    if (typeof value !== "object" || value === null) return value;
    const { $ref, title, ...rest } = value as Schema;
    if (typeof $ref === "string") return { ...this.#plain(rest), ...(this.standard(lookUp($ref)) as Schema) };
    return typeof title === "string" ? this.#component(title, value as Schema) : this.#plain(rest);
  }

  /** A schema under a title of its own. */
  add(title: string, schema: Schema): Schema {
    return this.#component(title, { ...schema, title });
  }

  #component(title: string, schema: Schema): Schema {
    const source = this.#sources.get(title) ?? schema;
    if (source !== schema) throw new Error(`two schemas have the title ${title}`);
    this.#sources.set(title, schema);
    const level = this.#isRecursive ? 0 : this.#levelOf(title);
    const name = level === 0 ? title : `${title}${level + 1}`;
    if (!this.#found.has(name)) {
      // In its place before its parts, which may lead back to it.
      this.#found.set(name, {});
      this.#within.push(title);
      this.#found.set(name, this.#plain({ ...schema, title: name }));
      this.#within.pop();
    }
    return { $ref: `#/${HOME}/${name}` };
  }

  #levelOf(title: unknown): number {
    return this.#within.filter((outer) => outer === title).length;
  }

  #plain(schema: Schema): Schema {
    const { if: condition, then: _, else: __, ...rest } = schema;
    const own = Object.fromEntries(
      Object.entries(rest)
        .filter(([key]) => !OWN.includes(key))
        .map(([key, value]) => [key, this.#keyword(key, value)]),
    );
    if (condition !== undefined) return { ...own, oneOf: branches(schema).map((branch) => this.standard(branch)) };
    return "blob" in schema ? { ...own, type: "string", pattern: BASE64 } : own;
  }

  #keyword(key: string, value: unknown): unknown {
    if (VALUES.includes(key)) return value;
    // Properties by name: one may be called as a keyword is.
    if (key === "properties")
      return Object.fromEntries(Object.entries(value as Schema).map(([name, schema]) => [name, schema === false ? NEVER : this.standard(schema)]));
    if (key !== "oneOf" || this.#isRecursive) return this.standard(value);
    return (value as readonly Schema[]).filter(({ title }) => this.#levelOf(title) < MAX_LEVELS).map((branch) => this.standard(branch));
  }
}

/** What a schema with conditions takes, as alternatives of which a value is one. */
const branches = ({ if: condition, then, else: otherwise }: Schema): readonly unknown[] => {
  const rest = otherwise as Schema;
  return [then === true ? condition : then, ...("if" in rest ? branches(rest) : [rest])];
};

const propertiesOf = (id: string): { readonly properties: Readonly<Record<string, Schema>>; readonly required: readonly string[] } => {
  const schema = lookUp(id);
  return { properties: (schema["properties"] ?? {}) as Record<string, Schema>, required: (schema["required"] ?? []) as string[] };
};

/** The OpenRPC 1.3 document. Its tools put the schemas in the place of their references, so these must not lead back. */
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
        params: Object.entries(properties).map(([key, schema]) => ({ name: key, required: required.includes(key), schema: components.standard(schema) })),
        result: { name: "result", schema: components.standard(lookUp(result)) },
        errors: Object.entries(errors).map(([error, { code, title }]) => ({ code, message: title, data: { name: error } })),
      };
    }),
    components: { schemas: components.schemas },
  };
};

/** What the first words of the methods' names stand for. */
const TAGS: Readonly<Record<string, string>> = {
  optimizer: "Optimizers: steps, and what comes before and beside them",
  state: "States of optimizers: what they hold, and their conversion",
  schedule: "Learning-rate schedules",
  rpc: "The service itself",
};

const MEDIA_TYPES = ["application/json", "application/vnd.msgpack"];

/** Problem details in JSON have a name of their own, those in MessagePack have not. */
const PROBLEM_TYPES = ["application/problem+json", "application/vnd.msgpack"];

/** The OpenAPI 3.1 document of the REST twin. */
export const openApi = (methods: readonly Method[], version: string): Schema => {
  const components = new Components({ isRecursive: true });
  const content = (id: string): Schema => Object.fromEntries(MEDIA_TYPES.map((type) => [type, { schema: components.standard(lookUp(id)) }]));
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
  const failure = (description: string) => ({ description, content: Object.fromEntries(PROBLEM_TYPES.map((type) => [type, { schema: problem }])) });
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
        description: lookUp(rest.verb === "POST" ? params : result)["description"],
        tags: [name.split(".")[0]],
        ...(inPath.length > 0 && {
          parameters: inPath.map((key) => ({ name: key, in: "path", required: true, schema: components.standard(properties[key]) })),
        }),
        ...(rest.verb === "POST" && { requestBody: { required: true, content: content(params) } }),
        responses: {
          200: { description: "The result", content: content(result) },
          "4XX": failure("What was asked for cannot be"),
          "5XX": failure("The server failed, or is shutting down"),
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
    // Servers without tokens take calls without.
    security: [{}, { bearer: [] }],
    paths,
    components: { schemas: components.schemas, securitySchemes: { bearer: { type: "http", scheme: "bearer" } } },
  };
};
