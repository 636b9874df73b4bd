/** Renders the page: its frame, the panels, and the dialog that asks for a token. */
import { type ComponentType, render } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { assetUrl, Failure, messageOf, type PanelProps } from "./common/panel.tsx";
import { askForToken, requestJson, type Summary, setTokenDialog } from "./common/session.ts";
import "uplot/dist/uPlot.min.css";
import "./style.css";

interface Panel {
  readonly id: string;
  readonly title: string;
  /** Loads the panel's code when a visitor opens it. */
  readonly load: () => Promise<ComponentType<PanelProps>>;
}

const PANELS: readonly Panel[] = [
  { id: "now", title: "Now", load: () => import("./now/now.tsx").then(({ Now }) => Now) },
  { id: "doctor", title: "State doctor", load: () => import("./doctor/doctor.tsx").then(({ Doctor }) => Doctor) },
  { id: "try", title: "Try", load: () => import("./try/try.tsx").then(({ Try }) => Try) },
  { id: "schedules", title: "Schedules", load: () => import("./schedules/schedules.tsx").then(({ Schedules }) => Schedules) },
  { id: "plan", title: "Plan", load: () => import("./plan/plan.tsx").then(({ PlanPanel }) => PlanPanel) },
  { id: "api", title: "API", load: () => import("./reference/reference.tsx").then(({ Reference }) => Reference) },
];

const FIRST = PANELS[0] as Panel;

/** Reads the panel and its setting from the page's address, such as #try?optimizers=adam. */
const readPlace = (): { readonly panel: Panel; readonly setting: string } => {
  const [, id = "", setting = ""] = /^#([^?]*)\??(.*)$/.exec(location.hash) ?? [];
  return { panel: PANELS.find((panel) => panel.id === id) ?? FIRST, setting };
};

const THEMES = ["system", "light", "dark"] as const;
type Theme = (typeof THEMES)[number];

/** Reads the visitor's choice of a theme. Without storage, the page follows the system's theme. */
const storedTheme = (): Theme => {
  try {
    return THEMES.find((theme) => theme === localStorage.getItem("stepd-theme")) ?? "system";
  } catch {
    return "system";
  }
};

const ThemeChoice = () => {
  const [theme, setTheme] = useState(storedTheme);
  useEffect(() => {
    document.documentElement.dataset["theme"] = theme;
    document.dispatchEvent(new Event("themechange"));
    try {
      localStorage.setItem("stepd-theme", theme);
    } catch {
      // Without storage, the choice is lost when the page is closed.
    }
  }, [theme]);
  return (
    <label class="theme">
      Theme{" "}
      <select value={theme} onChange={(event) => setTheme(event.currentTarget.value as Theme)}>
        {THEMES.map((name) => (
          <option key={name}>{name}</option>
        ))}
      </select>
    </label>
  );
};

interface Question {
  readonly reason: string;
  readonly answer: (token: string) => void;
}

/** A token consists of visible ASCII characters. Others would make the header invalid. Spaces around it come from copying. */
const TOKEN = "\\s*[\\x21-\\x7e]+\\s*";

const TokenDialog = () => {
  const [question, setQuestion] = useState<Question>();
  const dialog = useRef<HTMLDialogElement>(null);
  useEffect(() => setTokenDialog((reason) => new Promise((answer) => setQuestion({ reason, answer }))), []);
  useEffect(() => {
    if (question) dialog.current?.showModal();
    else dialog.current?.close();
  }, [question]);
  // Browsers close a dialog at the second Escape in any case, but without a token the page can do nothing.
  const onClose = (): void => {
    if (question) dialog.current?.showModal();
  };
  const onSubmit = (event: SubmitEvent): void => {
    event.preventDefault();
    const field = (event.currentTarget as HTMLFormElement).elements.namedItem("token") as HTMLInputElement;
    const given = field.value.trim();
    field.value = "";
    setQuestion(undefined);
    question?.answer(given);
  };
  return (
    <dialog ref={dialog} aria-labelledby="token-title" onCancel={(event) => event.preventDefault()} onClose={onClose}>
      <form onSubmit={onSubmit}>
        <h2 id="token-title">This server needs a token</h2>
        <p>{question?.reason}</p>
        <label>
          Token
          <input name="token" type="password" autocomplete="off" required pattern={TOKEN} title="Visible ASCII characters, without spaces between them" />
        </label>
        <p class="hint">The token stays in this tab's memory, and goes only to this server and its replicas.</p>
        <button type="submit">Use it</button>
      </form>
    </dialog>
  );
};

const Frame = () => {
  const [{ panel, setting }, setPlace] = useState(readPlace);
  const [summary, setSummary] = useState<Summary>();
  const [summaryError, setSummaryError] = useState<string>();
  const [panelError, setPanelError] = useState<string>();
  const [loaded, setLoaded] = useState<{ readonly id: string; readonly Content: ComponentType<PanelProps> }>();
  const main = useRef<HTMLElement>(null);
  useEffect(() => {
    const onMove = (): void => setPlace(readPlace());
    addEventListener("hashchange", onMove);
    return () => removeEventListener("hashchange", onMove);
  }, []);
  useEffect(() => {
    requestJson<Summary>("")
      .then(async (given) => {
        if (given.authentication === "bearer") await askForToken("Ask whoever runs it for one.");
        setSummary(given);
      })
      .catch((error) => setSummaryError(`The server was not reached: ${messageOf(error)}`));
  }, []);
  useEffect(() => {
    document.title = `${panel.title} · stepd`;
    setPanelError(undefined);
    let isCurrent = true;
    panel.load().then(
      (Content) => isCurrent && setLoaded({ id: panel.id, Content }),
      () => isCurrent && setPanelError("The panel was not loaded: the server does not answer, or has another version by now. Load the page again."),
    );
    return () => {
      isCurrent = false;
    };
  }, [panel]);
  const error = summaryError ?? panelError;
  return (
    <>
      <button type="button" class="skip" onClick={() => main.current?.focus()}>
        Skip to the panel
      </button>
      <header>
        <strong>stepd</strong>
        <nav aria-label="Panels">
          {PANELS.map(({ id, title }) => (
            <a key={id} href={`#${id}`} aria-current={id === panel.id ? "page" : undefined}>
              {title}
            </a>
          ))}
        </nav>
        <ThemeChoice />
      </header>
      <main ref={main} id="content" tabIndex={-1}>
        <h1>{panel.title}</h1>
        <Failure error={error} />
        {summary && loaded?.id === panel.id ? <loaded.Content summary={summary} setting={setting} /> : error === undefined && <p role="status">Loading …</p>}
      </main>
      <footer>
        stepd {summary?.version} · <a href="openapi.json">OpenAPI</a> · <a href="openrpc.json">OpenRPC</a> ·{" "}
        <a href={assetUrl("licenses")}>Licenses of this page</a>
      </footer>
      <TokenDialog />
    </>
  );
};

render(<Frame />, document.body);
