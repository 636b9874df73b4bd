"""Code that the scripts share: it reads options, writes results and saves figures."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import stepd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from _train import Digits, load_digits

Json = dict[str, Any]
Values = npt.NDArray[np.float64]

DOCS = Path(__file__).parents[2] / "docs/adam-improvements"

#: Colours that are distinct under colour blindness (Okabe and Ito, 2008), each with its
#: own line style and marker.
STYLES: list[Json] = [
    {"color": "#0072B2", "linestyle": "-", "marker": "o"},
    {"color": "#D55E00", "linestyle": "--", "marker": "s"},
    {"color": "#009E73", "linestyle": "-.", "marker": "^"},
    {"color": "#CC79A7", "linestyle": ":", "marker": "D"},
    {"color": "#E69F00", "linestyle": (0, (3, 1, 1, 1)), "marker": "P"},
    {"color": "#000000", "linestyle": (0, (5, 1, 1, 1, 1, 1)), "marker": "v"},
]


def run(
    name: str,
    description: str,
    measure: Callable[[stepd.Client, Digits, bool], Json],
    draw: Callable[[Json], Figure],
    *,
    folder: Path = DOCS,
) -> None:
    """Measure, write the results to NAME.json in a folder, and draw NAME.png."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--url",
        default=os.environ.get("STEPD_URL", "http://127.0.0.1:8080"),
        help="where stepd listens (STEPD_URL, or %(default)s)",
    )
    parser.add_argument(
        "--out", type=Path, default=folder, help="folder of the results (%(default)s)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a tiny run, to see that everything works"
    )
    parser.add_argument(
        "--draw", action="store_true", help="only draw the results that are there"
    )
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / f"{name}.json"
    if not arguments.draw:
        shared = os.environ.get("STEPD_SHARED_DIR") or None
        with stepd.Client(arguments.url, shared_dir=shared) as client:
            results = measure(client, load_digits(), arguments.quick)
        file.write_text(json.dumps(results) + "\n")
    matplotlib.use("Agg")
    plt.rcParams.update({"font.size": 9, "axes.grid": True, "grid.alpha": 0.3})
    figure = draw(json.loads(file.read_text()))
    # The file omits matplotlib's version, so that equal results give equal files.
    figure.savefig(arguments.out / f"{name}.png", dpi=110, metadata={"Software": None})


def numbers(array: npt.ArrayLike, digits: int = 5) -> Any:
    """Convert an array to lists for JSON. NaN of a diverged network becomes null."""
    rounded = np.round(np.asarray(array, np.float64), digits)
    values = rounded.astype(object)
    values[~np.isfinite(rounded)] = None
    return values.tolist()


def array(values: Any) -> Values:
    """Convert lists from JSON to an array. null becomes NaN."""
    return np.array(values, np.float64)


def band(
    axis: Axes, x: Sequence[int], by_seed: Values, label: str, style: Json
) -> None:
    """Draw the mean over the seeds as a line, and the standard deviation as a band."""
    mean, spread = by_seed.mean(axis=0), by_seed.std(axis=0, ddof=1)
    axis.plot(x, mean, label=label, linewidth=1.4, markersize=4, **style)
    axis.fill_between(
        x,
        mean - spread,
        mean + spread,
        color=style["color"],
        alpha=0.13,
        linewidth=0,
    )
