/** The parts that all panels share. */
import type { ComponentChildren } from "preact";
import { useEffect, useState } from "preact/hooks";
import type { Summary } from "./session.ts";

export interface PanelProps {
  readonly summary: Summary;
  /** The part of the address after the panel's name. */
  readonly setting: string;
}

export const Card = ({ title, children }: { readonly title: string; readonly children: ComponentChildren }) => (
  <section class="card">
    <h2>{title}</h2>
    {children}
  </section>
);

/** An error, which screen readers announce. */
export const Failure = ({ error }: { readonly error: string | undefined }) =>
  error === undefined ? null : (
    <p class="failure" role="alert">
      {error}
    </p>
  );

export const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));

/** Loads a value once per change of `inputs`. A later load overrides an earlier one. */
export const useLoaded = <Value,>(
  load: () => Promise<Value>,
  inputs: readonly unknown[],
): { readonly value: Value | undefined; readonly error: string | undefined } => {
  const [state, setState] = useState<{ value: Value | undefined; error: string | undefined }>({ value: undefined, error: undefined });
  useEffect(() => {
    let isCurrent = true;
    load().then(
      (value) => isCurrent && setState({ value, error: undefined }),
      (error) => isCurrent && setState((before) => ({ ...before, error: messageOf(error) })),
    );
    return () => {
      isCurrent = false;
    };
  }, inputs);
  return state;
};

/** Offers bytes as a file. */
export const download = (name: string, contents: Uint8Array<ArrayBuffer>): void => {
  const url = URL.createObjectURL(new Blob([contents]));
  const link = Object.assign(document.createElement("a"), { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
};

/** The address of a file that index.html names. */
export const asset = (name: string): string => document.querySelector<HTMLMetaElement>(`meta[name="${name}"]`)?.content ?? "";
