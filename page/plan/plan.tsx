/** The panel "Plan": shows the memory and transfer times of a model's step, by dtype, transport and network. */
import { useState } from "preact/hooks";
import { bytesText, countText, durationText, listText, pluralize } from "../common/format.ts";
import { describeOptimizers } from "../common/optimizers.ts";
import { Card, Failure, Scroll, useLoaded } from "../common/panel.tsx";
import { batchResults } from "../common/session.ts";
import { parseSizes, trafficOf, transferSeconds } from "./sizes.ts";

interface Result {
  readonly parameters: number;
  readonly bytes_in: number;
  readonly bytes_out: number;
  readonly state_bytes: number;
  readonly arena_bytes: number;
  readonly fits: boolean;
  readonly requests: number;
  readonly too_large: readonly string[];
}

interface Choice {
  readonly title: string;
  readonly dtype: string;
  readonly master: boolean;
  readonly size: number;
  /** The value of state_dtype; undefined for its default. Some optimizers lack this hyperparameter. */
  readonly moments?: string;
}

interface Plan {
  readonly choice: Choice;
  readonly result: Result;
}

/** The choices for the dtypes of parameters and gradients. `size` is a gradient element's size in bytes. */
const CHOICES: readonly Choice[] = [
  { title: "F32", dtype: "F32", master: false, size: 4 },
  { title: "BF16 with F32 master weights", dtype: "BF16", master: true, size: 2 },
  { title: "BF16", dtype: "BF16", master: false, size: 2 },
  { title: "F16 with F32 master weights", dtype: "F16", master: true, size: 2 },
  { title: "F64", dtype: "F64", master: false, size: 8 },
  { title: "F32 with moments in BF16", dtype: "F32", master: false, size: 4, moments: "BF16" },
  { title: "F32 with moments in Q8", dtype: "F32", master: false, size: 4, moments: "Q8" },
];

const LINKS = [1, 10, 100];

const EXAMPLE = "embedding 50257x768\nlayers 85_000_000";

const DELAY_MS = 200;

const loadPlans = async (text: string, name: string, isCurrent: () => boolean): Promise<readonly Plan[]> => {
  const sizes = parseSizes(text);
  // The delay avoids a call for each typed character.
  await new Promise((resolve) => setTimeout(resolve, DELAY_MS));
  if (!isCurrent()) throw new Error("the text has changed");
  const definition = (await describeOptimizers()).find((optimizer) => optimizer.name === name);
  const hasMoments = "state_dtype" in ((definition?.hyperparameters as { readonly properties?: object } | undefined)?.properties ?? {});
  const choices = CHOICES.filter(({ moments }) => moments === undefined || hasMoments);
  const calls = choices.map(({ dtype, master, moments }) => ({
    method: "optimizer.plan",
    params: {
      optimizer: { name, ...(moments !== undefined && { state_dtype: moments }) },
      tensors: Object.fromEntries(sizes.map((size) => [size.name, { shape: size.shape, dtype }])),
      master_weights: master,
    },
  }));
  return (await batchResults<Result>(calls)).map((result, index) => ({ choice: choices[index] as Choice, result }));
};

export const PlanPanel = () => {
  const [text, setText] = useState(EXAMPLE);
  const [name, setName] = useState("adamw");
  const [title, setTitle] = useState(CHOICES[0]?.title ?? "");
  const known = useLoaded(describeOptimizers, []);
  const { value: plans, error } = useLoaded((isCurrent) => loadPlans(text, name, isCurrent), [text, name]);
  // Some optimizers do not offer the chosen dtype.
  const { choice, result: plan } = plans?.find((own) => own.choice.title === title) ?? plans?.[0] ?? {};
  return (
    <>
      <p>Parameters, gradients and state travel with each step. The service computes the bytes from shapes alone; the times are those of the network.</p>
      <Card title="The model">
        <div class="grid">
          <label class="block">
            A line for each tensor: a name and a shape, or a number of parameters
            <textarea rows={5} value={text} onInput={(event) => setText(event.currentTarget.value)} />
          </label>
          <div class="fields">
            <label>
              Optimizer
              <select value={name} onChange={(event) => setName(event.currentTarget.value)}>
                {(known.value ?? [{ name }]).map((optimizer) => (
                  <option key={optimizer.name}>{optimizer.name}</option>
                ))}
              </select>
            </label>
            <label>
              Dtype for the times
              <select value={choice?.title ?? title} onChange={(event) => setTitle(event.currentTarget.value)}>
                {(plans ?? []).map((own) => (
                  <option key={own.choice.title}>{own.choice.title}</option>
                ))}
              </select>
            </label>
          </div>
        </div>
        <Failure error={error ?? known.error} />
      </Card>
      {plans && plan && choice && (
        <>
          <Card title={`A step of ${countText(plan.parameters)} parameters, by dtype`}>
            <Scroll label="Bytes by dtype">
              <table>
                <thead>
                  <tr>
                    {["Dtype", "Bytes in", "Bytes out", "State", "Memory on the server", "As one call"].map((title) => (
                      <th key={title} scope="col">
                        {title}
                      </th>
                    ))}
                  </tr>
                </thead>
                <tbody>
                  {plans.map(({ choice: { title: name }, result: own }) => (
                    <tr key={name}>
                      <th scope="row">{name}</th>
                      <td>{bytesText(own.bytes_in)}</td>
                      <td>{bytesText(own.bytes_out)}</td>
                      <td>{bytesText(own.state_bytes)}</td>
                      <td>{bytesText(own.arena_bytes)}</td>
                      <td>
                        {own.fits
                          ? "fits"
                          : own.requests === 0
                            ? `too large, each by itself: ${listText(own.too_large)}`
                            : `split it into ${pluralize(own.requests, "call")}`}
                      </td>
                    </tr>
                  ))}
                </tbody>
              </table>
            </Scroll>
          </Card>
          <Card title={`Time of a step's bytes in ${choice.title}`}>
            <Scroll label="Times by transport">
              <table>
                <thead>
                  <tr>
                    <th scope="col">Transport</th>
                    <th scope="col">In and out</th>
                    {LINKS.map((rate) => (
                      <th key={rate} scope="col">
                        {rate} Gbit/s
                      </th>
                    ))}
                  </tr>
                </thead>
                <tbody>
                  {trafficOf(plan, plan.parameters * choice.size).map((traffic) => (
                    <tr key={traffic.name}>
                      <th scope="row">{traffic.name}</th>
                      <td>{bytesText(traffic.bytesIn + traffic.bytesOut)}</td>
                      {LINKS.map((rate) => (
                        <td key={rate}>{traffic.bytesIn + traffic.bytesOut === 0 ? "–" : durationText(transferSeconds(traffic, rate))}</td>
                      ))}
                    </tr>
                  ))}
                </tbody>
              </table>
            </Scroll>
            <p class="hint">
              Times are those of the bytes alone. The service's own time is shorter on all but the fastest links: docs/performance.md has it. Cached parameters
              and state need STEPD_CACHE_MIB, shared memory STEPD_SHARED_DIR.
            </p>
          </Card>
        </>
      )}
    </>
  );
};
