/** Types for the part of JSON Schema that describes the arguments of optimizers and schedules. */

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
  readonly properties?: Readonly<Record<string, Property>>;
  readonly minItems?: number;
  readonly maxItems?: number;
}

export type Values = Readonly<Record<string, unknown>>;
