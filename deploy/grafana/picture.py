"""Draws docs/metrics.png: panels of stepd.json, as Grafana draws them from Prometheus.

test/prometheus/picture.ts produces load and calls this script. To call it by hand:

    python deploy/grafana/picture.py http://localhost:9090 --minutes 60 --output panels.png
"""

import argparse
import io
import json
import math
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, cast

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MultipleLocator
from PIL import Image

DASHBOARD = Path(__file__).with_name("stepd.json")

# The panels of the picture, in their order. Four are legible at the width of a page.
PANELS = ("Calls by outcome", "Calls: median, 99th percentile", "Refusals by reason", "Arena")
COLUMNS = 2
POINTS = 240
DPI = 80

# A small palette is enough for lines and text, and makes the file four times smaller.
COLOURS = 96

# The minimum number of gridlines.
LINES = 4

# The suffixes of a unit's multiples, and the factor between them.
SI = (1000.0, ("", " K", " M", " G", " T"))
IEC = (1024.0, (" B", " KiB", " MiB", " GiB", " TiB"))

Series = tuple[dict[str, str], list[float], list[float]]


def scaled(value: float, base: float, suffixes: tuple[str, ...]) -> str:
    for suffix in suffixes[:-1]:
        if abs(value) < base:
            return f"{value:.3g}{suffix}"
        value /= base
    return f"{value:.3g}{suffixes[-1]}"


def formatted(value: float, unit: str) -> str:
    """Format a value in one of the units of dashboard.ts."""
    if value == 0:
        return "0"
    if unit in ("bytes", "binBps"):
        return scaled(value, *IEC) + ("/s" if unit == "binBps" else "")
    if unit == "s":
        return f"{value * 1e6:.3g} us" if value < 1e-3 else f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    return scaled(value, *SI) + ("/s" if unit in ("reqps", "cps") else "")


def query(prometheus: str, expression: str, start: float, end: float) -> list[Series]:
    step = (end - start) / POINTS
    parameters = urllib.parse.urlencode({"query": expression, "start": start, "end": end, "step": step})
    with urllib.request.urlopen(f"{prometheus}/api/v1/query_range?{parameters}") as reply:
        result = json.load(reply)["data"]["result"]
    return [
        (series["metric"], [at - start for at, _ in series["values"]], [float(value) for _, value in series["values"]]) for series in result
    ]


def series_name(legend: str, labels: dict[str, str], instances: list[str]) -> str:
    """Return a series' name. Instances are numbered: their addresses are long."""
    for label, value in labels.items():
        text = f"stepd-{instances.index(value) + 1}" if label == "instance" else value
        legend = legend.replace("{{" + label + "}}", text)
    return legend


def draw(axes: Axes, panel: dict[str, Any], series: list[tuple[str, list[float], list[float]]], step: float) -> None:
    unit = panel["fieldConfig"]["defaults"]["unit"]
    stacking = panel["fieldConfig"]["defaults"]["custom"]["stacking"]["mode"]
    # A series that is always 0 shows nothing and takes space in the legend.
    shown = [one for one in series if any(value > 0 for value in one[2])] or series[:1]
    if stacking == "normal":
        times = sorted({at for _, points, _ in shown for at in points})
        columns = []
        for _, points, values in shown:
            known = dict(zip(points, values, strict=True))
            columns.append([known.get(at, 0.0) for at in times])
        axes.stackplot(times, columns, labels=[name for name, _, _ in shown], alpha=0.7)
    else:
        for name, points, values in shown:
            axes.plot(*with_gaps(points, values, step), linewidth=1.2, label=name)
    axes.set_title(panel["title"], fontsize=9, loc="left")
    axes.set_ylim(bottom=0)
    if unit in ("bytes", "binBps"):
        axes.yaxis.set_major_locator(MultipleLocator(2.0 ** math.floor(math.log2(max(axes.get_ylim()[1], 1) / LINES))))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: formatted(value, unit)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 60:.3g} min"))
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=6, loc="upper left", bbox_to_anchor=(-0.05, -0.08), ncols=3, frameon=False)


def with_gaps(points: list[float], values: list[float], step: float) -> tuple[list[float], list[float]]:
    """Add gaps to a line where samples are missing, as while a replica is down."""
    times, found = points[:1], values[:1]
    for before, at, value in zip(points, points[1:], values[1:], strict=False):
        if at - before > 1.5 * step:
            times.append(before + step)
            found.append(math.nan)
        times.append(at)
        found.append(value)
    return times, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prometheus", help="address of a Prometheus that scrapes stepd")
    parser.add_argument("--minutes", type=float, default=60, help="how far back (60)")
    parser.add_argument("--window", default="1m", help="window of the rates (1m)")
    parser.add_argument("--output", type=Path, required=True, help="PNG file to write")
    options = parser.parse_args()

    dashboard = cast(dict[str, Any], json.loads(DASHBOARD.read_text(encoding="utf-8")))
    panels = {panel["title"]: panel for panel in dashboard["panels"]}
    end = time.time()
    start = end - options.minutes * 60
    figure, grid = plt.subplots(-(-len(PANELS) // COLUMNS), COLUMNS, figsize=(10, 6.4))
    step = (end - start) / POINTS
    instances = sorted({labels["instance"] for labels, _, _ in query(options.prometheus, "up", start, end)})
    for axes, title in zip(grid.flat, PANELS, strict=True):
        found = []
        for target in panels[title]["targets"]:
            expression = target["expr"].replace("$__rate_interval", options.window).replace("$job", "stepd").replace("$instance", ".*")
            for labels, points, values in query(options.prometheus, expression, start, end):
                found.append((series_name(target["legendFormat"], labels, instances), points, values))
        draw(axes, panels[title], found, step)
        axes.set_xlim(0, end - start)
        axes.xaxis.set_major_locator(MultipleLocator(60 * max(1, round(options.minutes / 6))))
    figure.tight_layout()
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=DPI)
    Image.open(drawn).convert("RGB").quantize(COLOURS).save(options.output, optimize=True)


if __name__ == "__main__":
    main()
