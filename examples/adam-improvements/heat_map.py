"""Learning rate times weight decay: can each be chosen apart from the other?

Adam adds the decay to the gradient. AdamW subtracts decay times the schedule's factor
times the weights in the paper's form, and lr times as much in torch's form. So a run of
the paper's form is a run of torch's form with its decay divided by lr, and one grid
serves both. The script maps the errors of small residual networks, with batch
normalisation and without. Decays are chosen on other images than those reported.
"""

from __future__ import annotations

import numpy as np
import stepd
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from tqdm import tqdm

from _report import Json, Values, array, numbers, run
from _residual import ResidualSweep
from _train import Digits
from page import best_decays, format_power, forms_of

ADAM: Json = {"name": "adam"}
ADAMW: Json = {"name": "adamw", "weight_decay_scale": "schedule"}

#: Exponents of 10 of the learning rates, then of the decays by form: the lowest, the
#: highest and their number. Without normalisation no network learns at a rate of 0.03.
ROWS: dict[str, Json] = {
    "With batch normalisation": {
        "normalised": True,
        "rates": (-2.5, -1, 4),
        "decays": [(ADAM, (-3.5, -1, 6)), (ADAMW, (-3, -0.5, 6))],
    },
    "Without normalisation": {
        "normalised": False,
        "rates": (-3, -2, 3),
        "decays": [(ADAM, (-4, -2, 5)), (ADAMW, (-3.5, -1.5, 5))],
    },
}
MEASURES = {"valid_error": 2, "test_error": 2, "valid_loss": 4, "test_loss": 4}


def measure(client: stepd.Client, digits: Digits, quick: bool) -> Json:
    # Denormal numbers of decayed weights would slow torch down.
    torch.set_flush_denormal(True)
    seeds = list(range(2 if quick else 5))
    sizes = (
        {"train": 256, "valid": 200, "batch": 32}
        if quick
        else {"train": 1000, "valid": 5000, "batch": 32}
    )
    epochs = 1 if quick else 20

    def grid(lowest: float, highest: float, count: int) -> Values:
        return np.logspace(lowest, highest, 2 if quick else count)

    steps = epochs * (sizes["train"] // sizes["batch"])
    results: Json = {"seeds": seeds, **sizes, "steps": steps, "rows": {}}
    total = len(ROWS) * len(seeds) * steps
    with tqdm(total=total, unit="step", desc="heat map") as bar:

        def train_grid(row: Json, seed: int) -> list[Json]:
            """Return each form's measures, indexed by rate and decay."""
            rates = grid(*row["rates"])
            settings = [
                [
                    {**optimizer, "lr": float(rate), "weight_decay": float(decay)}
                    for rate in rates
                    for decay in grid(*decays)
                ]
                for optimizer, decays in row["decays"]
            ]
            sweep = ResidualSweep(
                client,
                digits,
                [setting for form in settings for setting in form],
                seed,
                normalised=row["normalised"],
                schedule=stepd.schedules.cosine(T_max=steps),
                **sizes,
            )
            for _ in range(steps):
                sweep.step()
                bar.update()
            valid_loss, valid_error = sweep.validation()
            test_loss, test_error = sweep.test()
            found = {
                "valid_error": 100 * valid_error,
                "test_error": 100 * test_error,
                "valid_loss": valid_loss,
                "test_loss": test_loss,
            }
            ends = np.cumsum([len(form) for form in settings])[:-1]
            by_form = {name: np.split(values, ends) for name, values in found.items()}
            return [
                {
                    name: values[form].reshape(len(rates), -1)
                    for name, values in by_form.items()
                }
                for form in range(len(settings))
            ]

        for label, row in ROWS.items():
            by_seed = [train_grid(row, seed) for seed in seeds]
            results["rows"][label] = {
                "rates": numbers(grid(*row["rates"]), 7),
                "forms": [
                    {
                        "optimizer": optimizer,
                        "decays": numbers(grid(*decays), 9),
                        # The indexes are the rate, the decay and the seed.
                        **{
                            name: numbers(
                                np.stack([found[form][name] for found in by_seed], -1),
                                digits,
                            )
                            for name, digits in MEASURES.items()
                        },
                    }
                    for form, (optimizer, decays) in enumerate(row["decays"])
                ],
            }
    return results


def draw(results: Json) -> Figure:
    """Draw one panel per form and network, with a ring at each rate's best decay."""
    rows = results["rows"]
    panels = [forms_of(row) for row in rows.values()]
    figure, axes = plt.subplots(
        len(panels), len(panels[0]), figsize=(11, 6.4), layout="constrained"
    )
    for above, (title, row), forms in zip(axes, rows.items(), panels, strict=True):
        count = len(row["rates"])
        low = min(array(form["test_error"]).mean(-1).min() for form in row["forms"])
        for axis, (label, form, shift) in zip(above, forms, strict=True):
            mean = array(form["test_error"]).mean(axis=-1)
            columns = mean.shape[1] + shift * (count - 1)
            # With a shift, each row of the grid begins one decay further left.
            left = [shift * (count - 1 - at) for at in range(count)]
            shown = np.full((count, columns), np.nan)
            for at, values in enumerate(mean):
                shown[at, left[at] : left[at] + len(values)] = values
            image = axis.imshow(
                shown,
                origin="lower",
                cmap="cividis_r",
                vmin=low,
                vmax=low + 6,
                aspect="auto",
            )
            for at, column in np.argwhere(np.isfinite(shown)):
                value = shown[at, column]
                axis.text(
                    column,
                    at,
                    f"{value:.1f}" if value < 20 else f"{value:.0f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if value > low + 3 else "black",
                )
            best = [place + left[at] for at, place in enumerate(best_decays(form))]
            axis.plot(
                best,
                range(count),
                "o",
                markersize=22,
                fillstyle="none",
                color="#D55E00",
                markeredgewidth=1.8,
            )
            lowest = form["decays"][0] / row["rates"][-1] ** shift
            ratio = form["decays"][1] / form["decays"][0]
            decays = [lowest * ratio**column for column in range(columns)]
            axis.set_xticks(range(columns), [format_power(d) for d in decays])
            axis.set_yticks(range(count), [format_power(rate) for rate in row["rates"]])
            axis.set_title(label, fontsize=10)
            axis.grid(False)
            if axis is above[0]:
                axis.set_ylabel(f"{title}\nlearning rate")
            if above is axes[-1]:
                axis.set_xlabel("weight decay")
        bar = figure.colorbar(image, ax=list(above), extend="max", pad=0.01)
        bar.set_label("test error in %")
    return figure


if __name__ == "__main__":
    run("heat_map", __doc__ or "", measure, draw)
