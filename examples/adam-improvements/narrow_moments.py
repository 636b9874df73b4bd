"""Does training with moments in BF16 and Q8 reach the loss of moments in float32?

Three small networks train with four optimizers and three formats of the moments. All
runs of a seed start from the same weights and see the same batches. The text is
Python's own reference, from the standard library.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import stepd
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch.nn import functional
from tqdm import tqdm

from _report import STYLES, Json, array, numbers, run
from _train import Digits, Floats, Integers
from page import FORMATS, NARROW_PAGE

FOLDER = NARROW_PAGE.with_suffix("")

Tensors = dict[str, torch.Tensor]
#: Inputs and targets. A target is a class, or a class for each position of a text.
Data = tuple[torch.Tensor, torch.Tensor]

OPTIMIZERS: dict[str, Json] = {
    "AdamW": {"name": "adamw"},
    "QHAdamW": {"name": "qhadamw"},
    "LAMB": {"name": "lamb"},
    "SGD, momentum 0.9": {"name": "sgd", "momentum": 0.9},
}

#: Characters of one example, and the width and heads of the transformer.
CONTEXT, WIDTH, HEADS, LAYERS = 32, 64, 2, 2


@dataclass(frozen=True)
class Problem:
    train: Data
    test: Data
    steps: int
    batch: int
    #: The learning rate of each optimizer.
    rates: tuple[float, ...]
    #: Returns the first weights.
    init: Callable[[np.random.Generator], dict[str, Floats]]
    #: Maps stacked weights and inputs to logits, indexed by network, row and class.
    logits: Callable[[Tensors, torch.Tensor], torch.Tensor]


def problems(digits: Digits, quick: bool) -> dict[str, Problem]:
    small = load_digits()
    values = small.data.astype(np.float32) / 16
    order = np.random.default_rng(0).permutation(len(values))
    text = _text()
    classes = int(text.max()) + 1
    cut = len(text) * 9 // 10
    adaptive = (2e-3, 2e-3, 1e-2, 0.1)
    return {
        "digits": Problem(
            _data(values[order[:1400]], small.target[order[:1400]]),
            _data(values[order[1400:]], small.target[order[1400:]]),
            8 if quick else 400,
            64,
            adaptive,
            *_perceptron(64, 128, 128, 10),
        ),
        "MNIST": Problem(
            _data(digits.images[:16384], digits.labels[:16384]),
            _data(digits.test_images, digits.test_labels),
            8 if quick else 500,
            64,
            adaptive,
            *_perceptron(196, 64, 64, 10),
        ),
        "text": Problem(
            _windows(text[:cut], 1),
            # The test windows do not overlap.
            _windows(text[cut:], CONTEXT * 4),
            4 if quick else 450,
            8,
            (3e-3, 3e-3, 1e-2, 0.1),
            *_transformer(classes),
        ),
    }


def measure(client: stepd.Client, digits: Digits, quick: bool) -> Json:
    seeds = list(range(2 if quick else 5))
    every = 4 if quick else 20
    found = problems(digits, quick)
    results: Json = {"seeds": seeds, "optimizers": OPTIMIZERS, "problems": {}}
    total = len(seeds) * sum(problem.steps for problem in found.values())
    with tqdm(total=total, unit="step", desc="narrow moments") as bar:
        for name, problem in found.items():
            runs = []
            for seed in seeds:
                runs.append(_train(client, problem, seed, every, bar))
            # The indexes are the optimizer, the format and the seed; in a curve, the
            # step follows.
            shape = (len(OPTIMIZERS), len(FORMATS), len(seeds))
            results["problems"][name] = {
                "steps": problem.steps,
                "batch": problem.batch,
                "rates": problem.rates,
                "at": list(range(every, problem.steps + 1, every)),
                **{
                    key: numbers(
                        np.stack([run[key] for run in runs], axis=1).reshape(
                            *shape, *runs[0][key].shape[1:]
                        ),
                        4,
                    )
                    for key in runs[0]
                },
            }
    return results


def _train(
    client: stepd.Client, problem: Problem, seed: int, every: int, bar: Any
) -> dict[str, Floats]:
    """Train one network for each optimizer and format. Return measures by network."""
    names = [f"{name}/{form}" for name in OPTIMIZERS for form in FORMATS]
    initial = problem.init(np.random.default_rng([seed, 0]))
    params = {
        name: torch.from_numpy(np.repeat(values[None], len(names), axis=0))
        for name, values in initial.items()
    }
    groups = [
        {
            "tensors": [f"{name}/{form}/*"],
            "optimizer": {**optimizer, "lr": rate, "state_dtype": form},
        }
        for (name, optimizer), rate in zip(
            OPTIMIZERS.items(), problem.rates, strict=True
        )
        for form in FORMATS
    ]

    def by_name(stacked: Mapping[str, torch.Tensor]) -> dict[str, Floats]:
        return {
            f"{network}/{name}": values.numpy()
            for name, rows in stacked.items()
            for network, values in zip(names, rows, strict=True)
        }

    def losses(batch: Data) -> tuple[torch.Tensor, torch.Tensor]:
        logits = problem.logits(params, batch[0])
        targets = batch[1].reshape(-1).repeat(len(names))
        each = functional.cross_entropy(
            logits.flatten(0, 1), targets, reduction="none"
        ).reshape(len(names), -1)
        right = logits.argmax(2).flatten() == targets
        return each.mean(1), right.reshape(len(names), -1).float().mean(1)

    @torch.no_grad()
    def evaluate(data: Data) -> tuple[Floats, Floats]:
        parts = list(zip(*(values.split(512) for values in data), strict=True))
        sums = [torch.stack(losses(part)) * len(part[1]) for part in parts]
        loss, accuracy = (sum(sums[1:], sums[0]) / len(data[1])).numpy()
        return loss, accuracy

    batches = _batches(problem, np.random.default_rng([seed, 1]))
    state: stepd.State | None = None
    recent, curve = [], []
    for step in range(1, problem.steps + 1):
        for values in params.values():
            values.requires_grad_()
        loss, _ = losses(next(batches))
        grads = torch.autograd.grad(loss.sum(), list(params.values()))
        params = {name: values.detach() for name, values in params.items()}
        arrays = by_name(params)
        result = client.step(
            {"name": "adamw"},
            arrays,
            by_name(dict(zip(params, grads, strict=True))),
            state,
            groups=groups,
            schedule=stepd.schedules.cosine(T_max=problem.steps),
            non_finite="propagate",
        )
        state = result.state
        for name, array_of in arrays.items():
            array_of[...] = result.params[name]
        recent.append(loss.detach().numpy())
        if step % every == 0:
            curve.append(np.mean(recent, axis=0))
            recent = []
        bar.update()
    rows = slice(0, len(problem.train[1]), max(1, len(problem.train[1]) // 512))
    train_loss, _ = evaluate((problem.train[0][rows], problem.train[1][rows]))
    test_loss, test_accuracy = evaluate(problem.test)
    return {
        "train_loss": train_loss,
        "test_loss": test_loss,
        "test_accuracy": 100 * test_accuracy,
        "curve": np.stack(curve, axis=1),
    }


def _batches(problem: Problem, rng: np.random.Generator) -> Iterator[Data]:
    inputs, targets = problem.train
    while True:
        rows = rng.integers(len(targets), size=problem.batch)
        yield inputs[rows], targets[rows]


def _data(inputs: Any, targets: Any) -> Data:
    return torch.from_numpy(inputs), torch.from_numpy(targets.astype(np.int64))


def _text() -> Integers:
    """Return the text as indexes of its characters."""
    text = "\n".join(topics[name] for name in sorted(topics))
    text = re.sub(r" +", " ", re.sub(r"[^\n -~]", "", text))
    _, indexes = np.unique(list(text), return_inverse=True)
    return indexes


def _windows(text: Any, stride: int) -> Data:
    """Return each window's characters, and the character after each of them."""
    windows = np.lib.stride_tricks.sliding_window_view(text, CONTEXT + 1)[::stride]
    both = torch.from_numpy(windows.copy() if stride > 1 else windows)
    return both[:, :-1], both[:, 1:]


def _dense(values: torch.Tensor, params: Tensors, name: str) -> torch.Tensor:
    return torch.baddbmm(
        params[f"{name}.bias"][:, None], values, params[f"{name}.weight"]
    )


def _dense_init(
    rng: np.random.Generator, name: str, rows: int, columns: int, scale: float
) -> dict[str, Floats]:
    weight = scale * rng.standard_normal((rows, columns)) / np.sqrt(rows)
    return {
        f"{name}.weight": weight.astype(np.float32),
        f"{name}.bias": np.zeros(columns, np.float32),
    }


def _perceptron(*sizes: int) -> tuple[Any, Any]:
    """Return the initialization and the logits of a network with dense layers."""

    def init(rng: np.random.Generator) -> dict[str, Floats]:
        arrays: dict[str, Floats] = {}
        for layer, (rows, columns) in enumerate(pairwise(sizes)):
            arrays |= _dense_init(rng, str(layer), rows, columns, np.sqrt(2))
        return arrays

    def logits(params: Tensors, inputs: torch.Tensor) -> torch.Tensor:
        networks = len(params["0.weight"])
        values = _dense(inputs.expand(networks, -1, -1), params, "0")
        for layer in range(1, len(sizes) - 1):
            values = _dense(values.relu(), params, str(layer))
        return values

    return init, logits


def _transformer(classes: int) -> tuple[Any, Any]:
    """Return the initialization and the logits of a causal transformer."""

    def init(rng: np.random.Generator) -> dict[str, Floats]:
        arrays: dict[str, Floats] = {
            name: (0.5 * rng.standard_normal((rows, WIDTH))).astype(np.float32)
            for name, rows in (("characters", classes), ("positions", CONTEXT))
        }
        for layer in range(LAYERS):
            for part, rows, columns, scale in (
                ("attention", WIDTH, 3 * WIDTH, 1.0),
                ("projection", WIDTH, WIDTH, 0.5),
                ("expansion", WIDTH, 4 * WIDTH, np.sqrt(2)),
                ("reduction", 4 * WIDTH, WIDTH, 0.5),
            ):
                arrays |= _dense_init(rng, f"{layer}.{part}", rows, columns, scale)
        for norm in [
            f"{layer}.{place}"
            for layer in range(LAYERS)
            for place in ("first", "second")
        ] + ["last"]:
            arrays[f"{norm}.gain"] = np.ones(WIDTH, np.float32)
        return arrays | _dense_init(rng, "output", WIDTH, classes, 0.5)

    def logits(params: Tensors, inputs: torch.Tensor) -> torch.Tensor:
        networks, batch = len(params["last.gain"]), len(inputs)

        def norm(values: torch.Tensor, name: str) -> torch.Tensor:
            gain = params[f"{name}.gain"][:, None]
            return functional.layer_norm(values, (WIDTH,)) * gain

        def heads(values: torch.Tensor) -> torch.Tensor:
            split = values.reshape(networks * batch, CONTEXT, HEADS, WIDTH // HEADS)
            return split.transpose(1, 2)

        values = params["characters"][:, inputs] + params["positions"][:, None]
        values = values.reshape(networks, batch * CONTEXT, WIDTH)
        for layer in range(LAYERS):
            inner = norm(values, f"{layer}.first")
            three = _dense(inner, params, f"{layer}.attention").split(WIDTH, dim=2)
            query, key, value = map(heads, three)
            mixed = functional.scaled_dot_product_attention(
                query, key, value, is_causal=True
            )
            mixed = mixed.transpose(1, 2).reshape(values.shape)
            values = values + _dense(mixed, params, f"{layer}.projection")
            inner = norm(values, f"{layer}.second")
            inner = _dense(inner, params, f"{layer}.expansion").relu()
            values = values + _dense(inner, params, f"{layer}.reduction")
        return _dense(norm(values, "last"), params, "output")

    return init, logits


def draw(results: Json) -> Figure:
    """Plot each problem's training loss by step, and its test loss by seed."""
    figure, axes = plt.subplots(
        2, len(results["problems"]), figsize=(9, 4.8), layout="constrained"
    )
    lines = ("-", "--", ":")
    for (above, below), (title, problem) in zip(
        axes.T, results["problems"].items(), strict=True
    ):
        curves, losses = array(problem["curve"]), array(problem["test_loss"])
        for place, (name, style) in enumerate(
            zip(results["optimizers"], STYLES, strict=False)
        ):
            for index, (form, line) in enumerate(zip(FORMATS, lines, strict=True)):
                above.plot(
                    problem["at"],
                    curves[place, index].mean(axis=0),
                    color=style["color"],
                    linestyle=line,
                    linewidth=1.3,
                    label=f"{name}, {form}" if place == 0 else None,
                )
                below.plot(
                    np.full(losses.shape[-1], place + 0.25 * (index - 1)),
                    losses[place, index],
                    linestyle="none",
                    marker=STYLES[index]["marker"],
                    color=style["color"],
                    alpha=0.6,
                    label=form if place == 0 else None,
                )
        above.set_title(title, fontsize=10)
        above.set_yscale("log")
        above.set_xlabel("step")
        below.set_xticks(
            range(len(results["optimizers"])),
            [name.split(",")[0] for name in results["optimizers"]],
        )
    axes[0, 0].set_ylabel("training loss, mean of the seeds")
    axes[0, 0].legend()
    axes[1, 0].set_ylabel("test loss, one mark per seed")
    axes[1, 0].legend()
    return figure


if __name__ == "__main__":
    run("narrow_moments", __doc__ or "", measure, draw, folder=FOLDER)
