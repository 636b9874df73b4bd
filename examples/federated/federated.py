"""Federated averaging over simulated clients, with stepd for the outer step.

In each round some clients take the model, train it on their own digits by SGD, and
return it. The server averages the clients' changes and passes the result to an
optimizer as a gradient (Reddi et al., 2021, Adaptive Federated Optimization,
https://arxiv.org/abs/2003.00295, algorithm 2). With SGD at rate 1 this is plain
averaging of the clients' models.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import stepd

Array = npt.NDArray[Any]
Tensors = dict[str, Array]
Images = tuple[Array, Array]

CLIENTS = 8
CLIENTS_A_ROUND = 3
LOCAL_EPOCHS = 1
LOCAL_RATE = 0.1
LOCAL_BATCH = 16
HIDDEN = 32

#: The Dirichlet concentration of the clients' mixtures. A smaller value gives each
#: client fewer different digits.
ALPHA = 0.2

#: These learning rates are the best of the rates in the README.
OUTER: dict[str, dict[str, Any]] = {
    "averaging": stepd.optimizers.sgd(lr=1.0),
    "momentum": stepd.optimizers.sgd(lr=0.5, momentum=0.9),
    "adam": stepd.optimizers.adam(lr=0.1, betas=(0.9, 0.99), eps=1e-3),
}


def load_digit_sets() -> tuple[Images, Images]:
    """Return training and test images, the same for all seeds."""
    images, labels = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(
        (images / 16).astype(np.float32),
        labels,
        test_size=0.2,
        stratify=labels,
        random_state=0,
    )
    return (x_train, y_train), (x_test, y_test)


def split(data: Images, rng: np.random.Generator) -> list[Images]:
    """Divide the images of each digit among the clients, in random shares.

    The shares have a Dirichlet distribution (Hsu et al., 2019,
    https://arxiv.org/abs/1909.06335), so every client has its own mixture of digits.
    """
    owned: list[list[int]] = [[] for _ in range(CLIENTS)]
    for digit in range(10):
        places = rng.permutation(np.flatnonzero(data[1] == digit))
        ends = np.cumsum(rng.dirichlet(np.full(CLIENTS, ALPHA)))[:-1] * len(places)
        for own, part in zip(owned, np.split(places, ends.astype(int)), strict=True):
            own.extend(part)
    return [(data[0][own], data[1][own]) for own in owned]


def init(rng: np.random.Generator) -> Tensors:
    def weight(rows: int, columns: int) -> Array:
        values: Array = rng.standard_normal((rows, columns)) * np.sqrt(2 / rows)
        return values.astype(np.float32)

    return {
        "hidden.weight": weight(64, HIDDEN),
        "hidden.bias": np.zeros(HIDDEN, np.float32),
        "output.weight": weight(HIDDEN, 10),
        "output.bias": np.zeros(10, np.float32),
    }


def forward(params: Tensors, x: Array) -> tuple[Array, Array]:
    hidden = np.maximum(x @ params["hidden.weight"] + params["hidden.bias"], 0)
    return hidden, hidden @ params["output.weight"] + params["output.bias"]


def gradients(params: Tensors, x: Array, y: Array) -> Tensors:
    """Return the gradients of a batch's mean cross-entropy."""
    hidden, logits = forward(params, x)
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    d_logits = exp / exp.sum(axis=1, keepdims=True)
    d_logits[np.arange(len(y)), y] -= 1
    d_logits /= len(y)
    d_hidden = (d_logits @ params["output.weight"].T) * (hidden > 0)
    return {
        "hidden.weight": x.T @ d_hidden,
        "hidden.bias": d_hidden.sum(axis=0),
        "output.weight": hidden.T @ d_logits,
        "output.bias": d_logits.sum(axis=0),
    }


def accuracy(params: Tensors, data: Images) -> float:
    return float((forward(params, data[0])[1].argmax(axis=1) == data[1]).mean())


def train_client(params: Tensors, data: Images, rng: np.random.Generator) -> Tensors:
    """Return the client's model after some epochs of SGD on its own images."""
    params = {name: array.copy() for name, array in params.items()}
    for _ in range(LOCAL_EPOCHS):
        order = rng.permutation(len(data[0]))
        for start in range(0, len(order), LOCAL_BATCH):
            batch = order[start : start + LOCAL_BATCH]
            for name, grad in gradients(params, data[0][batch], data[1][batch]).items():
                params[name] -= np.float32(LOCAL_RATE) * grad
    return params


def pseudo_gradient(params: Tensors, models: list[Tensors], counts: Array) -> Tensors:
    """Return the parameters minus the clients' mean. Image counts weight the mean."""
    weights = (counts / counts.sum()).astype(np.float32)
    return {
        name: array
        - sum(w * model[name] for w, model in zip(weights, models, strict=True))
        for name, array in params.items()
    }


def train(
    client: stepd.Client, outer: dict[str, Any], seed: int, rounds: int, bar: Any
) -> list[float]:
    """Return the accuracy per round. All optimizers see the same random choices."""
    rng = np.random.default_rng(seed)
    train_set, test_set = load_digit_sets()
    clients = split(train_set, rng)
    params, state = init(rng), None
    reached = []
    for _ in range(rounds):
        chosen = rng.choice(CLIENTS, CLIENTS_A_ROUND, replace=False)
        models = [train_client(params, clients[i], rng) for i in chosen]
        counts = np.array([len(clients[i][0]) for i in chosen])
        result = client.step(
            outer, params, pseudo_gradient(params, models, counts), state
        )
        params, state = result.params, result.state
        reached.append(accuracy(params, test_set))
        bar.update()
    return reached


def rounds_to(goal: float, reached: Array) -> str:
    """Return the first round whose mean accuracy reaches the goal."""
    there = np.flatnonzero(reached.mean(axis=0) >= goal)
    return str(there[0] + 1) if len(there) else "-"


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--url",
        default=os.environ.get("STEPD_URL", "http://127.0.0.1:8080"),
        help="where stepd listens (%(default)s)",
    )
    parser.add_argument(
        "--rounds", type=int, default=60, help="outer steps (%(default)s)"
    )
    parser.add_argument(
        "--seeds", type=int, default=5, help="runs of each optimizer (%(default)s)"
    )
    arguments = parser.parse_args()
    for name in ("rounds", "seeds"):
        count = getattr(arguments, name)
        if count < 1:
            parser.error(f"--{name}: expected at least 1, found {count}")
    return arguments


def main() -> int:
    arguments = read_arguments()
    rounds: int = arguments.rounds
    total = len(OUTER) * arguments.seeds * rounds
    found: dict[str, Array] = {}
    with stepd.Client(arguments.url) as client, tqdm(total=total, unit="round") as bar:
        for name, outer in OUTER.items():
            bar.set_description(name)
            found[name] = np.array(
                [
                    train(client, outer, seed, rounds, bar)
                    for seed in range(arguments.seeds)
                ]
            )
    shown = sorted({max(1, rounds * part // 6) for part in (1, 2, 4, 6)})
    print(
        f"{CLIENTS} clients, {CLIENTS_A_ROUND} a round; test accuracy in %, "
        f"mean and standard deviation of {arguments.seeds} seeds"
    )
    columns = "".join(f"{f'round {number}':>16}" for number in shown)
    print(f"{'outer step':<12}{columns}{'rounds to 90 %':>16}")
    for name, reached in found.items():
        cells = "".join(
            f"{f'{100 * of.mean():.1f} +- {100 * of.std():.1f}':>16}"
            for of in reached[:, np.array(shown) - 1].T
        )
        print(f"{name:<12}{cells}{rounds_to(0.9, reached):>16}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
