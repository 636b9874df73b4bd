/** Reads the panels of a Grafana dashboard in JSON, and their queries in the form that Prometheus accepts. */

interface Source {
  readonly type: string;
  readonly uid: string;
}

interface RawPanel {
  readonly id: number;
  readonly type: string;
  readonly title: string;
  readonly description?: string;
  readonly datasource?: Source;
  readonly gridPos: Panel["grid"];
  readonly fieldConfig?: { readonly defaults?: { readonly unit?: string } };
  readonly targets?: readonly { readonly expr: string; readonly datasource: Source }[];
  /** The panels inside a collapsed row. */
  readonly panels?: readonly RawPanel[];
}

export interface Panel {
  readonly id: number;
  readonly title: string;
  readonly description: string;
  readonly unit: string;
  readonly grid: { readonly x: number; readonly y: number; readonly w: number; readonly h: number };
  readonly queries: readonly string[];
  readonly sources: readonly (Source | undefined)[];
}

/** Returns all panels except the rows. */
export const panelsOf = (json: string): readonly Panel[] => {
  const { panels } = JSON.parse(json) as { panels: readonly RawPanel[] };
  return panels
    .flatMap((panel) => [panel, ...(panel.panels ?? [])])
    .filter(({ type }) => type !== "row")
    .map(({ id, title, description = "", datasource, gridPos, fieldConfig, targets = [] }) => ({
      id,
      title,
      description,
      unit: fieldConfig?.defaults?.unit ?? "",
      grid: gridPos,
      queries: targets.map(({ expr }) => expr),
      sources: [datasource, ...targets.map((target) => target.datasource)],
    }));
};

/** Replaces Grafana's variables in a query. */
export const withoutVariables = (query: string, rateInterval: string): string =>
  query.replaceAll("$__rate_interval", rateInterval).replaceAll("$job", "stepd").replaceAll("$instance", ".*");
