/** The part of JSON Schema that optimizers and schedules use for their arguments. */

export interface Property {
  readonly type?: string | readonly string[];
  readonly default?: unknown;
  readonly const?: unknown;
  readonly enum?: readonly string[];
  readonly minimum?: number;
  readonly maximum?: number;
  readonly exclusiveMaximum?: number;
  readonly description?: string;
  readonly items?: Property;
  readonly minItems?: number;
}

export type Values = Readonly<Record<string, unknown>>;
