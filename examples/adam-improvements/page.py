"""Writes the tables of docs/adam-improvements.md and docs/narrow-moments.md.

The results of a page are in the folder of the same name. With --check the script writes
nothing, and exits with 1 if a page differs. Arguments name other pages.

The script needs no package, so that the check runs everywhere.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from itertools import permutations
from math import log2, log10
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

Json = dict[str, Any]

DOCS = Path(__file__).parents[2] / "docs"
NARROW_PAGE = DOCS / "narrow-moments.md"
PAGES = [DOCS / "adam-improvements.md", NARROW_PAGE]

#: The formats of moments that narrow_moments.py compares.
FORMATS = ("F32", "BF16", "Q8")


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


def forms_of(row: Json) -> list[tuple[str, Json, int]]:
    """Return the forms of weight decay: a label, the results, and their shift.

    Torch's form divides the decays of the paper's form by lr. So with shift 1 the same
    decay stands one place further right at the next rate.
    """
    adam, adamw = row["forms"]
    return [
        ("Adam, L2 in the gradient", adam, 0),
        ("AdamW, the paper's form", adamw, 0),
        ("AdamW, torch's form", adamw, 1),
    ]


def best_decays(form: Json, seed: int | None = None) -> list[int]:
    """Return the place of each rate's best decay by validation error.

    The error is the mean of all seeds, or that of one.
    """
    return [
        min(
            range(len(errors)),
            key=lambda at: fmean(errors[at]) if seed is None else errors[at][seed],
        )
        for errors in form["valid_error"]
    ]


def _slope(rates: Sequence[float], decays: Sequence[float]) -> float:
    """Return the slope of log decay over log rate, by least squares."""
    x, y = [log10(rate) for rate in rates], [log10(decay) for decay in decays]
    x = [value - fmean(x) for value in x]
    return sum(a * b for a, b in zip(x, y, strict=True)) / sum(a * a for a in x)


def _heat_map_column(row: Json, form: Json, shift: int, seeds: int) -> list[str]:
    rates, decays, errors = row["rates"], form["decays"], form["test_error"]
    count, best = len(rates), best_decays(form)

    def excess(columns: Sequence[int], seed: int, used: int) -> float:
        """Return the error above that of the rate's best decay."""
        # A decay beyond the grid counts as the nearest one of the grid.
        column = min(max(columns[used], 0), len(decays) - 1)
        return float(errors[used][column][seed] - errors[used][best[used]][seed])

    def line(start: int) -> list[int]:
        """Return the places of one decay at all rates, from that at the first."""
        return [start + shift * at for at in range(count)]

    def costs(start: int) -> list[float]:
        return [
            fmean(excess(line(start), seed, used) for used in range(count))
            for seed in range(seeds)
        ]

    def valid(start: int) -> float:
        places = [min(max(at, 0), len(decays) - 1) for at in line(start)]
        return fmean(
            fmean(by_decay[at])
            for by_decay, at in zip(form["valid_error"], places, strict=True)
        )

    lost = [
        fmean(
            excess(line(best[chosen] - shift * chosen), seed, used)
            for chosen, used in permutations(range(count), 2)
        )
        for seed in range(seeds)
    ]
    slopes = [
        _slope(rates, [decays[at] for at in best_decays(form, seed)]) - shift
        for seed in range(seeds)
    ]
    single = min(range(-shift * (count - 1), len(decays)), key=valid)
    top = min(range(count), key=lambda at: fmean(form["valid_error"][at][best[at]]))
    scales = [rate**shift for rate in rates]
    return [
        *(
            f"{format_power(decays[at] / scale)}: {mean_and_deviation(by_decay[at])}"
            for by_decay, at, scale in zip(errors, best, scales, strict=True)
        ),
        mean_and_deviation(lost),
        mean_and_deviation(costs(single)),
        mean_and_deviation(slopes, sign="+"),
        f"{mean_and_deviation(errors[top][best[top]])}; loss "
        f"{mean_and_deviation(form['test_loss'][top][best[top]], 3)}",
    ]


def heat_map(results: Json) -> str:
    tables = []
    for title, row in results["rows"].items():
        forms = forms_of(row)
        columns = [
            _heat_map_column(row, form, shift, len(results["seeds"]))
            for _, form, shift in forms
        ]
        labels = [
            *(f"lr {format_power(rate)}" for rate in row["rates"]),
            "lost with another rate's best decay",
            "lost with one decay for all rates",
            "slope of log best decay over log lr, by seed",
            "best setting",
        ]
        rows = [list(cells) for cells in zip(labels, *columns, strict=True)]
        head = ["", *(label for label, _, _ in forms)]
        tables.append(f"{title}:\n\n{table(head, rows)}")
    return "\n\n".join(tables)


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


def narrow_moments(results: Json) -> str:
    rows = []
    for problem, found in results["problems"].items():
        for place, name in enumerate(results["optimizers"]):
            loss, accuracy = (
                found[key][place] for key in ("test_loss", "test_accuracy")
            )
            rows.append(
                [
                    problem,
                    f"{name}, lr {format_power(found['rates'][place])}",
                    *(mean_and_deviation(by_seed, 3) for by_seed in loss),
                    *(mean_and_deviation(by_seed, 1) for by_seed in accuracy),
                ]
            )
    head = [
        "data",
        "optimizer",
        *(f"test loss, {form}" for form in FORMATS),
        *(f"accuracy in %, {form}" for form in FORMATS),
    ]
    return table(head, rows)


TABLES: dict[str, Callable[[Json], str]] = {
    "heat_map": heat_map,
    "annealing": annealing,
    "early_steps": early_steps,
    "batch_size": batch_size,
    "narrow_moments": narrow_moments,
}


def page_text(page: Path) -> str:
    """Return the page's text, with a table for each result in the page's folder."""
    text = page.read_text()
    for file in sorted(page.with_suffix("").glob("*.json")):
        name = file.stem
        begin = f"<!-- begin {name}: DO NOT EDIT, written by page.py -->"
        end = f"<!-- end {name} -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise SystemExit(f"{page}: expected {begin} and {end}")
        made = TABLES[name](json.loads(file.read_text()))
        text = f"{before}{begin}\n\n{made}\n\n{end}{after}"
    return text


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("pages", nargs="*", type=Path, help="(both pages)")
    arguments = parser.parse_args()
    for page in arguments.pages or PAGES:
        text = page_text(page)
        if not arguments.check:
            page.write_text(text)
        elif text != page.read_text():
            print(f"{page} and its results disagree; run page.py", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
