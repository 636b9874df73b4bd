"""Draws relative times as bars: plot.py PICTURE TITLE < JSON

The JSON is a list of {name, value}. Lower is better.
"""

from __future__ import annotations

import json
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# These two colors are distinct under red-green color blindness.
OURS, OTHERS = "#0072b2", "#999999"


def main() -> None:
    bars = json.load(sys.stdin)
    picture, title = sys.argv[1:]
    figure, axes = plt.subplots(figsize=(8, 0.9 + 0.5 * len(bars)))
    colours = [OURS if bar["name"].startswith("stepd") else OTHERS for bar in bars]
    drawn = axes.barh(
        [bar["name"] for bar in bars],
        [bar["value"] for bar in bars],
        color=colours,
        height=0.6,
    )
    axes.bar_label(drawn, fmt="%.2f", padding=4, fontsize=11)
    axes.invert_yaxis()
    axes.set_title(title, loc="left", fontsize=12)
    axes.tick_params(axis="y", length=0, labelsize=11)
    axes.xaxis.set_visible(False)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    figure.savefig(picture, dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    main()
