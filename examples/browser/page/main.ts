/** Runs the page: reads the visitor's choices, trains, and shows the progress. */
import { Client, type Optimizer, StepdError, TransportError } from "@stepd/client";
import { type Digits, PIXELS, readDigits, WIDTH } from "./digits.ts";
import { accuracyOf, predictions, sizeOf, start } from "./model.ts";
import { Plot } from "./plot.ts";
import { type Progress, train } from "./train.ts";

/** Hyperparameters that suit this task. An optimizer without an entry starts with the server's defaults. */
const SUITABLE_SETTINGS: Readonly<Record<string, Readonly<Record<string, unknown>>>> = {
  adadelta: { lr: 1 },
  adagrad: { lr: 0.05 },
  adam: { lr: 0.01 },
  adamax: { lr: 0.01 },
  adamw: { lr: 0.01 },
  lamb: { lr: 0.02 },
  lars: { lr: 1, momentum: 0.9, trust_coefficient: 0.01 },
  lion: { lr: 0.001 },
  nadam: { lr: 0.01 },
  qhadam: { lr: 0.01 },
  qhadamw: { lr: 0.01 },
  qhm: { lr: 0.5, momentum: 0.9, nu: 0.7 },
  radam: { lr: 0.01 },
  rmsprop: { lr: 0.003 },
  sgd: { lr: 0.1, momentum: 0.9 },
};

const COLORS = ["#2563eb", "#dc2626", "#059669", "#9333ea", "#d97706", "#0891b2", "#db2777", "#4d7c0f"];
const SHOWN_DIGITS = 40;
/** The number of steps between two points of the plot. The browser draws after each point. */
const PLOT_EVERY = 5;

const find = <Type extends Element>(selector: string): Type => {
  const element = document.querySelector<Type>(selector);
  if (!element) throw new Error(`the page has no ${selector}`);
  return element;
};

const form = find<HTMLFormElement>("form");
const choice = find<HTMLSelectElement>("#optimizer");
const rate = find<HTMLInputElement>("#rate");
const epochs = find<HTMLInputElement>("#epochs");
const anneal = find<HTMLInputElement>("#anneal");
const button = find<HTMLButtonElement>("button");
const bar = find<HTMLProgressElement>("progress");
const status = find<HTMLOutputElement>("#status");
const formula = find<HTMLElement>("#formula");
const runs = find<HTMLTableSectionElement>("tbody");

const lossPlot = new Plot(find("#loss"), {
  title: "Training loss (logarithmic)",
  place: (loss) => (Math.log10(loss) + 3) / 4,
  ticks: [
    [10, "10"],
    [1, "1"],
    [0.1, "0.1"],
    [0.01, "0.01"],
    [0.001, "0.001"],
  ],
});
const accuracyPlot = new Plot(find("#accuracy"), {
  title: "Test accuracy",
  place: (accuracy) => (accuracy - 0.5) / 0.5,
  ticks: [
    [1, "100 %"],
    [0.9, "90 %"],
    [0.8, "80 %"],
    [0.7, "70 %"],
    [0.6, "60 %"],
    [0.5, "50 %"],
  ],
});

const server = new URLSearchParams(location.search).get("stepd") ?? "http://127.0.0.1:8080";
const client = new Client(server);

const percent = (part: number): string => `${(100 * part).toFixed(1)} %`;

const frame = (): Promise<unknown> => new Promise(requestAnimationFrame);

/** Draws some test images with the digits that the network predicts. */
const showDigits = (test: Digits, guessed: Uint8Array): void => {
  const figures = Array.from({ length: SHOWN_DIGITS }, (_, index) => {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = WIDTH;
    const image = new ImageData(WIDTH, WIDTH);
    for (let pixel = 0; pixel < PIXELS; pixel++) image.data.set([15, 23, 42, 255 * (test.pixels[index * PIXELS + pixel] ?? 0)], pixel * 4);
    canvas.getContext("2d")?.putImageData(image, 0, 0);
    const figure = document.createElement("figure");
    figure.className = guessed[index] === test.labels[index] ? "right" : "wrong";
    figure.append(canvas, String(guessed[index]));
    return figure;
  });
  find("#digits").replaceChildren(...figures);
};

/** Adds a row to the table of runs, and returns a function that sets its cells. */
const addRun = (color: string, optimizer: Optimizer): ((cells: readonly string[]) => void) => {
  const row = runs.insertRow();
  const { name, ...settings } = optimizer;
  const sample = document.createElement("i");
  sample.style.background = color;
  row.insertCell().append(sample, name);
  row.insertCell().textContent = Object.entries(settings)
    .map(([key, value]) => `${key} ${value}`)
    .join(", ");
  const cells = [row.insertCell(), row.insertCell(), row.insertCell(), row.insertCell()];
  return (texts) => {
    for (const [index, text] of texts.entries()) if (cells[index]) cells[index].textContent = text;
  };
};

const run = async (train_: Digits, test: Digits, signal: AbortSignal): Promise<void> => {
  const optimizer = { ...SUITABLE_SETTINGS[choice.value], name: choice.value, lr: rate.valueAsNumber } as Optimizer;
  const color = COLORS[runs.rows.length % COLORS.length] as string;
  const showRun = addRun(color, optimizer);
  const settings = { optimizer, epochs: epochs.valueAsNumber, anneal: anneal.checked };
  const begun = performance.now();
  let curves: readonly ReturnType<Plot["curve"]>[] | undefined;
  let losses: number[] = [];
  let last: Progress | undefined;
  for await (const now of train(client, train_, settings, signal)) {
    last = now;
    const { step, steps, epoch, loss, network } = now;
    curves ??= [lossPlot.curve(color, steps), accuracyPlot.curve(color, steps)];
    losses.push(loss);
    if (step % PLOT_EVERY !== 0 && step < steps) continue;
    const mean = losses.reduce((sum, value) => sum + value, 0) / losses.length;
    losses = [];
    const guessed = predictions(network, test);
    const accuracy = accuracyOf(guessed, test);
    curves[0]?.add(step, mean);
    curves[1]?.add(step, accuracy);
    bar.max = steps;
    bar.value = step;
    const speed = (1000 * step) / (performance.now() - begun);
    status.value = `epoch ${epoch} of ${settings.epochs}, step ${step} of ${steps}, ${speed.toFixed(0)} steps/s`;
    showRun([String(step), mean.toFixed(4), percent(accuracy), `${((performance.now() - begun) / 1000).toFixed(1)} s`]);
    showDigits(test, guessed);
    await frame();
  }
  status.value = `done: ${last?.step ?? 0} steps, the state has ${last?.state.bytes.length ?? 0} bytes`;
};

const sentenceOf = (error: unknown): string => {
  if (error instanceof StepdError) return `stepd refused: ${error.message}`;
  if (error instanceof TransportError) return `${error.message}. Does stepd run, and does it allow ${location.origin} (STEPD_CORS_ORIGINS)?`;
  return error instanceof DOMException && error.name === "AbortError" ? "stopped" : String(error);
};

const begin = async (): Promise<void> => {
  const file = await (await fetch("digits.bin")).arrayBuffer();
  const { train: train_, test } = readDigits(new Uint8Array(file));
  showDigits(test, predictions(start(1), test));
  find("#data").textContent = `${train_.count} images to train on, ${test.count} to test with, a network of ${sizeOf(start(1))} parameters; stepd at ${server}`;

  const optimizers = await client.optimizers();
  choice.replaceChildren(...optimizers.map(({ name, title }) => new Option(title, name)));
  choice.value = "adamw";
  const choose = async (): Promise<void> => {
    formula.textContent = optimizers.find(({ name }) => name === choice.value)?.formula ?? "";
    const { hyperparameters } = await client.describe(choice.value);
    const { lr } = hyperparameters["properties"] as { lr?: { default?: number } };
    rate.value = String(SUITABLE_SETTINGS[choice.value]?.["lr"] ?? lr?.default ?? 0.01);
  };
  choice.addEventListener("change", () => void choose());
  await choose();

  let running: AbortController | undefined;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (running) return running.abort();
    running = new AbortController();
    button.textContent = "Stop";
    document.body.dataset["state"] = "training";
    try {
      await run(train_, test, running.signal);
      document.body.dataset["state"] = "done";
    } catch (error) {
      status.value = sentenceOf(error);
      document.body.dataset["state"] = "failed";
    }
    running = undefined;
    button.textContent = "Train";
  });
  button.disabled = false;
  document.body.dataset["state"] = "ready";
};

begin().catch((error: unknown) => {
  status.value = sentenceOf(error);
  document.body.dataset["state"] = "failed";
});
