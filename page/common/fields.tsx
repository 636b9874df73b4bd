/** Builds form fields from the JSON Schema of an optimizer or a schedule. */
import type { ComponentChildren } from "preact";
import { useLayoutEffect, useRef } from "preact/hooks";
import type { Property, Values } from "./schema.ts";

interface NumberInputProps {
  readonly label: string;
  readonly title?: string | undefined;
  readonly value: number | null | undefined;
  readonly min?: number | undefined;
  readonly max?: number | undefined;
  readonly placeholder?: string;
  /** Receives each number that the visitor types. */
  readonly onNumber: (value: number) => void;
  /** Called when the visitor empties the field. Without it, the field returns to its value when it loses the focus. */
  readonly onEmpty?: () => void;
  readonly children?: ComponentChildren;
}

/**
 * A field for a number. While the visitor types, the field keeps the visitor's text: "1e-" and "0." are on the way to numbers, and a
 * redraw would replace them.
 */
export const NumberInput = ({ label, title, value, min, max, placeholder, onNumber, onEmpty, children }: NumberInputProps) => {
  const field = useRef<HTMLInputElement>(null);
  const text = typeof value === "number" && Number.isFinite(value) ? String(value) : "";
  // The field changes with the rest of the page: an effect after the paint would show the old number for a frame.
  useLayoutEffect(() => {
    if (field.current && field.current !== document.activeElement) field.current.value = text;
  }, [text]);
  return (
    <label title={title}>
      {label}
      <input
        ref={field}
        type="number"
        step="any"
        min={min}
        max={max}
        placeholder={placeholder}
        onInput={({ currentTarget: { value: typed, validity } }) => {
          if (typed !== "") onNumber(Number(typed));
          else if (!validity.badInput) onEmpty?.();
        }}
        onBlur={({ currentTarget }) => {
          currentTarget.value = text;
        }}
      />
      {children}
    </label>
  );
};

interface FieldProps {
  readonly name: string;
  readonly property: Property;
  readonly value: unknown;
  readonly onChange: (value: unknown) => void;
}

/** A schema's bound above this value counts as no bound. */
const UNBOUNDED = 1e6;

/** The sliders of rates are logarithmic. Their range is 10^LEAST_POWER to 10^MOST_POWER. */
const [LEAST_POWER, MOST_POWER] = [-6, 1];
const POWER_STEP = 0.02;
const UNIT_STEP = 0.001;

/** True if users try this hyperparameter over several powers of ten. */
const isRate = (name: string): boolean => /^(lr|eps|weight_decay|max_lr|base_lr|eta_min)$/.test(name);

const NumberField = ({ name, property, value, onChange }: FieldProps) => {
  const top = property.maximum ?? property.exclusiveMaximum ?? Number.POSITIVE_INFINITY;
  const number = typeof value === "number" ? value : Number.NaN;
  const isUnit = property.minimum === 0 && top <= 1 && property.type === "number";
  const isNullable = Array.isArray(property.type);
  const slide = isUnit
    ? { min: 0, max: property.exclusiveMaximum === undefined ? top : top - UNIT_STEP, step: UNIT_STEP, value: number }
    : isRate(name)
      ? { min: LEAST_POWER, max: MOST_POWER, step: POWER_STEP, value: number > 0 ? Math.log10(number) : LEAST_POWER }
      : undefined;
  return (
    <NumberInput
      label={name}
      title={property.description}
      min={property.minimum !== undefined && property.minimum > -UNBOUNDED ? property.minimum : undefined}
      max={top < UNBOUNDED ? top : undefined}
      value={number}
      placeholder={isNullable ? "none" : String(property.default ?? "")}
      onNumber={onChange}
      onEmpty={() => onChange(isNullable ? null : undefined)}
    >
      {slide && (
        <input
          type="range"
          {...slide}
          aria-label={`${name}, slider`}
          onInput={(event) => {
            const position = Number(event.currentTarget.value);
            onChange(isUnit ? position : Number((10 ** position).toPrecision(2)));
          }}
        />
      )}
    </NumberInput>
  );
};

const Field = ({ name, property, value, onChange }: FieldProps) => {
  if (property.enum)
    return (
      <label title={property.description}>
        {name}
        <select value={String(value)} onChange={(event) => onChange(event.currentTarget.value)}>
          {property.enum.map((choice) => (
            <option key={choice}>{choice}</option>
          ))}
        </select>
      </label>
    );
  if (property.type === "boolean")
    return (
      <label class="check" title={property.description}>
        <input type="checkbox" checked={value === true} onChange={(event) => onChange(event.currentTarget.checked)} /> {name}
      </label>
    );
  // An object with one number, such as ema, has a field for the number. The empty field is null.
  const [inner, number] = Object.entries(property.properties ?? {})[0] ?? [];
  if (inner !== undefined && number) {
    const current = (value as Values | null | undefined)?.[inner] ?? null;
    const own = { ...number, type: ["number", "null"], ...(property.description !== undefined && { description: property.description }) };
    return (
      <NumberField name={`${name}.${inner}`} property={own} value={current} onChange={(to) => onChange(typeof to === "number" ? { [inner]: to } : null)} />
    );
  }
  if (property.type === "array") {
    const list = Array.isArray(value) ? (value as readonly unknown[]) : [];
    if (property.minItems !== undefined && property.minItems === property.maxItems) {
      const initial = Array.isArray(property.default) ? (property.default as readonly unknown[]) : [];
      const items = Array.from({ length: property.minItems }, (_, at) => list[at] ?? initial[at]);
      return (
        <>
          {items.map((item, at) => (
            <NumberField
              key={at}
              name={`${name}[${at}]`}
              property={{ ...property.items, default: initial[at], ...(property.description !== undefined && { description: property.description }) }}
              value={item}
              onChange={(changed) => onChange(items.map((own, index) => (index === at ? (changed ?? initial[at]) : own)))}
            />
          ))}
        </>
      );
    }
    return (
      <label title={property.description}>
        {name}, with commas
        <input
          value={list.join(", ")}
          onChange={(event) =>
            onChange(
              event.currentTarget.value
                .split(",")
                .filter((part) => part.trim() !== "")
                .map(Number),
            )
          }
        />
      </label>
    );
  }
  return <NumberField name={name} property={property} value={value} onChange={onChange} />;
};

interface FieldsProps {
  readonly properties: Readonly<Record<string, Property>>;
  readonly values: Values;
  /** Receives the new values. Values that equal the default are absent. */
  readonly onChange: (values: Values) => void;
}

const isEqual = (a: unknown, b: unknown): boolean => JSON.stringify(a) === JSON.stringify(b);

export const Fields = ({ properties, values, onChange }: FieldsProps) => (
  <div class="fields">
    {Object.entries(properties).map(([name, property]) => {
      if (property.const !== undefined) return null;
      const change = (value: unknown): void => {
        const { [name]: _, ...rest } = values;
        onChange(value === undefined || isEqual(value, property.default) ? rest : { ...rest, [name]: value });
      };
      return <Field key={name} name={name} property={property} value={values[name] ?? property.default} onChange={change} />;
    })}
  </div>
);
