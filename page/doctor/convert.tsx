/** Converts a state on the server, and downloads the result as a file. */
import { useState } from "preact/hooks";
import type { Convention } from "../../clients/typescript/src/index.ts";
import { bytesText } from "../common/format.ts";
import { download, Failure, messageOf } from "../common/panel.tsx";
import { createClient } from "../common/session.ts";
import { type Checkpoint, type Definitions, parametersOf } from "./checkpoint.ts";
import { writeSafetensors } from "./safetensors.ts";

const FORMATS = ["stepd", "torch", "qhoptim", "optax"] as const;
const MOMENTS = ["F32", "BF16", "Q8"] as const;
type Moments = (typeof MOMENTS)[number];
type Target = (typeof FORMATS)[number];

/** Returns the bytes for state.convert. A file of torch.save becomes a safetensors file; other files stay as they are. */
const stateFileOf = async (checkpoint: Checkpoint, file: File): Promise<Uint8Array<ArrayBuffer>> => {
  if (checkpoint.container === "safetensors") return new Uint8Array(await file.arrayBuffer());
  const tensors = await Promise.all(
    checkpoint.tensors.map(async ({ slot, parameter, dtype, shape, read }) => ({ key: `state.${parameter}.${slot}`, dtype, shape, bytes: await read() })),
  );
  const steps = [...checkpoint.steps].map(([parameter, step]) => {
    return { key: `state.${parameter}.step`, dtype: "F64" as const, shape: [], bytes: new Uint8Array(Float64Array.of(step).buffer) };
  });
  return writeSafetensors([...tensors, ...steps]);
};

const namesIn = (text: string): readonly string[] =>
  text
    .split("\n")
    .map((line) => line.trim())
    .filter((line) => line !== "");

export const Convert = ({ checkpoint, file, definitions }: { readonly checkpoint: Checkpoint; readonly file: File; readonly definitions: Definitions }) => {
  const isForeign = checkpoint.format !== "stepd";
  const [target, setTarget] = useState<Target>(isForeign ? "stepd" : "torch");
  const [source, setSource] = useState(checkpoint.optimizer !== undefined && definitions.has(checkpoint.optimizer) ? checkpoint.optimizer : "adamw");
  const [wanted, setWanted] = useState("");
  const [moments, setMoments] = useState<"" | Moments>("");
  const [names, setNames] = useState("");
  const [step, setStep] = useState("");
  const [betas, setBetas] = useState("0.9, 0.999");
  const [state, setState] = useState<{ readonly error?: string; readonly lost?: readonly string[]; readonly size?: number; readonly isBusy?: boolean }>({});
  const isNumbered = parametersOf(checkpoint).every((name) => /^\d+$/.test(name));
  const needsBetas = checkpoint.format === "qhoptim" || target === "qhoptim";
  const family = definitions.get(source)?.family;
  const others = [...definitions.values()].filter((definition) => definition.family === family && definition.name !== source).map(({ name }) => name);

  const convention = (format: Target, isSource: boolean): Convention => ({
    format,
    ...(isSource && format !== "stepd" && { optimizer: source }),
    ...(isSource && step !== "" && format !== "stepd" && { step: Number(step) }),
    ...((format === "torch" || format === "qhoptim") && namesIn(names).length > 0 && (isSource ? isNumbered : true) && { names: [...namesIn(names)] }),
    ...(format === "qhoptim" && { betas: betas.split(",").map(Number) as [number, number] }),
  });

  const onSubmit = async (event: SubmitEvent): Promise<void> => {
    event.preventDefault();
    setState({ isBusy: true });
    try {
      const given = await stateFileOf(checkpoint, file);
      const { file: converted, lost } = await createClient().convert({
        state: given,
        from: convention(checkpoint.format as Target, true),
        to: convention(target, false),
        ...(wanted !== "" && { optimizer: wanted }),
        ...(target === "stepd" && moments !== "" && { state_dtype: moments }),
      });
      download(`${file.name.replace(/\.\w+$/, "")}.${target}.safetensors`, converted);
      setState({ lost, size: converted.length });
    } catch (error) {
      setState({ error: messageOf(error) });
    }
  };

  return (
    <details>
      <summary>Convert to another format or optimizer</summary>
      <form onSubmit={onSubmit}>
        <p class="hint">This sends the state to the server (state.convert), which keeps nothing of it. The result is a safetensors file.</p>
        <div class="fields">
          {isForeign && (
            <label>
              Optimizer of this file
              <select value={source} onChange={(event) => setSource(event.currentTarget.value)}>
                {[...definitions.keys()].map((name) => (
                  <option key={name}>{name}</option>
                ))}
              </select>
            </label>
          )}
          <label>
            Format of the result
            <select value={target} onChange={(event) => setTarget(event.currentTarget.value as Target)}>
              {FORMATS.map((name) => (
                <option key={name}>{name}</option>
              ))}
            </select>
          </label>
          <label>
            Optimizer of the result
            <select value={wanted} onChange={(event) => setWanted(event.currentTarget.value)}>
              <option value="">the same</option>
              {others.map((name) => (
                <option key={name}>{name}</option>
              ))}
            </select>
          </label>
          {target === "stepd" && (
            <label>
              Moments of the result
              <select value={moments} onChange={(event) => setMoments(event.currentTarget.value as "" | Moments)}>
                <option value="">as they are</option>
                {MOMENTS.map((name) => (
                  <option key={name}>{name}</option>
                ))}
              </select>
            </label>
          )}
          {isForeign && checkpoint.steps.size === 0 && (
            <label>
              Steps taken
              <input type="number" min="1" step="1" required value={step} onInput={(event) => setStep(event.currentTarget.value)} />
            </label>
          )}
          {needsBetas && (
            <label>
              Betas of the run
              <input value={betas} pattern="[^,]+,[^,]+" onInput={(event) => setBetas(event.currentTarget.value)} />
            </label>
          )}
        </div>
        {(isNumbered || target === "torch" || target === "qhoptim") && (
          <label class="block">
            Parameter names in the optimizer's order, one per line{isNumbered ? "" : " (without them the result keeps the names)"}
            <textarea rows={3} required={isNumbered} value={names} onInput={(event) => setNames(event.currentTarget.value)} />
          </label>
        )}
        <button type="submit" class="main" disabled={state.isBusy === true}>
          Convert and download
        </button>
        <Failure error={state.error} />
        {state.lost && (
          <div role="status">
            <p>
              The result has {bytesText(state.size ?? 0)}.{" "}
              {state.lost.length === 0 ? "It holds all of the state: the way back gives the same values." : "It does not hold everything:"}
            </p>
            <ul>
              {state.lost.map((sentence) => (
                <li key={sentence}>{sentence}</li>
              ))}
            </ul>
          </div>
        )}
      </form>
    </details>
  );
};
