"""Writes the tables of docs/adam-improvements.md from the results in its folder.

With --check the script writes nothing, and exits with 1 if the page differs. The
argument may name another page. Its results are then in the folder of the same name.

The script needs no package, so that the check runs everywhere.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from itertools import permutations
from math import log2
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

Json = dict[str, Any]

PAGE = Path(__file__).parents[2] / "docs/adam-improvements.md"


def mean_and_deviation(values: Sequence[float], digits: int = 2, sign: str = "") -> str:
    """Return the mean and the sample standard deviation as text."""
    return f"{fmean(values):{sign}.{digits}f} ± {stdev(values):.{digits}f}"


def differences(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return the difference for each seed. Runs of one seed share first weights and
    batches.
    """
    return [a - b for a, b in zip(ours, theirs, strict=True)]


def format_power(value: float) -> str:
    """Format a number of a logarithmic grid: 3e-4, 1e1."""
    digit, exponent = f"{value:.0e}".split("e")
    return f"{digit}e{int(exponent)}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def heat_map(results: Json) -> str:
    rates: list[float] = results["rates"]
    columns = []
    for form in results["forms"].values():
        decays, errors = form["decays"], form["test_error"]
        best = [
            min(range(len(decays)), key=lambda at: fmean(row[at])) for row in errors
        ]
        column = [
            f"{format_power(decays[at])}: {mean_and_deviation(row[at])}"
            for at, row in zip(best, errors, strict=True)
        ]
        # The loss is a mean over all pairs of learning rates. The decay chosen at the
        # first rate of a pair is used at the second rate.
        pairs = list(permutations(range(len(rates)), 2))
        lost = [
            fmean(
                errors[used][best[chosen]][seed] - errors[used][best[used]][seed]
                for chosen, used in pairs
            )
            for seed in range(len(results["seeds"]))
        ]
        columns.append([*column, mean_and_deviation(lost)])
    labels = [*(format_power(rate) for rate in rates), "lost with another rate's decay"]
    rows = [list(row) for row in zip(labels, *columns, strict=True)]
    return table(["lr", *results["forms"]], rows)


def annealing(results: Json) -> str:
    contenders: Json = results["contenders"]
    last = {
        label: [epochs[-1] for epochs in contender["test_accuracy"]]
        for label, contender in contenders.items()
    }
    rival = "SGD, cosine"
    rows = []
    for label, contender in contenders.items():
        optimizer = contender["optimizer"]
        against = differences(last[label], last[rival])
        rows.append(
            [
                label,
                f"{optimizer['lr']:g}",
                f"{optimizer['weight_decay']:g}",
                mean_and_deviation(last[label]),
                "" if label == rival else mean_and_deviation(against, sign="+"),
                ""
                if label == rival
                else f"{sum(d > 0 for d in against)} of {len(against)}",
            ]
        )
    head = ["", "lr", "decay", "test accuracy in %", f"over {rival}", "seeds ahead"]
    return table(head, rows)


#: The table shows these steps.
EARLY = (10, 25, 50, 100, 300)


def early_steps(results: Json) -> str:
    places = {
        step: results["at"].index(step) for step in EARLY if step in results["at"]
    }
    rows = []
    for plain, quasi in (("adam", "qhadam"), ("adamw", "qhadamw")):
        for row, rate in enumerate(results["rates"]):
            cells = []
            for place in places.values():
                ours, theirs = (
                    [seed[place] for seed in results["loss"][name][row]]
                    for name in (quasi, plain)
                )
                ahead = sum(a < b for a, b in zip(ours, theirs, strict=True))
                change = [100 * (a / b - 1) for a, b in zip(ours, theirs, strict=True)]
                cells.append(
                    f"{fmean(theirs):.3f}; {mean_and_deviation(change, 1, '+')} % "
                    f"({ahead} of {len(change)})"
                )
            rows.append([f"{plain}, {quasi}", f"{rate:g}", *cells])
    return table(["", "lr", *(f"step {step}" for step in places)], rows)


def batch_size(results: Json) -> str:
    batches: list[int] = results["batches"]
    contenders: Json = results["contenders"]
    best_rows, scaled_rows = [], []
    for index, batch in enumerate(batches):
        steps = results["epochs"] * (results["train"] // batch)
        best, scaled = [], []
        for contender in contenders.values():
            rates, accuracy = contender["rates"], contender["test_accuracy"][index]
            place = contender["best"][index]
            best.append(f"{mean_and_deviation(accuracy[place])} ({rates[place]:.2g})")
            # Rates are powers of 2. For 4 times the batch size, the square-root rule
            # doubles the rate, so it selects the next rate of the grid.
            place = contender["best"][0] + round(log2(batch / batches[0]) / 2)
            scaled.append(
                f"{mean_and_deviation(accuracy[place])} ({rates[place]:.2g})"
                if place < len(rates)
                else "beyond the grid"
            )
        best_rows.append([str(batch), str(steps), *best])
        scaled_rows.append([str(batch), str(steps), *scaled])
    head = ["batch", "steps", *contenders]
    return (
        "The best rate of each batch size (in brackets), chosen by validation loss:\n\n"
        f"{table(head, best_rows)}\n\n"
        f"The best rate of batch {batches[0]}, times the root of the growth:\n\n"
        f"{table(head, scaled_rows)}"
    )


TABLES: dict[str, Callable[[Json], str]] = {
    "heat_map": heat_map,
    "annealing": annealing,
    "early_steps": early_steps,
    "batch_size": batch_size,
}


def page_text(page: Path) -> str:
    """Return the page's text, with the tables filled from its results."""
    text = page.read_text()
    for name, make in TABLES.items():
        results = json.loads((page.with_suffix("") / f"{name}.json").read_text())
        begin = f"<!-- begin {name}: DO NOT EDIT, written by page.py -->"
        end = f"<!-- end {name} -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise SystemExit(f"{page}: expected {begin} and {end}")
        text = f"{before}{begin}\n\n{make(results)}\n\n{end}{after}"
    return text


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument(
        "page", nargs="?", type=Path, default=PAGE, help="(%(default)s)"
    )
    arguments = parser.parse_args()
    text = page_text(arguments.page)
    if not arguments.check:
        arguments.page.write_text(text)
    elif text != arguments.page.read_text():
        print("the page and its results disagree; run page.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
