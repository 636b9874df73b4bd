/** Builds form fields from the JSON Schema of an optimizer or a schedule. */
import type { Property, Values } from "./schema.ts";

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
  const onInput = (text: string): void => onChange(text === "" ? (isNullable ? null : undefined) : Number(text));
  const slide = isUnit
    ? { min: 0, max: property.exclusiveMaximum === undefined ? top : top - UNIT_STEP, step: UNIT_STEP, value: number }
    : isRate(name)
      ? { min: LEAST_POWER, max: MOST_POWER, step: POWER_STEP, value: number > 0 ? Math.log10(number) : LEAST_POWER }
      : undefined;
  return (
    <label title={property.description}>
      {name}
      <input
        type="number"
        step="any"
        min={property.minimum !== undefined && property.minimum > -UNBOUNDED ? property.minimum : undefined}
        max={top < UNBOUNDED ? top : undefined}
        value={Number.isNaN(number) ? "" : number}
        placeholder={isNullable ? "none" : String(property.default ?? "")}
        onInput={(event) => onInput(event.currentTarget.value)}
      />
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
    </label>
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
  if (property.type === "array") {
    const list = Array.isArray(value) ? (value as readonly unknown[]) : [];
    if (property.minItems === 2)
      return (
        <>
          {[0, 1].map((at) => (
            <NumberField
              key={at}
              name={`${name}[${at}]`}
              property={{ ...property.items, ...(property.description !== undefined && { description: property.description }) }}
              value={list[at]}
              onChange={(item) => onChange(list.map((own, index) => (index === at ? item : own)))}
            />
          ))}
        </>
      );
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
