/** The panel "Try": compares optimizers on a surface, with real steps of the server. */
import { useEffect, useMemo, useState } from "preact/hooks";
import type { DescribeResult } from "../../clients/typescript/src/index.ts";
import { Chart, colorOf } from "../common/chart.tsx";
import { Copyable } from "../common/copy.tsx";
import { Fields } from "../common/fields.tsx";
import { countText, durationText, numberText, pluralize } from "../common/format.ts";
import { describeOptimizers } from "../common/optimizers.ts";
import { Card, Failure, messageOf, type PanelProps, Scroll, useLoaded } from "../common/panel.tsx";
import type { Property, Values } from "../common/schema.ts";
import { callBatch, root } from "../common/session.ts";
import { SurfaceMap } from "./map.tsx";
import { firstCall, type Runner, run, type StepResult, type Track } from "./run.ts";
import { surfaces } from "./surfaces.ts";

/** Learning rates that suit these surfaces. The optimizers' defaults suit neural networks. */
const RATES: Readonly<Record<string, number>> = {
  sgd: 0.01,
  qhm: 0.02,
  lion: 0.02,
  adagrad: 0.3,
  adadelta: 2,
  rmsprop: 0.02,
  lars: 0.01,
  lamb: 0.05,
  muon: 0.05,
};
const USUAL_RATE = 0.1;

/** The panel's choices, which its address stores. */
interface Setting {
  readonly surface: string;
  readonly condition: number;
  readonly steps: number;
  readonly optimizers: readonly (Values & { readonly name: string })[];
}

const optimizerWithRate = (name: string): Values & { readonly name: string } => ({ name, lr: RATES[name] ?? USUAL_RATE });

const propertiesOf = (description: DescribeResult | undefined): Readonly<Record<string, Property>> =>
  (description?.hyperparameters as { properties?: Record<string, Property> } | undefined)?.properties ?? {};

/** Chooses the rate of an optimizer that was added. Optimizers whose default is near 1 adapt the rate by themselves, so they keep it. */
const optimizerOf = (description: DescribeResult): Values & { readonly name: string } => {
  const { name } = description;
  const initial = propertiesOf(description)["lr"]?.default;
  return typeof initial !== "number" || (RATES[name] === undefined && initial > USUAL_RATE) ? { name } : optimizerWithRate(name);
};

const INITIAL: Setting = {
  surface: "quadratic",
  condition: 20,
  steps: 200,
  optimizers: [{ ...optimizerWithRate("sgd"), momentum: 0.9 }, optimizerWithRate("adam"), optimizerWithRate("lion")],
};
const MAX_STEPS = 1000;
const MAX_OPTIMIZERS = 10;
/** A loss below this counts as having reached the minimum. */
const REACHED = 1e-3;
/** Smaller losses are drawn at this value, because a logarithmic axis has no 0. */
const LEAST_LOSS = 1e-12;
const DELAY_MS = 150;

/** Parses a setting from the page's address. Returns the initial setting for an invalid one. */
const parseSetting = (text: string): Setting => {
  try {
    const given = { ...INITIAL, ...(JSON.parse(decodeURIComponent(text)) as Partial<Setting>) };
    const isGood =
      Number.isSafeInteger(given.steps) &&
      given.steps >= 1 &&
      given.steps <= MAX_STEPS &&
      typeof given.condition === "number" &&
      Array.isArray(given.optimizers) &&
      given.optimizers.length <= MAX_OPTIMIZERS &&
      given.optimizers.every(({ name }) => typeof name === "string");
    return isGood ? given : INITIAL;
  } catch {
    return INITIAL;
  }
};

/** Gives each optimizer a unique name, even if the list contains it twice. */
const runnersOf = ({ optimizers }: Setting): readonly Runner[] =>
  optimizers.map((optimizer, index) => {
    const before = optimizers.slice(0, index).filter(({ name }) => name === optimizer.name).length;
    return { name: before === 0 ? optimizer.name : `${optimizer.name} ${before + 1}`, optimizer };
  });

interface Outcome {
  readonly tracks: readonly Track[];
  readonly seconds: number;
}

/** Formats a tick of the logarithmic axis. */
const tickText = (value: number): string => value.toExponential(Number.isInteger(Math.log10(value)) ? 0 : 1);

const Results = ({ tracks }: { readonly tracks: readonly Track[] }) => (
  <Scroll label="Results">
    <table>
      <thead>
        <tr>
          <th scope="col">Optimizer</th>
          <th scope="col">Loss at the end</th>
          <th scope="col">Least loss</th>
          <th scope="col">Steps to {REACHED}</th>
          <th scope="col">Remark</th>
        </tr>
      </thead>
      <tbody>
        {tracks.map(({ name, losses, end }, index) => {
          const reached = losses.findIndex((loss) => loss < REACHED);
          return (
            <tr key={name}>
              <th scope="row">
                <svg width="12" height="12" aria-hidden="true">
                  <rect width="12" height="12" fill={colorOf(index)} />
                </svg>{" "}
                {name}
              </th>
              <td class="number">{numberText(losses.at(-1) ?? Number.NaN)}</td>
              <td class="number">{numberText(Math.min(...losses))}</td>
              <td class="number">{reached < 0 ? "–" : countText(reached)}</td>
              <td>{end ?? ""}</td>
            </tr>
          );
        })}
      </tbody>
    </table>
  </Scroll>
);

/** Hyperparameters that the form always shows, because users change them first. */
const MAIN_HYPERPARAMETERS = new Set(["lr", "betas", "momentum", "nesterov", "nus", "nu", "alpha", "rho", "weight_decay"]);

const OptimizerEditor = ({
  description,
  values,
  title,
  onChange,
  onRemove,
}: {
  readonly description: DescribeResult | undefined;
  readonly values: Values & { readonly name: string };
  readonly title: string;
  readonly onChange: (values: Values & { readonly name: string }) => void;
  readonly onRemove: () => void;
}) => {
  const { name, ...own } = values;
  const properties = propertiesOf(description);
  const pick = (isMain: boolean) => Object.fromEntries(Object.entries(properties).filter(([property]) => MAIN_HYPERPARAMETERS.has(property) === isMain));
  return (
    <fieldset>
      <legend>{title}</legend>
      <p class="hint">{description?.formula}</p>
      <Fields properties={pick(true)} values={own} onChange={(changed) => onChange({ ...changed, name })} />
      <details>
        <summary>More of {title}</summary>
        <Fields properties={pick(false)} values={own} onChange={(changed) => onChange({ ...changed, name })} />
      </details>
      <button type="button" onClick={onRemove} aria-label={`Remove ${title}`}>
        Remove
      </button>
    </fieldset>
  );
};

export const Try = ({ setting: text }: PanelProps) => {
  const [setting, setSetting] = useState(() => parseSetting(text));
  const known = useLoaded(describeOptimizers, []);
  const [outcome, setOutcome] = useState<Outcome>();
  const [error, setError] = useState<string>();
  const [isRunning, setRunning] = useState(true);
  const all = useMemo(() => surfaces(setting.condition), [setting.condition]);
  const surface = all.find(({ id }) => id === setting.surface) ?? (all[0] as (typeof all)[number]);
  const runners = useMemo(() => runnersOf(setting), [setting.optimizers]);
  const link = `#try?${encodeURIComponent(JSON.stringify(setting))}`;

  useEffect(() => setSetting(parseSetting(text)), [text]);

  useEffect(() => {
    let isCurrent = true;
    setRunning(true);
    const timer = setTimeout(async () => {
      // The address is replaced, so that a slider's movements do not fill the browser's history.
      history.replaceState(null, "", link);
      try {
        const start = performance.now();
        const tracks = await run(runners, surface, setting.steps, callBatch<StepResult>, () => isCurrent);
        if (!tracks) return;
        setOutcome({ tracks, seconds: (performance.now() - start) / 1000 });
        setError(undefined);
      } catch (error) {
        if (isCurrent) setError(messageOf(error));
      }
      if (isCurrent) setRunning(false);
    }, DELAY_MS);
    return () => {
      isCurrent = false;
      clearTimeout(timer);
    };
  }, [runners, surface, setting.steps]);

  const change = (part: Partial<Setting>): void => setSetting((before) => ({ ...before, ...part }));
  const changeAt = (index: number, values: (Values & { readonly name: string }) | undefined): void =>
    change({ optimizers: setting.optimizers.flatMap((own, at) => (at === index ? (values ?? []) : own)) });
  const tracks = outcome?.tracks ?? [];
  const x = useMemo(() => Array.from({ length: setting.steps + 1 }, (_, step) => step), [setting.steps]);
  const curves = useMemo(
    () =>
      tracks.map(({ name, losses }) => ({
        label: name,
        values: x.map((step) => (step < losses.length ? Math.max(losses[step] as number, LEAST_LOSS) : null)),
      })),
    [tracks, x],
  );
  const calls = runners.map((runner) => ({ jsonrpc: "2.0", id: runner.name, method: "optimizer.step", params: firstCall(runner, surface) }));

  return (
    <>
      <p>Every step is a call to this server: the steps of all optimizers go as one JSON-RPC batch, and the gradients are computed here.</p>
      <div class="row">
        <label>
          Surface{" "}
          <select value={surface.id} onChange={(event) => change({ surface: event.currentTarget.value })}>
            {all.map(({ id, title }) => (
              <option key={id} value={id}>
                {title}
              </option>
            ))}
          </select>
        </label>
        {surface.id === "quadratic" && (
          <label>
            Condition number: {setting.condition}
            <input type="range" min="1" max="500" value={setting.condition} onInput={(event) => change({ condition: Number(event.currentTarget.value) })} />
          </label>
        )}
        <label>
          Steps{" "}
          <input
            type="number"
            min="1"
            max={MAX_STEPS}
            value={setting.steps}
            onChange={(event) => change({ steps: Math.min(MAX_STEPS, Math.max(1, Math.round(Number(event.currentTarget.value)) || 1)) })}
          />
        </label>
        <label>
          Add an optimizer{" "}
          <select
            value=""
            disabled={setting.optimizers.length >= MAX_OPTIMIZERS}
            onChange={(event) => {
              const name = event.currentTarget.value;
              event.currentTarget.value = "";
              const description = known.value?.find((optimizer) => optimizer.name === name);
              if (description) change({ optimizers: [...setting.optimizers, optimizerOf(description)] });
            }}
          >
            <option value="">choose</option>
            {(known.value ?? []).map(({ name }) => (
              <option key={name}>{name}</option>
            ))}
          </select>
        </label>
        <button type="button" onClick={() => change({ optimizers: (known.value ?? []).slice(0, MAX_OPTIMIZERS).map(optimizerOf) })}>
          The first {MAX_OPTIMIZERS}
        </button>
      </div>
      <Failure error={error ?? known.error} />
      <p role="status">
        {isRunning
          ? "Running …"
          : outcome &&
            `${pluralize(outcome.tracks.length, "optimizer")} took ${countText(outcome.tracks.reduce((sum, { points }) => sum + points.length - 1, 0))} steps in ${durationText(outcome.seconds)}.`}
      </p>
      <div class="grid">
        <SurfaceMap surface={surface} tracks={tracks} />
        <Chart title="Loss by step" x={x} series={curves} format={tickText} height={380} isLog />
      </div>
      <Results tracks={tracks} />
      <Card title="Settings">
        {setting.optimizers.map((values, index) => (
          <OptimizerEditor
            key={index}
            title={runners[index]?.name ?? ""}
            description={known.value?.find(({ name }) => name === values.name)}
            values={values}
            onChange={(changed) => changeAt(index, changed)}
            onRemove={() => changeAt(index, undefined)}
          />
        ))}
      </Card>
      <Card title="Take it along">
        <p>
          <a href={link}>A link to this setting</a>
        </p>
        <p>The first call of the run, for POST {root}rpc:</p>
        <Copyable label="The first call as JSON-RPC" text={JSON.stringify(calls, undefined, 1)} />
      </Card>
    </>
  );
};
