/** Shows a text with a button that copies it. */
import { useState } from "preact/hooks";

/** Copies the text and returns true. If the browser refuses, as without HTTPS, selects the text and returns false. */
const copyOrSelect = async (text: string, element: HTMLElement | null): Promise<boolean> => {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    if (element) getSelection()?.selectAllChildren(element);
    return false;
  }
};

export const Copyable = ({ text, label }: { readonly text: string; readonly label: string }) => {
  const [state, setState] = useState("Copy");
  const onClick = async (event: MouseEvent): Promise<void> => {
    const element = (event.currentTarget as HTMLElement).parentElement?.querySelector("pre") ?? null;
    setState((await copyOrSelect(text, element)) ? "Copied" : "Selected: press Ctrl+C");
    setTimeout(() => setState("Copy"), 2000);
  };
  return (
    <div class="copyable">
      {/* biome-ignore lint/a11y/noNoninteractiveTabindex: a region that scrolls must be reachable by keyboard */}
      <section tabIndex={0} aria-label={label}>
        <pre>{text}</pre>
      </section>
      <button type="button" onClick={onClick} aria-label={`${state}: ${label}`}>
        {state}
      </button>
    </div>
  );
};
