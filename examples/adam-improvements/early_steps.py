"""Do QHAdam and QHAdamW learn faster than Adam and AdamW in the early steps?

All four start from the same weights and see the same batches, at several learning
rates. The validation loss is measured from the first step on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import stepd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from tqdm import tqdm

from _report import STYLES, Json, array, band, numbers, run
from _train import Digits, Sweep, advance, run_parallel

#: The betas and nus are those that the QHAdam paper recommends.
OPTIMIZERS: dict[str, Json] = {
    "adam": {},
    "qhadam": {"betas": [0.995, 0.999], "nus": [0.7, 1.0]},
    "adamw": {"weight_decay": 0.01},
    "qhadamw": {"betas": [0.995, 0.999], "nus": [0.7, 1.0], "weight_decay": 0.01},
}


#: Lines have no markers, because there are too many steps.
LINES = [{**style, "marker": None} for style in STYLES]

PAIRS = (("adam", "qhadam"), ("adamw", "qhadamw"))


def measure(client: stepd.Client, digits: Digits, quick: bool) -> Json:
    seeds = list(range(2 if quick else 10))
    rates = [3e-3] if quick else [1e-3, 3e-3, 1e-2, 3e-2]
    steps, every, batch = (20, 5, 64) if quick else (300, 5, 64)
    valid = 200 if quick else 2000
    results: Json = {
        "seeds": seeds,
        "batch": batch,
        "valid": valid,
        "rates": rates,
        "at": list(range(every, steps + 1, every)),
        "optimizers": OPTIMIZERS,
    }
    with tqdm(total=len(OPTIMIZERS) * steps, unit="step", desc="early steps") as bar:

        def losses_of(name: str) -> Any:
            """Return losses, indexed by rate, then by seed, then by step."""
            sweep = Sweep(
                client,
                digits,
                name,
                [{**OPTIMIZERS[name], "lr": rate} for rate in rates],
                seeds,
                train=len(digits.images) - valid,
                batch=batch,
                valid=valid,
            )
            losses = []
            for step in range(1, steps + 1):
                sweep.step()
                if step % every == 0:
                    losses.append(sweep.validation()[0])
                advance(bar)
            return numbers(np.stack(losses, axis=-1), 4)

        found = run_parallel(losses_of, list(OPTIMIZERS))
    results["loss"] = dict(zip(OPTIMIZERS, found, strict=True))
    return results


def draw(results: Json) -> Figure:
    """Plot the loss for each learning rate, and below it the quasi-hyperbolic gain."""
    rates, steps = results["rates"], results["at"]
    figure, axes = plt.subplots(
        2,
        len(rates),
        figsize=(2.8 * len(rates), 5),
        layout="constrained",
        sharex=True,
        sharey="row",
        squeeze=False,
    )
    loss = {name: array(values) for name, values in results["loss"].items()}
    for (above, below), column in zip(axes.T, range(len(rates)), strict=True):
        for style, (name, values) in zip(LINES, loss.items(), strict=False):
            band(above, steps, values[column], name, style)
        for style, (plain, quasi) in zip(LINES[1::2], PAIRS, strict=False):
            change = 100 * (loss[quasi][column] / loss[plain][column] - 1)
            band(
                below, steps, change, f"{quasi} over {plain}", {**style, "marker": None}
            )
        below.axhline(0, color="#555555", linewidth=0.8)
        above.set_title(f"lr {rates[column]:g}", fontsize=10)
        above.set_yscale("log")
        above.yaxis.set_major_locator(FixedLocator([0.2, 0.3, 0.5, 1, 2]))
        above.yaxis.set_major_formatter("{x:g}")
        above.yaxis.set_minor_locator(NullLocator())
        below.set_xlabel("step")
    axes[0, 0].set_ylabel("loss on images put aside")
    axes[1, 0].set_ylabel("difference in loss in %, by seed")
    axes[0, 0].legend()
    axes[1, 0].legend()
    return figure


if __name__ == "__main__":
    run("early_steps", __doc__ or "", measure, draw)
