"""Does AdamW need a warm-up at batch sizes from 64 to the full set, and LAMB none?

Every batch size trains for the same number of epochs, so the full set has few steps.
The script tries a grid of learning rates at each size, and selects the rate with the
best validation loss. The result is compared with the square-root rule of LAMB's paper,
which scales the best rate at batch 64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import stepd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from tqdm import tqdm

from _report import STYLES, Json, array, numbers, run
from _train import Digits, Sweep, advance, run_parallel

#: A warm-up raises the learning rate in this share of the steps.
WARM_UP = 0.2


@dataclass(frozen=True)
class Contender:
    optimizer: str
    #: The learning rates of the grid, as powers of 2.
    exponents: range
    warms_up: bool = False


CONTENDERS = {
    "LAMB": Contender("lamb", range(-8, 1)),
    "LAMB, warm-up": Contender("lamb", range(-8, 1), warms_up=True),
    "AdamW": Contender("adamw", range(-11, -2)),
    "AdamW, warm-up": Contender("adamw", range(-11, -2), warms_up=True),
}


def measure(client: stepd.Client, digits: Digits, quick: bool) -> Json:
    seeds = list(range(2 if quick else 5))
    batches = [64, 256] if quick else [64, 256, 1024, 4096]
    epochs = 2 if quick else 20
    train, valid = batches[-1], 200 if quick else 2000
    steps = {batch: epochs * (train // batch) for batch in batches}
    results: Json = {
        "seeds": seeds,
        "train": train,
        "valid": valid,
        "epochs": epochs,
        "batches": batches,
        "warm_up": WARM_UP,
    }
    total = len(CONTENDERS) * sum(steps.values())
    with tqdm(total=total, unit="step", desc="batch size") as bar:

        def train_all(contender: Contender) -> Json:
            rates = [2.0**exponent for exponent in contender.exponents][
                :: 4 if quick else 1
            ]
            losses, accuracies = [], []
            for batch in batches:
                sweep = Sweep(
                    client,
                    digits,
                    contender.optimizer,
                    [{"lr": rate, "weight_decay": 0.01} for rate in rates],
                    seeds,
                    train=train,
                    batch=batch,
                    valid=valid,
                    schedule=_schedule(steps[batch], contender.warms_up),
                )
                for _ in range(steps[batch]):
                    sweep.step()
                    advance(bar)
                # One diverged seed makes the mean NaN, which excludes the learning
                # rate.
                loss = sweep.validation()[0].mean(axis=1)
                losses.append(np.nan_to_num(loss, nan=np.inf))
                accuracies.append(100 * sweep.test()[1])
            return {
                "optimizer": {"name": contender.optimizer, "weight_decay": 0.01},
                "rates": rates,
                # For each batch size, the index of the learning rate with the lowest
                # loss.
                "best": np.argmin(losses, axis=1).tolist(),
                # The first index is the batch size, the second the learning rate.
                "valid_loss": numbers(losses, 4),
                # The indexes are the batch size, the learning rate and the seed.
                "test_accuracy": numbers(np.stack(accuracies), 2),
            }

        found = run_parallel(train_all, list(CONTENDERS.values()))
    results["contenders"] = dict(zip(CONTENDERS, found, strict=True))
    return results


def _schedule(steps: int, warms_up: bool) -> Json:
    """Return a linear decay to 0, after a linear warm-up if ``warms_up`` is true."""
    up = max(1, round(WARM_UP * steps)) if warms_up else 0
    down = {"name": "polynomial", "total_iters": steps - up}
    if not up:
        return down
    # The warm-up starts above 0, because a step at rate 0 would be wasted.
    rise = {"name": "linear", "start_factor": 1 / (up + 1), "total_iters": up}
    return {"name": "sequence", "milestones": [up], "schedules": [rise, down]}


def draw(results: Json) -> Figure:
    """Plot accuracy at the best rates, then over the rates of each batch size."""
    batches = results["batches"]
    figure, axes = plt.subplots(
        1, 3, figsize=(11, 3.8), layout="constrained", width_ratios=(1.1, 1, 1)
    )
    for style, (label, contender) in zip(
        STYLES, results["contenders"].items(), strict=False
    ):
        accuracy = array(contender["test_accuracy"])
        chosen = accuracy[np.arange(len(batches)), contender["best"]]
        axes[0].errorbar(
            batches,
            chosen.mean(axis=-1),
            chosen.std(axis=-1, ddof=1),
            label=label,
            capsize=3,
            markersize=5,
            **style,
        )
    axes[0].set_xscale("log", base=2)
    axes[0].set_xticks(batches, [f"{batch}" for batch in batches])
    axes[0].set_xlabel("batch size")
    axes[0].set_ylabel("test accuracy in %, at the best rate")
    axes[0].legend(loc="lower left")
    for axis, index, title in (
        (axes[1], 0, f"batch {batches[0]}"),
        (axes[2], -1, f"batch {batches[-1]}, the full set"),
    ):
        for style, (label, contender) in zip(
            STYLES, results["contenders"].items(), strict=False
        ):
            accuracy = array(contender["test_accuracy"])[index]
            axis.plot(
                contender["rates"],
                accuracy.mean(axis=-1),
                label=label,
                markersize=4,
                **style,
            )
        axis.set_title(title, fontsize=10)
        axis.set_xscale("log")
        axis.set_xlabel("learning rate")
        axis.set_ylim(bottom=max(0, axis.get_ylim()[0]))
    axes[1].set_ylabel("test accuracy in %")
    return figure


if __name__ == "__main__":
    run("batch_size", __doc__ or "", measure, draw)
