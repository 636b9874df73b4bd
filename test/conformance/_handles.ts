/**
 * Symbolic handles. The server mints a new handle at each call, so a case writes `$1.params` for the handle that the first call of
 * `before` returned under cached.params, and a result writes `$` for any handle.
 */
type Json = Readonly<Record<string, unknown>>;

const SYMBOL = /^\$(\d+)\.(params|state)$/;

const handleOf = (value: unknown): unknown => (value as { handle?: unknown } | null | undefined)?.handle;

/** Returns params, with symbolic handles replaced by those of the results of earlier calls. */
export const withHandles = (params: Json, results: readonly Json[]): Json =>
  Object.fromEntries(
    Object.entries(params).map(([name, value]) => {
      const [, call, field] = SYMBOL.exec(String(handleOf(value))) ?? [];
      if (call === undefined || field === undefined) return [name, value];
      const source = (results[Number(call) - 1]?.["cached"] as Json | undefined)?.[field];
      if (source === undefined) throw new Error(`${name}: call ${call} has no cached ${field}`);
      return [name, source];
    }),
  );

/** Returns a result, with `$` in place of each handle. Throws Error if a handle is none of the wire format. */
export const withoutHandles = (result: Json): Json => {
  if (result["cached"] === undefined) return result;
  const cached = Object.entries(result["cached"] as Json).map(([field, value]) => {
    const handle = handleOf(value);
    if (typeof handle !== "string" || handle.length < 1 || handle.length > 64) throw new Error(`cached.${field} has the handle ${handle}`);
    return [field, { ...(value as Json), handle: "$" }];
  });
  return { ...result, cached: Object.fromEntries(cached) };
};
