/** The panel "Schedules": composes a schedule from parts, draws the service's curve, and shows code to copy. */
import { useEffect, useMemo, useState } from "preact/hooks";
import schema from "../../schemas/schedule.schema.json" with { type: "json" };
import { Chart } from "../common/chart.tsx";
import { Copyable } from "../common/copy.tsx";
import { Fields, NumberInput } from "../common/fields.tsx";
import { countText, numberText } from "../common/format.ts";
import { Card, Failure, messageOf } from "../common/panel.tsx";
import type { Property } from "../common/schema.ts";
import { batchResults } from "../common/session.ts";
import { initialValues, type Part, type Schedule, scheduleOf, torchCode, withSteps } from "./compose.ts";

interface Kind {
  readonly name: string;
  readonly description: string;
  readonly properties: Readonly<Record<string, Property>>;
}

/** All schedules except those of other schedules: the list of parts creates a sequence. */
const KINDS: readonly Kind[] = (schema.oneOf as readonly { readonly description: string; readonly properties: Readonly<Record<string, Property>> }[])
  .map(({ description, properties }) => ({ name: String(properties["name"]?.const), description, properties }))
  .filter(({ properties }) => !("schedules" in properties));

interface Curve {
  readonly x: readonly number[];
  readonly lrs: readonly number[];
  readonly momentums: readonly (number | null)[] | undefined;
}

interface Rates {
  readonly lrs: readonly number[];
  readonly momentums?: readonly (number | null)[];
}

/** One call evaluates at most this many steps. */
const MAX_COUNT = 10_000;
/** A longer curve has this many points, with one call for each. A batch accepts 100 calls. */
const POINTS = 100;
const DELAY_MS = 150;

const evaluate = async (schedule: Schedule, lr: number, total: number): Promise<Curve> => {
  // The calls use JSON-RPC, whose errors have status 200. Browsers would log each reply with status 400 while a visitor types.
  const call = (from: number, count: number) => ({ method: "schedule.evaluate", params: { schedule, lr, from, count } });
  if (total <= MAX_COUNT) {
    const [{ lrs, momentums } = { lrs: [] }] = await batchResults<Rates>([call(0, total)]);
    return { x: lrs.map((_, step) => step), lrs, momentums };
  }
  const x = Array.from({ length: POINTS }, (_, index) => Math.round((index * (total - 1)) / (POINTS - 1)));
  const rates = await batchResults<Rates>(x.map((from) => call(from, 1)));
  const momentums = rates.some((rate) => rate.momentums) ? rates.map((rate) => rate.momentums?.[0] ?? null) : undefined;
  return { x, lrs: rates.map((rate) => rate.lrs[0] ?? 0), momentums };
};

let nextId = 0;
const newPart = (name: string, steps: number, lr: number): Part => ({ id: nextId++, name, steps, values: initialValues(name, steps, lr) });

const INITIAL_RATE = 0.001;
const MAX_STEPS = 1e9;

const move = (parts: readonly Part[], from: number, to: number): readonly Part[] => {
  if (to < 0 || to >= parts.length) return parts;
  const rest = parts.filter((_, index) => index !== from);
  return [...rest.slice(0, to), parts[from] as Part, ...rest.slice(to)];
};

export const Schedules = () => {
  const [lr, setRate] = useState(INITIAL_RATE);
  const [parts, setParts] = useState<readonly Part[]>(() => [newPart("linear", 100, INITIAL_RATE), newPart("cosine", 900, INITIAL_RATE)]);
  const [curve, setCurve] = useState<Curve>();
  const [error, setError] = useState<string>();
  const [dragged, setDragged] = useState<number>();
  const total = parts.reduce((sum, { steps }) => sum + steps, 0);
  const schedule = useMemo(() => scheduleOf(parts), [parts]);

  useEffect(() => {
    let isCurrent = true;
    const timer = setTimeout(() => {
      evaluate(schedule, lr, total).then(
        (found) => {
          if (!isCurrent) return;
          setCurve(found);
          setError(undefined);
        },
        (error) => isCurrent && setError(messageOf(error)),
      );
    }, DELAY_MS);
    return () => {
      isCurrent = false;
      clearTimeout(timer);
    };
  }, [schedule, lr, total]);

  const change = (index: number, part: Part): void => setParts(parts.map((own, at) => (at === index ? part : own)));
  const rates = useMemo(() => (curve ? [{ label: "lr", values: curve.lrs }] : []), [curve]);
  const momentums = useMemo(() => (curve?.momentums ? [{ label: "momentum", values: curve.momentums }] : undefined), [curve]);

  return (
    <>
      <p>
        Parts follow each other, each from its own step 0. Drag them, or move them with the buttons. The service computes the curve, exactly as its steps do.
      </p>
      <div class="row">
        <NumberInput label="Base learning rate" min={0} value={lr} onNumber={setRate} />
        <label>
          Add a part
          <select
            value=""
            onChange={(event) => {
              const name = event.currentTarget.value;
              event.currentTarget.value = "";
              if (name !== "") setParts([...parts, newPart(name, 200, lr)]);
            }}
          >
            <option value="">choose</option>
            {KINDS.map(({ name }) => (
              <option key={name}>{name}</option>
            ))}
          </select>
        </label>
        <p>{countText(total)} steps</p>
      </div>
      <Failure error={error} />
      {curve && <Chart title="Learning rate by step" x={curve.x} series={rates} format={numberText} formatX={countText} height={260} />}
      {curve && momentums && <Chart title="Momentum by step" x={curve.x} series={momentums} format={numberText} formatX={countText} height={140} />}
      <ol class="parts">
        {parts.map((part, index) => {
          const kind = KINDS.find(({ name }) => name === part.name);
          const title = `part ${index + 1}, ${part.name}`;
          return (
            <li
              key={part.id}
              class={dragged === index ? "dragged" : undefined}
              onDragOver={(event) => event.preventDefault()}
              onDrop={(event) => {
                event.preventDefault();
                if (dragged !== undefined) setParts(move(parts, dragged, index));
                setDragged(undefined);
              }}
            >
              <fieldset>
                {/* Only the legend is dragged, so that the pointer can select text and move sliders in the fields. */}
                <legend
                  draggable
                  onDragStart={(event) => {
                    // Firefox drags only elements that have data.
                    event.dataTransfer?.setData("text/plain", part.name);
                    setDragged(index);
                  }}
                  onDragEnd={() => setDragged(undefined)}
                >
                  <span aria-hidden="true">⠿</span> {index + 1}: {part.name}
                </legend>
                <p class="hint">{kind?.description}</p>
                <div class="row">
                  <label>
                    Steps
                    <input
                      type="number"
                      min="1"
                      step="1"
                      value={part.steps}
                      max={MAX_STEPS}
                      onChange={(event) => change(index, withSteps(part, Math.min(MAX_STEPS, Math.max(1, Math.round(Number(event.currentTarget.value)) || 1))))}
                    />
                  </label>
                  <button type="button" disabled={index === 0} aria-label={`Move ${title} up`} onClick={() => setParts(move(parts, index, index - 1))}>
                    ↑
                  </button>
                  <button
                    type="button"
                    disabled={index === parts.length - 1}
                    aria-label={`Move ${title} down`}
                    onClick={() => setParts(move(parts, index, index + 1))}
                  >
                    ↓
                  </button>
                  <button
                    type="button"
                    disabled={parts.length === 1}
                    aria-label={`Remove ${title}`}
                    onClick={() => setParts(parts.filter((own) => own !== part))}
                  >
                    Remove
                  </button>
                </div>
                <Fields properties={kind?.properties ?? {}} values={part.values} onChange={(values) => change(index, { ...part, values })} />
              </fieldset>
            </li>
          );
        })}
      </ol>
      <Card title="Take it along">
        <h3>The field schedule of optimizer.step</h3>
        <Copyable label="The schedule as JSON" text={JSON.stringify(schedule, undefined, 1)} />
        <h3>The same in torch, with lr {lr}</h3>
        <Copyable label="The schedule in torch" text={torchCode(parts)} />
      </Card>
    </>
  );
};
