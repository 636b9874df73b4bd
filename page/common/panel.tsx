/** Components and functions that all panels use. */
import type { ComponentChildren } from "preact";
import { useEffect, useState } from "preact/hooks";
import type { Summary } from "./session.ts";

export interface PanelProps {
  readonly summary: Summary;
  /** The part of the page's address after the panel's name. */
  readonly setting: string;
}

export const Card = ({ title, children }: { readonly title: string; readonly children: ComponentChildren }) => (
  <section class="card">
    <h2>{title}</h2>
    {children}
  </section>
);

/** A region that scrolls sideways on narrow screens. */
export const Scroll = ({ label, children }: { readonly label: string; readonly children: ComponentChildren }) => (
  // biome-ignore lint/a11y/noNoninteractiveTabindex: a region that scrolls must be reachable by keyboard
  <section class="scroll" tabIndex={0} aria-label={label}>
    {children}
  </section>
);

/** Shows an error message. Screen readers announce it. */
export const Failure = ({ error }: { readonly error: string | undefined }) =>
  error === undefined ? null : (
    <p class="failure" role="alert">
      {error}
    </p>
  );

export const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));

/** Loads a value, and loads it again when `inputs` change. The result of an outdated load is dropped. */
export const useLoaded = <Value,>(
  load: (isCurrent: () => boolean) => Promise<Value>,
  inputs: readonly unknown[],
): { readonly value: Value | undefined; readonly error: string | undefined } => {
  const [state, setState] = useState<{ value: Value | undefined; error: string | undefined }>({ value: undefined, error: undefined });
  useEffect(() => {
    let isCurrent = true;
    load(() => isCurrent).then(
      (value) => isCurrent && setState({ value, error: undefined }),
      (error) => isCurrent && setState((before) => ({ ...before, error: messageOf(error) })),
    );
    return () => {
      isCurrent = false;
    };
  }, inputs);
  return state;
};

/** Downloads bytes as a file. */
export const download = (name: string, contents: Uint8Array<ArrayBuffer>): void => {
  const url = URL.createObjectURL(new Blob([contents]));
  const link = Object.assign(document.createElement("a"), { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
};

/** Returns the address of a file from its meta element in index.html. */
export const assetUrl = (name: string): string => document.querySelector<HTMLMetaElement>(`meta[name="${name}"]`)?.content ?? "";
