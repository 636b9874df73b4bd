"""Arrays as safetensors files and back, without copies.

A file goes out as a short header and memory views of the arrays; a file that came
in is one buffer, and its arrays are views of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

try:
    from ml_dtypes import bfloat16 as _bfloat16
except ImportError:
    _bfloat16 = None

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]

#: The dtype of bfloat16 arrays: that of ml_dtypes if it is installed, else uint16
#: with a mark. ``bits.view(stepd.bfloat16)`` makes such an array of uint16 bits.
bfloat16: np.dtype[Any] = (
    np.dtype(np.uint16, metadata={"stepd": "BF16"})
    if _bfloat16 is None
    else np.dtype(_bfloat16)
)

_DTYPES: dict[str, np.dtype[Any]] = {
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": bfloat16,
}

#: Order of the dtypes in a canonical file.
_RANK = {name: rank for rank, name in enumerate(_DTYPES)}

_LENGTH_BYTES = 8
_ALIGNMENT = 8
_MAX_HEADER_BYTES = 100_000_000


class Tensor(NamedTuple):
    """An entry of a file: dtype in the names of safetensors, shape, bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: memoryview


def tensor_of(name: str, array: Any) -> Tensor:
    """The entry of an array, a view of it where it is contiguous and little-endian.

    Raises TypeError for a dtype other than float16, bfloat16, float32 and float64.
    """
    array = np.asarray(array)
    dtype = array.dtype
    if dtype == bfloat16 and _is_marked(dtype):
        wire = "BF16"
    elif dtype.kind == "f" and dtype.itemsize in (2, 4, 8):
        wire = f"F{8 * dtype.itemsize}"
        array = array.astype(_DTYPES[wire], copy=False)
    elif dtype == np.uint16:
        raise TypeError(
            f"{name}: expected floats, found uint16; "
            "array.view(stepd.bfloat16) says that these are the bits of bfloat16"
        )
    else:
        raise TypeError(
            f"{name}: expected float16, bfloat16, float32 or float64, found {dtype}"
        )
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return Tensor(wire, array.shape, flat.data)


def _is_marked(dtype: np.dtype[Any]) -> bool:
    return _bfloat16 is not None or "stepd" in (dtype.metadata or ())


def scalar(dtype: str, value: float) -> Tensor:
    """A scalar entry, I64 or F64."""
    array: Array = np.array([value], _DTYPES[dtype])
    return Tensor(dtype, (), array.view(np.uint8).data)


def array_of(tensor: Tensor) -> Array:
    """The array of an entry, a view of its bytes."""
    array: Array = np.ndarray(tensor.shape, _DTYPES[tensor.dtype], tensor.data)
    return array


def canonical(entries: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Entries in the order of a canonical file: by dtype, then by the name's UTF-8."""

    def key(entry: tuple[str, Tensor]) -> tuple[int, bytes]:
        return _RANK[entry[1].dtype], entry[0].encode()

    return dict(sorted(entries, key=key))


def file_parts(
    entries: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> list[memoryview]:
    """A safetensors file in parts: its header, then the bytes as they are."""
    header: dict[str, Any] = {}
    if metadata is not None:
        header["__metadata__"] = dict(sorted(metadata.items()))
    end = 0
    for name, (dtype, shape, data) in entries.items():
        offsets = [end, end := end + data.nbytes]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    padded = text.ljust(math.ceil(len(text) / _ALIGNMENT) * _ALIGNMENT)
    start = len(padded).to_bytes(_LENGTH_BYTES, "little") + padded
    return [memoryview(start), *(data for _, _, data in entries.values())]


def read_file(file: memoryview) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and entries of a safetensors file. Raises ValueError if it is none."""
    if file.nbytes < _LENGTH_BYTES:
        raise ValueError(f"a safetensors file has 8 bytes or more, not {file.nbytes}")
    length = int.from_bytes(file[:_LENGTH_BYTES], "little")
    start = _LENGTH_BYTES + length
    if length > _MAX_HEADER_BYTES or start > file.nbytes:
        raise ValueError(f"a safetensors header of {length} bytes is not in the file")
    try:
        header: dict[str, Any] = json.loads(bytes(file[_LENGTH_BYTES:start]))
        metadata: dict[str, str] = header.pop("__metadata__", {})
        entries = {
            name: _entry(name, entry, file[start:]) for name, entry in header.items()
        }
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"the safetensors header is malformed: {error!r}") from error
    return metadata, entries


def _entry(name: str, entry: Mapping[str, Any], data: memoryview) -> Tensor:
    dtype, shape = entry["dtype"], tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    if dtype not in _DTYPES:
        raise ValueError(f"{name}: expected one of {', '.join(_DTYPES)}, found {dtype}")
    expected = math.prod(shape) * _DTYPES[dtype].itemsize
    if not 0 <= begin <= end <= data.nbytes or end - begin != expected:
        raise ValueError(f"{name}: {expected} bytes are not at {begin} to {end}")
    return Tensor(dtype, shape, data[begin:end])


def tensors_of(arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    """Entries of arrays by name. Wide elements come first, so that all are aligned."""
    tensors = [(name, tensor_of(name, array)) for name, array in arrays.items()]
    return dict(sorted(tensors, key=lambda entry: _RANK[entry[1].dtype]))


def arrays_of(file: memoryview, names: Sequence[str] | None) -> dict[str, Array]:
    """The arrays of a file in the order of the names or its own, as views of it."""
    _, entries = read_file(file)
    return {name: array_of(entries[name]) for name in names or entries}
