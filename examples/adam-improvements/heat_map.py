"""Learning rate times weight decay: is the best decay the same at every rate?

Adam adds the decay to the gradient. AdamW subtracts lr * decay times the weights, or
decay times the schedule's factor with weight_decay_scale "schedule", independent of lr.
The script maps the test error with cosine annealing, on a task that needs decay: it has
few images, and part of their labels is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import stepd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from tqdm import tqdm

from _report import Json, array, numbers, run
from _train import Digits, Sweep, advance, run_parallel
from page import format_power

#: This share of the images has a random label.
NOISE = 0.3


@dataclass(frozen=True)
class Form:
    optimizer: str
    #: The lowest and the highest decay of the grid, as powers of 10.
    exponents: tuple[int, int]
    fixed: Json = field(default_factory=dict)


FORMS = {
    "Adam, L2 in the gradient": Form("adam", (-4, -1)),
    "AdamW, decay times lr": Form("adamw", (-2, 1), {"weight_decay_scale": "lr"}),
    "AdamW, decay apart from lr": Form(
        "adamw", (-4, -1), {"weight_decay_scale": "schedule"}
    ),
}


def measure(client: stepd.Client, digits: Digits, quick: bool) -> Json:
    seeds = list(range(2 if quick else 5))
    rows, columns = (2, 2) if quick else (5, 7)
    train, batch, steps = (256, 64, 12) if quick else (1000, 50, 500)
    rates = 10.0 ** np.linspace(-3, -1, rows)
    results: Json = {
        "seeds": seeds,
        "train": train,
        "noise": NOISE,
        "batch": batch,
        "steps": steps,
        "rates": numbers(rates, 7),
    }
    with tqdm(total=len(FORMS) * steps, unit="step", desc="heat map") as bar:

        def train_grid(form: Form) -> Json:
            decays = 10.0 ** np.linspace(*form.exponents, columns)
            settings = [
                {**form.fixed, "lr": float(rate), "weight_decay": float(decay)}
                for rate in rates
                for decay in decays
            ]
            sweep = Sweep(
                client,
                digits,
                form.optimizer,
                settings,
                seeds,
                train=train,
                noise=NOISE,
                batch=batch,
                schedule=stepd.schedules.cosine(T_max=steps),
            )
            for _ in range(steps):
                sweep.step()
                advance(bar)
            accuracy = sweep.test()[1].reshape(rows, columns, len(seeds))
            return {
                "optimizer": {"name": form.optimizer, **form.fixed},
                "decays": numbers(decays, 9),
                "test_error": numbers(100 * (1 - accuracy), 2),
            }

        found = run_parallel(train_grid, list(FORMS.values()))
    results["forms"] = dict(zip(FORMS, found, strict=True))
    return results


def draw(results: Json) -> Figure:
    """Draw one panel per form, with a ring around the best decay of each rate."""
    forms = results["forms"].items()
    means = [array(form["test_error"]).mean(axis=-1) for _, form in forms]
    low = min(mean.min() for mean in means)
    figure, axes = plt.subplots(
        1, len(means), figsize=(11, 3.9), layout="constrained", sharey=True
    )
    rates = results["rates"]
    for axis, (label, form), mean in zip(axes, forms, means, strict=True):
        image = axis.imshow(
            mean,
            origin="lower",
            cmap="cividis_r",
            vmin=low,
            vmax=low + 12,
            aspect="auto",
        )
        for row, column in np.ndindex(mean.shape):
            value = mean[row, column]
            axis.text(
                column,
                row,
                f"{value:.1f}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if value > low + 6 else "black",
            )
        axis.plot(
            mean.argmin(axis=1),
            range(len(rates)),
            "o",
            markersize=25,
            fillstyle="none",
            color="#D55E00",
            markeredgewidth=1.8,
        )
        axis.set_title(label, fontsize=10)
        axis.set_xlabel("weight decay")
        axis.set_xticks(
            range(len(form["decays"])), [format_power(d) for d in form["decays"]]
        )
        axis.grid(False)
    axes[0].set_yticks(range(len(rates)), [format_power(rate) for rate in rates])
    axes[0].set_ylabel("learning rate")
    bar = figure.colorbar(image, ax=axes, extend="max", pad=0.01)
    bar.set_label(f"test error in %, mean of {len(results['seeds'])} seeds")
    return figure


if __name__ == "__main__":
    run("heat_map", __doc__ or "", measure, draw)
