"""Trains many small residual networks at once, with every optimizer step done by stepd.

The networks of all settings stand side by side as groups of one convolution: torch
computes their gradients together, and one call steps all of them, with each setting as
a parameter group. A seed determines the images, their order and the first weights, so
all settings train on equal batches from equal weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import stepd
import torch
from torch.nn import functional

from _train import CLASSES, Digits, Floats, Hyperparameters

#: Convolution weights: output channels, input channels and kernel size.
_WEIGHTS = {
    "stem": (8, 1, 3),
    **{
        f"{block}.{name}": (outputs, {"second": outputs}.get(name, inputs), size)
        for block, inputs, outputs in (("a", 8, 8), ("b", 8, 16), ("c", 16, 32))
        for name, size in (("first", 3), ("second", 3), ("skip", 1))
        if inputs != outputs or name != "skip"
    },
}
_WIDTH = 32
#: An evaluation takes this many images at once, to limit memory.
_ROWS = 1000

#: Mean and variance of each normalised convolution.
Statistics = dict[str, tuple[torch.Tensor, torch.Tensor]]


class ResidualSweep:
    """One residual network for each of ``settings``, all from one ``seed``.

    Each network has a stem of 8 channels, three residual blocks of 8, 16 and 32
    channels, a mean over the pixels and a linear layer. ``normalised`` selects batch
    normalisation after each convolution; without it a convolution has a bias.
    ``train`` images are for training, and ``valid`` others for validation.
    """

    def __init__(
        self,
        client: stepd.Client,
        digits: Digits,
        settings: Sequence[Hyperparameters],
        seed: int,
        *,
        normalised: bool,
        train: int,
        valid: int,
        batch: int,
        schedule: Mapping[str, Any],
    ) -> None:
        self.client = client
        self.normalised = normalised
        self.batch = batch
        self.schedule = schedule
        self.groups = [
            {"tensors": [str(index)], "optimizer": dict(setting)}
            for index, setting in enumerate(settings)
        ]
        rows = np.random.default_rng([seed, 1]).permutation(len(digits.images))
        self._train = _tensors(digits.images, digits.labels, rows[:train])
        self._valid = _tensors(
            digits.images, digits.labels, rows[train : train + valid]
        )
        self._test = _tensors(digits.test_images, digits.test_labels, slice(None))
        self._shuffle = np.random.default_rng([seed, 2])
        self._queue = np.arange(0)
        self._state: stepd.State | None = None
        initial = _init(np.random.default_rng([seed, 0]), normalised)
        self._shapes = {name: array.shape for name, array in initial.items()}
        flat = np.concatenate([array.ravel() for array in initial.values()])
        # Adam treats each element separately, so a network is one tensor of a call.
        self.params = torch.from_numpy(np.tile(flat, (len(settings), 1)))

    def step(self) -> None:
        """Take one step on the next batch."""
        if len(self._queue) < self.batch:
            self._queue = self._shuffle.permutation(len(self._train[1]))
        rows, self._queue = np.split(self._queue, [self.batch])
        images, labels = (part[rows] for part in self._train)
        params = self.params.requires_grad_()
        loss = self._losses(self._forward(params, images), labels).sum()
        (grads,) = torch.autograd.grad(loss, [params])
        self.params = params.detach()
        result = self.client.step(
            {"name": "adamw"},
            _by_network(self.params),
            _by_network(grads),
            self._state,
            groups=self.groups,
            schedule=self.schedule,
            # With the default, "error", one diverged network would end the training of
            # all.
            non_finite="propagate",
        )
        self._state = result.state
        for name, array in _by_network(self.params).items():
            array[...] = result.params[name]

    @torch.no_grad()
    def validation(self) -> tuple[Floats, Floats]:
        """Return each network's mean loss and error on the validation images."""
        return self._evaluate(*self._valid)

    @torch.no_grad()
    def test(self) -> tuple[Floats, Floats]:
        """Return each network's mean loss and error on MNIST's own test set."""
        return self._evaluate(*self._test)

    def _evaluate(
        self, images: torch.Tensor, labels: torch.Tensor
    ) -> tuple[Floats, Floats]:
        # Networks are evaluated with the statistics of all their training images.
        statistics: Statistics = {}
        self._forward(self.params, self._train[0], record=statistics)
        loss, wrong = torch.zeros(2, len(self.params))
        for part, truth in zip(images.split(_ROWS), labels.split(_ROWS), strict=True):
            logits = self._forward(self.params, part, use=statistics)
            loss += self._losses(logits, truth) * len(truth)
            # argmax selects NaN first, so the error of a diverged network is that of a
            # constant answer.
            wrong += (logits.argmax(2) != truth).sum(1)
        return (loss / len(labels)).numpy(), (wrong / len(labels)).numpy()

    @staticmethod
    def _losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the mean cross-entropy of each network."""
        networks, rows, _ = logits.shape
        losses = functional.cross_entropy(
            logits.reshape(-1, CLASSES), labels.repeat(networks), reduction="none"
        )
        return losses.reshape(networks, rows).mean(1)

    def _forward(
        self,
        params: torch.Tensor,
        images: torch.Tensor,
        *,
        use: Statistics | None = None,
        record: Statistics | None = None,
    ) -> torch.Tensor:
        """Return logits, indexed by network, image and class.

        ``use`` gives the statistics of the normalisations, which are those of the
        images by default. ``record`` collects them.
        """
        networks = len(params)
        sizes = [int(np.prod(shape)) for shape in self._shapes.values()]
        parts = dict(zip(self._shapes, params.split(sizes, dim=1), strict=True))

        def convolve(name: str, values: torch.Tensor, stride: int = 1) -> torch.Tensor:
            _, inputs, size = _WEIGHTS[name]
            bias = parts[f"{name}.bias"].reshape(-1)
            values = functional.conv2d(
                values,
                parts[name].reshape(-1, inputs, size, size),
                None if self.normalised else bias,
                stride=stride,
                padding=size // 2,
                groups=networks,
            )
            if not self.normalised:
                return values
            gain = parts[f"{name}.gain"].reshape(-1)
            if record is not None:
                found = torch.var_mean(values, (0, 2, 3), correction=0)
                record[name] = found[1], found[0]
            mean, variance = (None, None) if use is None else use[name]
            return functional.batch_norm(
                values, mean, variance, gain, bias, training=use is None
            )

        pixels = images[:, None].expand(-1, networks, -1, -1)
        values = pixels.contiguous(memory_format=torch.channels_last)
        values = convolve("stem", values, 2).relu()
        for block, stride in (("a", 1), ("b", 2), ("c", 2)):
            inner = convolve(f"{block}.first", values, stride).relu()
            skip = f"{block}.skip"
            if skip in _WEIGHTS:
                values = convolve(skip, values, stride)
            values = (values + convolve(f"{block}.second", inner)).relu()
        pooled = values.mean((2, 3)).reshape(len(images), networks, _WIDTH)
        weight = parts["output.weight"].reshape(networks, _WIDTH, CLASSES)
        return torch.baddbmm(
            parts["output.bias"][:, None], pooled.transpose(0, 1), weight
        )


def _init(rng: np.random.Generator, normalised: bool) -> dict[str, Floats]:
    """Return He's normal weights, zero biases and unit gains."""
    arrays: dict[str, Floats] = {}
    for name, (outputs, inputs, size) in _WEIGHTS.items():
        shape = (outputs, inputs, size, size)
        scale = np.sqrt(2 / (inputs * size * size))
        arrays[name] = (scale * rng.standard_normal(shape)).astype(np.float32)
        arrays[f"{name}.bias"] = np.zeros(outputs, np.float32)
        if normalised:
            arrays[f"{name}.gain"] = np.ones(outputs, np.float32)
    weight = np.sqrt(2 / _WIDTH) * rng.standard_normal((_WIDTH, CLASSES))
    arrays["output.weight"] = weight.astype(np.float32)
    arrays["output.bias"] = np.zeros(CLASSES, np.float32)
    return arrays


def _tensors(images: Floats, labels: Any, rows: Any) -> tuple[torch.Tensor, ...]:
    side = round(images.shape[1] ** 0.5)
    return (
        torch.from_numpy(images[rows].reshape(-1, side, side)),
        torch.from_numpy(labels[rows]),
    )


def _by_network(stacked: torch.Tensor) -> dict[str, Floats]:
    return {str(index): row.numpy() for index, row in enumerate(stacked)}
