"""Draws ratios with their goals: plot.py PICTURE < JSON

The JSON is a list of {name, median, min, goal}. Lower is better: a bar that ends left
of the mark for its goal meets the goal.
"""

from __future__ import annotations

import json
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

# These two colors are distinct under red-green color blindness.
REACHED, MISSED = "#0072b2", "#e69f00"


def main() -> None:
    ratios = json.load(sys.stdin)
    figure, axes = plt.subplots(figsize=(9, 0.6 + 0.27 * len(ratios)))
    rows = range(len(ratios))
    medians = [ratio["median"] for ratio in ratios]
    goals = [ratio["goal"] for ratio in ratios]
    colours = [
        REACHED if median <= goal else MISSED
        for median, goal in zip(medians, goals, strict=True)
    ]
    axes.barh(rows, medians, color=colours, height=0.65)
    minima = [ratio["min"] for ratio in ratios]
    axes.plot(minima, rows, "o", color="white", markeredgecolor="black", markersize=4)
    axes.plot(goals, rows, "|", color="black", markersize=12, markeredgewidth=2)
    axes.set_yticks(rows, [ratio["name"] for ratio in ratios], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0)
    axes.set_xlabel("time of stepd / time of the other (less is better)")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(
        handles=[
            Patch(color=REACHED, label="median, goal reached"),
            Patch(color=MISSED, label="median, goal not reached"),
            Line2D(
                [],
                [],
                marker="o",
                color="white",
                markeredgecolor="black",
                label="minima",
            ),
            Line2D([], [], marker="|", color="black", linestyle="", label="goal"),
        ],
        fontsize=8,
        ncols=4,
        loc="lower center",
        bbox_to_anchor=(0.3, 1),
        frameon=False,
    )
    figure.savefig(sys.argv[1], dpi=96, bbox_inches="tight")


if __name__ == "__main__":
    main()
