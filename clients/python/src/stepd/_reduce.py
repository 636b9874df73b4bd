"""Encodes the calls of optimizer.reduce, splits them, and joins their results."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypedDict

import numpy as np

from ._checks import expected, require_arrays, require_mapping, require_number
from ._options import nearest
from ._tensors import (
    Array,
    Arrays,
    Tensor,
    arrays_of,
    arrays_parts,
    canonical,
    file_parts,
    read_file,
)
from ._wire import Blob

Form = Literal["params", "deltas", "gradients"]

#: The suffix of the scales of an int8 array.
_SCALE = ".scale"

#: The key prefixes of an accumulator's entries.
_SUM_KEYS = ("sum", "weight", "count")


class Update(NamedTuple):
    """One update: arrays by name, and their weight in the mean.

    An int8 array ``w`` needs a float32 array ``w.scale``, which multiplies its values:
    a scalar, or one number for each index of the first dimension.
    """

    tensors: Arrays
    weight: float = 1.0


#: An update: :class:`Update`, a pair (arrays, weight), or arrays of weight 1.
AnyUpdate = Update | tuple[Arrays, float] | Arrays


class ReductionOptions(TypedDict, total=False):
    """The options of a reduction. None means the default."""

    form: Form | None
    method: Mapping[str, Any] | None
    accumulator: bytes | memoryview | None
    non_finite: Literal["error", "drop", "propagate"] | None
    missing: Literal["error", "renormalize"] | None


class ReduceOptions(ReductionOptions, total=False):
    """The options of :meth:`Client.reduce`."""

    finish: bool | None


class Reduce(ReductionOptions, total=False):
    """The option ``reduce`` of a step: the arguments of :meth:`Client.reduce`."""

    updates: Sequence[Any]


@dataclass(frozen=True)
class Reduction:
    """The number and the weight of the updates that a reduction combined."""

    #: The number of updates, including those in the accumulator.
    count: int
    #: The sum of their weights.
    weight: float
    #: The indexes of the updates that ``non_finite="drop"`` left out.
    dropped: tuple[int, ...]
    #: Whether there is nothing to step: no update, or only weights of 0.
    skipped: bool


@dataclass(frozen=True)
class ReduceResult(Reduction):
    """The pseudo-gradient, or the accumulator with ``finish=False``."""

    #: The pseudo-gradient, for a step: float64 for float64 parameters, else float32.
    #: Empty if skipped, and with ``finish=False``.
    grads: dict[str, Array]
    #: The sums so far, for a later call. None if the call finished.
    accumulator: memoryview | None


def updates_of(updates: Any) -> list[Update]:
    """Convert updates of any accepted form. Raises TypeError for anything else."""
    if isinstance(updates, (str, Mapping)) or not isinstance(updates, Iterable):
        raise expected("updates", "a list of arrays by name, or of pairs", updates)
    read = []
    for index, update in enumerate(updates):
        field = f"updates[{index}]"
        pair = (update, 1.0) if isinstance(update, Mapping) else update
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise expected(field, "arrays by name, or (arrays, weight)", update)
        tensors, weight = pair
        require_arrays(field, tensors)
        require_number(f"{field}.weight", weight)
        read.append(Update(tensors, float(weight)))
    return read


def accumulator_of(accumulator: Any) -> memoryview:
    if isinstance(accumulator, (bytes, bytearray, memoryview)):
        return memoryview(accumulator).cast("B")
    is_result = isinstance(accumulator, ReduceResult)
    hint = "; its accumulator is meant" if is_result else ""
    raise expected("accumulator", "bytes of an earlier result", accumulator, hint)


def reduction_fields(reduce: Mapping[str, Any]) -> dict[str, Any]:
    """Return a reduction's fields on the wire. Raises TypeError for a wrong type."""
    known = sorted(Reduce.__optional_keys__)
    for name in reduce:
        if name not in known:
            raise TypeError(f"reduce: expected no {name}{nearest(name, known)}")
    fields = {key: value for key, value in reduce.items() if value is not None}
    if "method" in fields:
        require_mapping("method", fields["method"], '{"name": "median"}')
    for name in ("form", "non_finite", "missing"):
        if name in fields and not isinstance(fields[name], str):
            raise expected(name, "a str", fields[name])
    fields["updates"] = [
        {
            "tensors": Blob(arrays_parts(f"updates[{index}]", tensors, has_int8=True)),
            "weight": weight,
        }
        for index, (tensors, weight) in enumerate(updates_of(fields.get("updates")))
    ]
    if "accumulator" in fields:
        fields["accumulator"] = Blob([accumulator_of(fields["accumulator"])])
    return fields


def reduction_of(answer: Mapping[str, Any]) -> Reduction:
    return Reduction(
        count=answer["count"],
        weight=float(answer["weight"]),
        dropped=tuple(answer["dropped"]),
        skipped=answer["skipped"],
    )


def result_of(answer: Mapping[str, Any], params: Arrays | None) -> ReduceResult:
    grads = arrays_of(answer["grads"], None) if "grads" in answer else {}
    return ReduceResult(
        **vars(reduction_of(answer)),
        grads={name: grads[name] for name in _order(grads, params)},
        accumulator=answer.get("accumulator"),
    )


def _order(grads: Arrays, params: Arrays | None) -> list[str]:
    """Return names in the order of the parameters, or of a file without parameters."""
    if params is not None:
        return [name for name in params if name in grads]
    return sorted(grads, key=lambda name: (-grads[name].itemsize, name))


def matrix_on_wire(matrix: Array, count: int) -> list[list[float | str]]:
    """Return a matrix of ``count`` rows as lists. NaN and infinities are strings.

    Raises TypeError or ValueError, unless ``matrix`` is such an array.
    """
    what = f"a float64 array of shape ({count}, {count})"
    if not isinstance(matrix, np.ndarray) or matrix.dtype != np.float64:
        raise expected("earlier", what, matrix)
    if matrix.shape != (count, count):
        raise ValueError(f"earlier: expected {what}, found one of shape {matrix.shape}")
    return [
        [value if math.isfinite(value) else _text_of(value) for value in row]
        for row in matrix.tolist()
    ]


def _text_of(value: float) -> str:
    return "NaN" if math.isnan(value) else f"{'-' if value < 0 else ''}Infinity"


def matrix_of(answer: Mapping[str, Any]) -> Array:
    rows = [[float(value) for value in row] for row in answer["distances"]]
    count = len(rows)
    return np.array(rows, np.float64).reshape(count, count)


class Shards:
    """A reduction, split by tensors."""

    def __init__(
        self,
        params: Arrays | None,
        updates: Sequence[Update],
        accumulator: memoryview | None,
    ) -> None:
        self.params = params
        self.updates = updates
        self._metadata: dict[str, str] = {}
        self._sums: dict[str, Tensor] = {}
        if accumulator is not None:
            self._metadata, self._sums = read_file(accumulator)

    def pack(self, request_bytes: int) -> list[list[str]]:
        """Return the tensor names of each call, for one call or more."""
        sizes = {name: _size(array) for name, array in (self.params or {}).items()}
        for key, tensor in self._sums.items():
            name = key.partition("/")[2]
            sizes[name] = sizes.get(name, 0) + tensor.data.nbytes
        for tensors, _ in self.updates:
            for name in _names(tensors):
                own = sum(map(_size, _pick(tensors, [name]).values()))
                sizes[name] = sizes.get(name, 0) + own
        shards: list[list[str]] = [[]]
        room = request_bytes
        for name, size in sizes.items():
            if size > room and shards[-1]:
                shards.append([])
                room = request_bytes
            shards[-1].append(name)
            room -= size
        return shards

    def by_name(self, request_bytes: int) -> list[list[str]]:
        """Return the names of each call, in the order of the names."""
        shards = self.pack(request_bytes)
        names = iter(sorted(name for own in shards for name in own))
        return [[next(names) for _ in own] for own in shards]

    def params_of(self, names: Sequence[str]) -> Arrays | None:
        if self.params is None:
            return None
        return {name: self.params[name] for name in names if name in self.params}

    def updates_of(
        self, names: Sequence[str], dropped: Iterable[int] = ()
    ) -> list[Update]:
        left_out = set(dropped)
        return [
            Update(_pick(tensors, names), weight)
            for index, (tensors, weight) in enumerate(self.updates)
            if index not in left_out
        ]

    def accumulator_of(self, names: Sequence[str]) -> memoryview | None:
        if not self._metadata:
            return None
        keys = [f"{kind}/{name}" for name in names for kind in _SUM_KEYS]
        own = {key: self._sums[key] for key in keys if key in self._sums}
        dtypes = {f"dtype/{name}" for name in names}
        metadata = {
            key: value
            for key, value in self._metadata.items()
            if not key.startswith("dtype/") or key in dtypes
        }
        return memoryview(b"".join(file_parts(canonical(own.items()), metadata)))


def join(
    results: Sequence[ReduceResult], dropped: Iterable[int], params: Arrays | None
) -> ReduceResult:
    """Join the results of all shards."""
    grads: dict[str, Array] = {}
    for result in results:
        grads.update(result.grads)
    sums = [one.accumulator for one in results if one.accumulator is not None]
    return ReduceResult(
        count=max(one.count for one in results),
        weight=max(one.weight for one in results),
        dropped=tuple(sorted(dropped)),
        skipped=all(one.skipped for one in results),
        grads={name: grads[name] for name in _order(grads, params)},
        accumulator=_joined(sums) if sums else None,
    )


def _joined(sums: Sequence[memoryview]) -> memoryview:
    metadata: dict[str, str] = {}
    entries: dict[str, Tensor] = {}
    for file in sums:
        own_metadata, own = read_file(file)
        metadata.update(own_metadata)
        entries.update(own)
    return memoryview(b"".join(file_parts(canonical(entries.items()), metadata)))


def _size(array: Any) -> int:
    return np.asarray(array).nbytes


def _names(tensors: Arrays) -> list[str]:
    """Return the names of an update's tensors, without scales."""
    scales = {
        name + _SCALE
        for name, array in tensors.items()
        if np.asarray(array).dtype == np.int8
    }
    return [name for name in tensors if name not in scales]


def _pick(tensors: Arrays, names: Sequence[str]) -> dict[str, Array]:
    """Return some of an update's tensors, with their scales."""
    own: dict[str, Array] = {}
    for name in names:
        if name not in tensors:
            continue
        own[name] = tensors[name]
        scale = name + _SCALE
        if scale in tensors and np.asarray(tensors[name]).dtype == np.int8:
            own[scale] = tensors[scale]
    return own
