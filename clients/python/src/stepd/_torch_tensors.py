"""torch's tensors as arrays, and the local shards of DTensors."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from ._tensors import Array, Tensor, bfloat16

#: The dtypes of moments in a narrow format, by safetensors name.
NARROW_DTYPES = {torch.bfloat16: "BF16", torch.int8: "I8", torch.uint8: "U8"}

DTYPES = frozenset([torch.float16, torch.bfloat16, torch.float32, torch.float64])

PLAIN = frozenset([torch.Tensor, torch.nn.Parameter])

#: The integers that have the bits of a floating element, by its bytes.
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    integers = BITS[one.element_size()]
    return torch.equal(one.view(integers), other.view(integers))


def narrow_tensor(value: torch.Tensor) -> Tensor:
    """Return a moment in bfloat16, its 8-bit codes or their scales, unchanged."""
    array = np.ascontiguousarray(as_array(value))
    data = array.reshape(-1).view(np.uint8).data
    return Tensor(NARROW_DTYPES[value.dtype], tuple(value.shape), data)


def labelled_params(group: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Iterate over a group's parameters, each with a label for errors."""
    names = group.get("param_names") or map(str, range(len(group["params"])))
    for name, param in zip(names, group["params"], strict=True):
        yield f"parameter {name}", param


def require_params(params: object) -> None:
    if isinstance(params, torch.nn.Module) or not isinstance(params, Iterable):
        found = "None" if params is None else type(params).__name__
        expected = "params: expected parameters, as parameters() of a module gives"
        raise TypeError(f"{expected} them, found {found}")


def require_own_memory(groups: Iterable[Mapping[str, Any]]) -> None:
    """Raise ValueError for two parameters that overlap in memory.

    A step would read both with the same old values, and the second result would
    overwrite the first.
    """
    places: list[tuple[int, int, str, torch.Tensor]] = []
    labelled = [
        (f"{label} of group {index}", param)
        for index, group in enumerate(groups)
        for label, param in labelled_params(group)
    ]
    for label, param in labelled:
        local = local_of(param).detach()
        if local.is_meta or not local.numel() or not local.data_ptr():
            continue
        # The bounds reach from the first byte to the end of the last element, because
        # torch strides are >= 0.
        steps = zip(local.shape, local.stride(), strict=True)
        last = sum((size - 1) * stride for size, stride in steps)
        start = local.data_ptr()
        places.append((start, start + (last + 1) * local.element_size(), label, local))
    places.sort(key=lambda place: place[:2])
    for (_, end, one, a), (start, _, other, b) in itertools.pairwise(places):
        if start < end and a.device == b.device and share_elements(a, b):
            raise ValueError(
                f"{other}: expected memory of its own, found that of {one}, and one "
                "update would be lost; give a shared tensor as one parameter"
            )


def share_elements(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether tensors with overlapping bounds have an element in common."""
    if one.is_contiguous() and other.is_contiguous():
        return True
    try:
        work: Any = 10**5
        return np.shares_memory(as_array(one), as_array(other), max_work=work)
    except RuntimeError:
        # The search takes too long, so it counts as no overlap.
        return False


def check_tensor(name: str, param: torch.Tensor) -> None:
    """Raise TypeError for a parameter that no step accepts."""
    if param.dtype.is_complex:
        raise TypeError(
            f"{name}: expected real numbers, found {param.dtype}; "
            "torch.view_as_real(parameter) has them"
        )
    if param.dtype not in DTYPES:
        expected = "float16, bfloat16, float32 or float64"
        raise TypeError(f"{name}: expected {expected}, found {param.dtype}")
    if param.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, found {param.layout}")
    if hasattr(param, "__tensor_flatten__") and not is_dtensor(param):
        kind = type(param).__name__
        raise TypeError(f"{name}: expected a plain tensor or a DTensor, found {kind}")


def is_dtensor(tensor: Any) -> bool:
    if type(tensor) in PLAIN:
        return False
    # Looking for a loaded module avoids a slow import: no DTensor exists without it.
    for module in ("torch.distributed.tensor", "torch.distributed._tensor"):
        kind = getattr(sys.modules.get(module), "DTensor", None)
        if kind is not None:
            return isinstance(tensor, kind)
    return False


def is_sharded(tensor: Any) -> bool:
    """Return whether this process holds only a part of the tensor."""
    if not is_dtensor(tensor):
        return False
    return any(
        not placement.is_replicate() and tensor.device_mesh.size(dim) > 1
        for dim, placement in enumerate(tensor.placements)
    )


def local_of(tensor: Any) -> torch.Tensor:
    """Return this process's shard of a DTensor; any other tensor unchanged."""
    if not is_dtensor(tensor):
        return tensor  # type: ignore[no-any-return]
    local = tensor.to_local()
    # Wait for a collective operation that may still be running.
    return local.wait() if hasattr(local, "wait") else local  # type: ignore[no-any-return]


def local_like(name: str, tensor: Any, param: Any) -> torch.Tensor:
    """Return the part of a gradient or slot that belongs to the parameter's shard.

    Raises ValueError if only one of the two is a DTensor.
    """
    if is_dtensor(tensor) != is_dtensor(param):
        kinds = ("a DTensor", "a plain tensor")
        expected, found = kinds if is_dtensor(param) else kinds[::-1]
        raise ValueError(f"{name}: expected {expected} as its parameter, found {found}")
    if is_dtensor(param) and tensor.placements != param.placements:
        tensor = tensor.redistribute(param.device_mesh, param.placements)
    return local_of(tensor)


def like_parameter(value: torch.Tensor, param: Any) -> torch.Tensor:
    """Return a slot on its parameter's device, distributed as the parameter is."""
    if not is_dtensor(param):
        return value if param.is_cpu else value.to(param.device)
    placed: torch.Tensor = type(param).from_local(
        value.to(local_of(param).device),
        param.device_mesh,
        param.placements,
        run_check=False,
        shape=param.shape,
        stride=param.stride(),
    )
    return placed


def gradient_of(gradient: torch.Tensor, param: torch.Tensor) -> torch.Tensor:
    if gradient.layout != torch.strided:
        # Conversion to dense adds up duplicate rows.
        gradient = gradient.to_dense()
    return local_like("gradient", gradient, param)


def as_array(tensor: torch.Tensor) -> Array:
    """Return a tensor as numpy: a view in the CPU's memory, otherwise a copy."""
    if tensor.is_meta:
        raise ValueError("expected parameters with values, found some on device meta")
    if tensor.requires_grad:
        tensor = tensor.detach()
    if not tensor.is_cpu:
        tensor = tensor.cpu()
    if tensor.dtype == torch.bfloat16:
        # numpy has no bfloat16, so torch cannot convert such a tensor.
        return tensor.view(torch.int16).numpy().view(np.uint16).view(bfloat16)
    array: Array = tensor.numpy()
    return array


def as_tensor(array: Array) -> torch.Tensor:
    if array.dtype == bfloat16 and array.dtype != np.float16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
