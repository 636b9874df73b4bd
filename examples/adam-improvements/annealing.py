"""Does AdamW with cosine annealing reach the test accuracy of SGD with momentum?

Every contender gets an equally large search for the learning rate and weight decay with
the best validation accuracy, on separate seeds. The best setting then trains with fresh
seeds, and is measured on MNIST's test set after every epoch.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np
import stepd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from tqdm import tqdm

from _report import STYLES, Json, array, band, numbers, run
from _train import Digits, Sweep, advance, run_parallel


@dataclass(frozen=True)
class Contender:
    optimizer: str
    rates: list[float]
    decays: list[float]
    fixed: Json = field(default_factory=dict)
    anneals: bool = False


_SGD_DECAYS = [0.0, 3e-4, 1e-3, 3e-3]
_SGD = ([0.03, 0.1, 0.3, 1.0], _SGD_DECAYS, {"momentum": 0.9, "nesterov": True})
_RATES = [3e-3, 1e-2, 3e-2, 1e-1]
_ADAM = (_RATES, [0.0, 1e-4, 3e-4, 1e-3])
_ADAMW = (_RATES, [0.0, 1e-2, 1e-1, 1.0])

CONTENDERS = {
    "SGD": Contender("sgd", *_SGD),
    "SGD, cosine": Contender("sgd", *_SGD, anneals=True),
    "Adam": Contender("adam", *_ADAM),
    # Adam with annealing separates the effect of decoupled decay from that of
    # annealing.
    "Adam, cosine": Contender("adam", *_ADAM, anneals=True),
    "AdamW": Contender("adamw", *_ADAMW),
    "AdamW, cosine": Contender("adamw", *_ADAMW, anneals=True),
}


def measure(client: stepd.Client, digits: Digits, quick: bool) -> Json:
    search_seeds, seeds = ([0], [100, 101]) if quick else ([0, 1], range(100, 110))
    train, valid, batch = (512, 200, 64) if quick else (8192, 5000, 128)
    epochs = 2 if quick else 12
    steps = epochs * (train // batch)
    sizes = {"train": train, "valid": valid, "batch": batch}
    results: Json = {
        "search_seeds": list(search_seeds),
        "seeds": list(seeds),
        **sizes,
        "epochs": epochs,
    }
    with tqdm(total=2 * len(CONTENDERS) * steps, unit="step", desc="annealing") as bar:

        def search_and_train(contender: Contender) -> Json:
            schedule = (
                stepd.schedules.cosine(T_max=steps) if contender.anneals else None
            )
            grid = itertools.product(contender.rates, contender.decays)
            settings = [
                {**contender.fixed, "lr": rate, "weight_decay": decay}
                for rate, decay in grid
            ]
            search = Sweep(
                client,
                digits,
                contender.optimizer,
                settings,
                search_seeds,
                schedule=schedule,
                **sizes,
            )
            for _ in range(steps):
                search.step()
                advance(bar)
            accuracy = search.validation()[1].mean(axis=1)
            best = settings[int(accuracy.argmax())]
            final = Sweep(
                client,
                digits,
                contender.optimizer,
                [best],
                seeds,
                schedule=schedule,
                **sizes,
            )
            by_epoch = []
            for step in range(1, steps + 1):
                final.step()
                advance(bar)
                if step % final.steps_per_epoch == 0:
                    by_epoch.append(final.test()[1][0])
            return {
                "optimizer": {"name": contender.optimizer, **best},
                "valid_accuracy": numbers(100 * accuracy, 2),
                # The first index is the seed, the second the epoch.
                "test_accuracy": numbers(100 * np.stack(by_epoch, axis=-1), 2),
            }

        found = run_parallel(search_and_train, list(CONTENDERS.values()))
    results["contenders"] = dict(zip(CONTENDERS, found, strict=True))
    return results


def draw(results: Json) -> Figure:
    """Plot test accuracy by epoch, and each seed's accuracy at the end."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10, 3.9), layout="constrained", width_ratios=(1.4, 1)
    )
    contenders = results["contenders"]
    epochs = range(1, results["epochs"] + 1)
    for place, (style, (label, contender)) in enumerate(
        zip(STYLES, contenders.items(), strict=True)
    ):
        by_seed = array(contender["test_accuracy"])
        band(left, epochs, by_seed, label, style)
        mark = {"color": style["color"], "marker": style["marker"]}
        last = by_seed[:, -1]
        right.plot(
            np.full(len(last), place), last, linestyle="none", alpha=0.45, **mark
        )
        right.errorbar(
            place + 0.22, last.mean(), last.std(ddof=1), capsize=4, markersize=7, **mark
        )
    left.set_xlabel("epoch")
    left.set_ylabel("test accuracy in %")
    left.legend(loc="lower right")
    right.set_xticks(
        range(len(contenders)), [label.replace(", ", ",\n") for label in contenders]
    )
    right.set_xlim(-0.5, len(contenders) - 0.3)
    right.set_ylabel("test accuracy at the end in %")
    return figure


if __name__ == "__main__":
    run("annealing", __doc__ or "", measure, draw)
