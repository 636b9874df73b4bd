"""The clients of the example: Flower's ClientApp, and its data and model in numpy."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

Tensors = dict[str, npt.NDArray[Any]]
Images = tuple[npt.NDArray[Any], npt.NDArray[Any]]

CLIENTS = 8
LOCAL_EPOCHS = 1
LOCAL_RATE = 0.1
LOCAL_BATCH = 16
HIDDEN = 32

#: The Dirichlet concentration of the clients' mixtures. A smaller value gives each
#: client fewer different digits.
ALPHA = 0.2


@functools.cache
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


@functools.cache
def split(seed: int) -> list[Images]:
    """Divide the training images of each digit among the clients, in random shares.

    The shares have a Dirichlet distribution (Hsu et al., 2019,
    https://arxiv.org/abs/1909.06335), so every client has its own mixture of digits.
    """
    rng = np.random.default_rng(seed)
    x, y = load_digit_sets()[0]
    owned: list[list[int]] = [[] for _ in range(CLIENTS)]
    for digit in range(10):
        places = rng.permutation(np.flatnonzero(y == digit))
        ends = np.cumsum(rng.dirichlet(np.full(CLIENTS, ALPHA)))[:-1] * len(places)
        for own, part in zip(owned, np.split(places, ends.astype(int)), strict=True):
            own.extend(part)
    return [(x[own], y[own]) for own in owned]


def init(seed: int) -> Tensors:
    rng = np.random.default_rng(seed)

    def weight(rows: int, columns: int) -> npt.NDArray[Any]:
        return np.asarray(
            rng.standard_normal((rows, columns)) * np.sqrt(2 / rows), np.float32
        )

    return {
        "hidden.weight": weight(64, HIDDEN),
        "hidden.bias": np.zeros(HIDDEN, np.float32),
        "output.weight": weight(HIDDEN, 10),
        "output.bias": np.zeros(10, np.float32),
    }


def forward(
    params: Tensors, x: npt.NDArray[Any]
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    hidden = np.maximum(x @ params["hidden.weight"] + params["hidden.bias"], 0)
    return hidden, hidden @ params["output.weight"] + params["output.bias"]


def gradients(params: Tensors, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> Tensors:
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


def accuracy(params: Tensors) -> float:
    x, y = load_digit_sets()[1]
    return float((forward(params, x)[1].argmax(axis=1) == y).mean())


def to_record(params: Tensors) -> ArrayRecord:
    return ArrayRecord({name: Array(array) for name, array in params.items()})


def from_record(record: ArrayRecord) -> Tensors:
    return {name: array.numpy() for name, array in record.items()}


client_app = ClientApp()


@client_app.train()  # type: ignore[untyped-decorator]
def train(message: Message, context: Context) -> Message:
    """Train the model for some epochs of SGD on the client's own images."""
    client = int(context.node_config["partition-id"])
    config = message.content.config_records["config"]
    seed, server_round = int(config["seed"]), int(config["server-round"])
    params = from_record(message.content.array_records["arrays"])
    params = {name: array.copy() for name, array in params.items()}
    x, y = split(seed)[client]
    rng = np.random.default_rng((seed, client, server_round))
    for _ in range(LOCAL_EPOCHS):
        order = rng.permutation(len(x))
        for start in range(0, len(order), LOCAL_BATCH):
            batch = order[start : start + LOCAL_BATCH]
            for name, grad in gradients(params, x[batch], y[batch]).items():
                params[name] -= np.float32(LOCAL_RATE) * grad
    metrics = MetricRecord({"num-examples": len(x)})
    content = RecordDict({"arrays": to_record(params), "metrics": metrics})
    return Message(content, reply_to=message)
