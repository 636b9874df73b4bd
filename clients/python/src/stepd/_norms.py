"""What each call of a step has to know of the gradients of the others.

That is the norm over all of them, and whether all are finite.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping

import numpy as np

from ._calls import KeptTensor, TensorNorms
from ._options import Optimizer
from ._tensors import Array, Arrays, array_of, tensor_of

#: The first 16 bits of NaN as processors make it, with its sign.
_NAN_BITS = {"F64": 0xFFF8, "F32": 0xFFC0, "BF16": 0xFFC0, "F16": 0xFE00}

#: This divided by the largest number is 0, as any number divided by infinity is.
_TINY = math.ulp(0.0)


def is_double(array: Array) -> bool:
    return np.asarray(array).itemsize == np.dtype(np.float64).itemsize


def differ_in_arithmetic(params: Arrays, grads: Arrays) -> bool:
    """Whether a float64 tensor belongs to one that is none."""
    return any(
        is_double(param) != is_double(grads[name]) for name, param in params.items()
    )


def zeros_of(tensor: KeptTensor) -> Array:
    """What stands for a parameter where its values do not matter; takes no memory."""
    dtype = np.float64 if tensor.is_double else np.float32
    return np.broadcast_to(np.zeros((), dtype), tensor.shape)


def clips_by_norm(optimizer: Optimizer, clip: Mapping[str, float] | None) -> bool:
    """Whether the step needs the norm over all gradients, and does not have it."""
    given = clip or {}
    needs = "max_norm" in given or optimizer.get("max_grad_norm") is not None
    return needs and "total_norm" not in given


def total_norm(norms: Mapping[str, TensorNorms]) -> float:
    """The norm over all gradients, added in the order in which a server adds."""
    total = 0.0
    for name in sorted(norms, key=str.encode):
        total += norms[name].grad_squares
    return math.sqrt(total)


def clipped_by(
    total: float, optimizer: Optimizer, clip: Mapping[str, float] | None
) -> tuple[Optimizer, Mapping[str, float]] | None:
    """Optimizer and clip of each call, by the norm over all gradients.

    None where what all gradients are multiplied by is no number.
    """
    given = dict(clip or {})
    own = optimizer.get("max_grad_norm")
    if math.isfinite(total):
        return optimizer, {**given, "total_norm": total}
    if math.isnan(total) or ("max_norm" in given and own is not None):
        return None
    # Infinity cannot be sent.
    if "max_norm" in given:
        given["max_norm"] = min(given["max_norm"], _TINY)
    else:
        optimizer = {**optimizer, "max_grad_norm": min(own or 0.0, _TINY)}
    return optimizer, {**given, "total_norm": sys.float_info.max}


def spoiled(
    grads: Arrays, known: Mapping[str, KeptTensor], skips: bool
) -> dict[str, Array]:
    """Gradients of which one has a value that is none.

    So the call skips, or multiplies all by that. Gradients without values cannot be
    spoiled: a call that is to skip does without them, unless they are wrong.
    """
    for name, array in grads.items():
        if np.size(array):
            tensor = tensor_of(name, array)
            width = tensor.data.nbytes // np.size(array)
            nan = _NAN_BITS[tensor.dtype].to_bytes(2, "little").rjust(width, b"\0")
            data = memoryview(nan + tensor.data[width:])
            return {**grads, name: array_of(tensor._replace(data=data))}
    fits = all(
        name in known and np.shape(array) == known[name].shape
        for name, array in grads.items()
    )
    return {} if skips and fits else dict(grads)
