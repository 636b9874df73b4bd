/** The state doctor: a panel that shows a checkpoint's contents and faults, and its differences from another checkpoint. */
import { useEffect, useRef, useState } from "preact/hooks";
import { bytesText, countText, numberText, pluralize } from "../common/format.ts";
import { describeOptimizers } from "../common/optimizers.ts";
import { Card, Failure, messageOf, Scroll, useLoaded } from "../common/panel.tsx";
import { bytesOf, type Checkpoint, type Definition, type Definitions, dtypeOf, type Finding, parametersOf, tensorsByParameter } from "./checkpoint.ts";
import { compare } from "./compare.ts";
import { Convert } from "./convert.tsx";
import { type Examination, examine, summarize } from "./examine.ts";
import { Histogram } from "./histogram.tsx";
import { readFile } from "./read.ts";

const NO_DEFINITIONS: Definitions = new Map();

/** The parameter table shows at most this many rows. A page with more rows takes seconds to draw. */
const MOST_ROWS = 200;

const WORDS = { error: "Wrong", warning: "Check", note: "Note" } as const;

const Findings = ({ findings, good }: { readonly findings: readonly Finding[]; readonly good: string }) => (
  <ul class="findings">
    {findings.map(({ code, level, sentence }) => (
      <li key={sentence} class={level} data-code={code}>
        <strong>{WORDS[level]}:</strong> {sentence}
      </li>
    ))}
    {findings.every(({ level }) => level === "note") && <li class="good">{good}</li>}
  </ul>
);

const SlotTable = ({ checkpoint, examination }: { readonly checkpoint: Checkpoint; readonly examination: Examination }) => (
  <Scroll label={`Slots of ${checkpoint.file}`}>
    <table>
      <thead>
        <tr>
          {["Slot", "Tensors", "Values", "Dtype", "Bytes", "Zero", "Not finite", "Least", "Most", "Magnitudes"].map((title) => (
            <th key={title} scope="col">
              {title}
            </th>
          ))}
        </tr>
      </thead>
      <tbody>
        {[...examination.slots].map(([slot, statistics]) => {
          const own = checkpoint.tensors.filter((tensor) => tensor.slot === slot);
          const size = own.reduce((sum, tensor) => sum + bytesOf(tensor), 0);
          const name = slot === "" ? "weights" : slot;
          return (
            <tr key={slot}>
              <th scope="row">{name}</th>
              <td class="number">{countText(own.length)}</td>
              <td class="number">{countText(statistics.count)}</td>
              <td>{[...new Set(own.map(dtypeOf))].join(", ")}</td>
              <td class="number">{bytesText(size)}</td>
              <td class="number">{countText(statistics.zeros)}</td>
              <td class={statistics.nonFinite > 0 ? "number error" : "number"}>{countText(statistics.nonFinite)}</td>
              <td class="number">{statistics.count > statistics.nonFinite ? numberText(statistics.min) : "–"}</td>
              <td class="number">{statistics.count > statistics.nonFinite ? numberText(statistics.max) : "–"}</td>
              <td>
                <Histogram statistics={statistics} label={name} />
              </td>
            </tr>
          );
        })}
      </tbody>
    </table>
  </Scroll>
);

const ParameterTable = ({ checkpoint, examination }: { readonly checkpoint: Checkpoint; readonly examination: Examination }) => {
  const slots = tensorsByParameter(checkpoint);
  const names = parametersOf(checkpoint);
  return (
    <details>
      <summary>{pluralize(names.length, "parameter")}</summary>
      <Scroll label={`Parameters of ${checkpoint.file}`}>
        <table>
          <thead>
            <tr>
              <th scope="col">Parameter</th>
              <th scope="col">Step</th>
              <th scope="col">Shape</th>
              <th scope="col">Slots, with their mean magnitude</th>
            </tr>
          </thead>
          <tbody>
            {names.slice(0, MOST_ROWS).map((name) => {
              const own = [...(slots.get(name)?.values() ?? [])];
              return (
                <tr key={name}>
                  <th scope="row">{name}</th>
                  <td class="number">{checkpoint.steps.has(name) ? countText(checkpoint.steps.get(name) as number) : "–"}</td>
                  <td>[{own[0]?.shape.join(", ")}]</td>
                  <td>
                    {own
                      .map((tensor) => {
                        const { count: values = 0, sumOfMagnitudes = 0 } = examination.tensors.get(tensor) ?? {};
                        return `${tensor.slot} ${dtypeOf(tensor)} ${numberText(values === 0 ? 0 : sumOfMagnitudes / values)}`;
                      })
                      .join(" · ")}
                  </td>
                </tr>
              );
            })}
          </tbody>
        </table>
      </Scroll>
      {names.length > MOST_ROWS && <p class="hint">The first {MOST_ROWS} are shown.</p>}
    </details>
  );
};

const GroupList = ({ checkpoint }: { readonly checkpoint: Checkpoint }) =>
  checkpoint.groups.length === 0 ? null : (
    <details>
      <summary>{pluralize(checkpoint.groups.length, "parameter group")}</summary>
      <ul>
        {checkpoint.groups.map(({ parameters, values }, index) => (
          <li key={index}>
            {pluralize(parameters.length, "parameter")}:{" "}
            {Object.entries(values)
              .filter(([, value]) => value !== null && typeof value !== "object")
              .map(([name, value]) => `${name} ${value}`)
              .join(", ")}
            {Array.isArray(values["betas"]) ? `, betas ${values["betas"].join(" and ")}` : ""}
          </li>
        ))}
      </ul>
    </details>
  );

/** A file that the visitor chose, and its findings. */
interface Patient {
  readonly file: File;
  readonly checkpoint: Checkpoint | undefined;
  readonly examination: Examination | undefined;
  readonly findings: readonly Finding[];
}

/** The interval between redraws, in milliseconds, while a large file is read. */
const REDRAW_MS = 100;

/** Returns a progress callback that calls `show` at most ten times a second, and then lets the page redraw. */
const throttledProgress = (show: (part: number) => void): ((part: number) => Promise<void>) => {
  let last = performance.now();
  return async (part) => {
    if (performance.now() - last < REDRAW_MS) return;
    show(part);
    await new Promise((resolve) => setTimeout(resolve));
    last = performance.now();
  };
};

const examineFile = async (file: File, definitions: Definitions, show: (part: number) => void): Promise<Patient> => {
  const { checkpoint, findings } = await readFile(file);
  if (!checkpoint) return { file, checkpoint, findings, examination: undefined };
  const examination = await examine(checkpoint, definitions, throttledProgress(show));
  return { file, checkpoint, examination, findings: [...findings, ...examination.findings] };
};

const Drop = ({ name, hint, onFiles }: { readonly name: string; readonly hint: string; readonly onFiles: (files: readonly File[]) => void }) => {
  const [isOver, setOver] = useState(false);
  const take = (files: FileList | null | undefined): void => {
    if (files && files.length > 0) onFiles([...files]);
  };
  const onDrop = (event: DragEvent): void => {
    event.preventDefault();
    setOver(false);
    take(event.dataTransfer?.files);
  };
  const onDragOver = (event: DragEvent): void => {
    event.preventDefault();
    setOver(true);
  };
  return (
    // biome-ignore lint/a11y/noStaticElementInteractions: only pointers drop files; the field inside serves everyone
    <div class={isOver ? "drop over" : "drop"} onDrop={onDrop} onDragOver={onDragOver} onDragLeave={() => setOver(false)}>
      <label>
        <strong>{name}</strong>
        {/* Without its old value, the field also reports a file that is chosen again, such as one that was mended. */}
        <input
          type="file"
          onClick={(event) => {
            event.currentTarget.value = "";
          }}
          onChange={(event) => take(event.currentTarget.files)}
        />
      </label>
      <span class="hint">{hint}</span>
    </div>
  );
};

const Report = ({ name, patient, definitions }: { readonly name: string; readonly patient: Patient; readonly definitions: Definitions }) => {
  const { file, checkpoint, examination, findings } = patient;
  return (
    <Card title={`${name}: ${file.name}, ${bytesText(file.size)}`}>
      {checkpoint && <p>{summarize(checkpoint)}</p>}
      <Findings findings={findings} good="Nothing is wrong with this file." />
      {checkpoint && examination && (
        <>
          <SlotTable checkpoint={checkpoint} examination={examination} />
          <ParameterTable checkpoint={checkpoint} examination={examination} />
          <GroupList checkpoint={checkpoint} />
          {checkpoint.format !== "weights" && <Convert checkpoint={checkpoint} file={file} definitions={definitions} />}
        </>
      )}
    </Card>
  );
};

const loadDefinitions = async (): Promise<Definitions> =>
  new Map((await describeOptimizers()).map((definition) => [definition.name, definition as Definition]));

export const Doctor = () => {
  const definitions = useLoaded(loadDefinitions, []);
  const known = definitions.value ?? NO_DEFINITIONS;
  const [patients, setPatients] = useState<Readonly<Record<"A" | "B", Patient | undefined>>>({ A: undefined, B: undefined });
  const [work, setWork] = useState<{ readonly name: string; readonly part: number }>();
  const [error, setError] = useState<string>();
  const [differences, setDifferences] = useState<readonly Finding[]>();
  const { A, B } = patients;

  const turns = useRef({ A: 0, B: 0 });
  const onFile = async (side: "A" | "B", file: File): Promise<void> => {
    const turn = ++turns.current[side];
    const isCurrent = (): boolean => turn === turns.current[side];
    setError(undefined);
    setDifferences(undefined);
    setPatients((before) => ({ ...before, [side]: undefined }));
    const show = (part: number): void => {
      if (isCurrent()) setWork({ name: `Reading ${file.name}`, part });
    };
    show(0);
    try {
      // If the server does not reply, the file is examined without the server's definitions, with fewer findings.
      const patient = await examineFile(file, await loadDefinitions().catch(() => NO_DEFINITIONS), show);
      // By now the visitor may have chosen another file.
      if (isCurrent()) setPatients((before) => ({ ...before, [side]: patient }));
    } catch (error) {
      if (isCurrent()) setError(`${file.name} was not read: ${messageOf(error)}`);
    } finally {
      if (isCurrent()) setWork(undefined);
    }
  };
  /** The second of two files is for the other side. */
  const onFiles =
    (side: "A" | "B") =>
    ([first, second]: readonly File[]): void => {
      if (first) void onFile(side, first);
      if (second) void onFile(side === "A" ? "B" : "A", second);
    };

  // A browser opens a file that is dropped beside the fields in place of the page.
  useEffect(() => {
    const ignore = (event: DragEvent): void => event.preventDefault();
    addEventListener("dragover", ignore);
    addEventListener("drop", ignore);
    return () => {
      removeEventListener("dragover", ignore);
      removeEventListener("drop", ignore);
    };
  }, []);

  useEffect(() => {
    if (!A?.checkpoint || !B?.checkpoint) return;
    let isCurrent = true;
    compare(
      A.checkpoint,
      B.checkpoint,
      known,
      throttledProgress((part) => isCurrent && setWork({ name: "Comparing", part })),
    )
      .then((found) => isCurrent && setDifferences(found))
      .catch((error) => setError(`The files were not compared: ${messageOf(error)}`))
      .finally(() => setWork(undefined));
    return () => {
      isCurrent = false;
    };
  }, [A, B, known]);

  return (
    <>
      <p>
        A run that does not resume as it should has a reason in its checkpoint. The doctor reads optimizer states of stepd, any safetensors file, and files of
        torch.save (.pt, .pth, .bin), without running what is in them. The files stay in this browser.
      </p>
      <div class="grid">
        <Drop name="A: a checkpoint" hint="Choose a file, or drop it here. A second one goes to B." onFiles={onFiles("A")} />
        <Drop name="B: another one, to compare" hint="For instance the state after the resume." onFiles={onFiles("B")} />
      </div>
      <Failure error={error ?? definitions.error} />
      <p role="status">
        {work && (
          <>
            {work.name} … <progress value={work.part} aria-label={work.name} />
          </>
        )}
        {!work && [A, B].flatMap((patient) => patient ?? []).map(({ file, findings }) => `${file.name}: ${pluralize(findings.length, "finding")}. `)}
      </p>
      {differences && (
        <Card title="Why a resume from B would differ from A">
          <Findings findings={differences} good="It would not: the files agree." />
        </Card>
      )}
      {A && <Report key={`A${A.file.name}${A.file.lastModified}`} name="A" patient={A} definitions={known} />}
      {B && <Report key={`B${B.file.name}${B.file.lastModified}`} name="B" patient={B} definitions={known} />}
    </>
  );
};
