"""The norm over all gradients of a step that takes several calls."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from ._calls import TensorInfo, TensorNorms
from ._options import Optimizer
from ._tensors import Array, Arrays


def is_double(array: Array) -> bool:
    return np.asarray(array).itemsize == np.dtype(np.float64).itemsize


def differ_in_arithmetic(params: Arrays, grads: Arrays) -> bool:
    """Return whether any parameter is float64 and its gradient is not, or reversely."""
    return any(
        is_double(param) != is_double(grads[name]) for name, param in params.items()
    )


def zeros_of(tensor: TensorInfo) -> Array:
    """Return zeros for a parameter whose values do not matter. Uses no memory."""
    dtype = np.float64 if tensor.is_double else np.float32
    return np.broadcast_to(np.zeros((), dtype), tensor.shape)


def clips_by_norm(optimizer: Optimizer, clip: Mapping[str, float] | None) -> bool:
    """Return True if the step clips by a norm that the caller has not passed."""
    given = clip or {}
    needs = "max_norm" in given or optimizer.get("max_grad_norm") is not None
    return needs and "total_norm" not in given


def total_norm(norms: Mapping[str, TensorNorms]) -> float:
    """Return the norm over all gradients, summed in the server's order of addition."""
    total = 0.0
    for name in sorted(norms, key=str.encode):
        total += norms[name].grad_squares
    return math.sqrt(total)
