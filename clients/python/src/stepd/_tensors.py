"""Conversion of arrays to safetensors files and back, without copies.

The client sends a file as a short header and memory views of the arrays. A received
file is one buffer, and its arrays are views of that buffer.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

try:
    from ml_dtypes import bfloat16 as _bfloat16
except ImportError:
    _bfloat16 = None

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]

#: The dtype of bfloat16 arrays: ml_dtypes' if that is installed, otherwise uint16 with
#: metadata. ``bits.view(stepd.bfloat16)`` makes such an array from uint16 bits.
bfloat16: np.dtype[Any] = (
    np.dtype(np.uint16, metadata={"stepd": "BF16"})
    if _bfloat16 is None
    else np.dtype(_bfloat16)
)

#: The dtypes by safetensors name, in the order of a canonical file.
_DTYPES: dict[str, np.dtype[Any]] = {
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "BF16": bfloat16,
    "F16": np.dtype("<f2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
}

_LENGTH_BYTES = 8
_ALIGNMENT = 8
_MAX_HEADER_BYTES = 100_000_000


class Tensor(NamedTuple):
    """A tensor in a file: safetensors dtype, shape and bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: memoryview


#: The safetensors names of the dtypes that a caller's arrays may have.
_WIRE: dict[Any, str] = {_DTYPES[name]: name for name in ("F64", "F32", "F16")}

#: Smaller arrays are copied into one part, which costs less than a view of each.
_COPIED_BYTES = 4096

#: No tensor may have one of these names: safetensors reserves the first, and the server
#: refuses the second, because it is special in JavaScript.
RESERVED_NAMES = frozenset({"__metadata__", "__proto__"})


#: numpy would convert these types to an array of a dtype that the caller did not
#: choose.
_NO_ARRAYS = (list, tuple, dict, set, str, bytes, int, float, complex)


def tensor_of(name: str, array: Any) -> Tensor:
    """Return an array as a Tensor: a view if it is contiguous and little-endian.

    Raises TypeError for a dtype other than float16, bfloat16, float32 and float64.
    """
    wire, array = _sendable(name, array)
    return Tensor(wire, array.shape, array.reshape(-1).view(np.uint8).data)


def _sendable(name: str, array: Any) -> tuple[str, Array]:
    """Return an array's safetensors dtype, and the array as the file holds it."""
    if type(array) is np.ndarray:
        wire = _WIRE.get(array.dtype)
        if wire is not None and array.flags.c_contiguous:
            return wire, array
    found = type(array).__name__
    if array is None or isinstance(array, _NO_ARRAYS):
        raise TypeError(
            f"{name}: expected an array, found {found}; "
            "np.asarray(values, np.float32) makes one of a list of numbers"
        )
    refuse_masked(name, array)
    try:
        array = np.asarray(array)
    except Exception as error:
        raise TypeError(f"{name}: expected an array, found {found} ({error})") from None
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
    # ascontiguousarray turns a scalar into a 1-d array; reshape restores the scalar.
    return wire, np.ascontiguousarray(array).reshape(array.shape)


def contiguous(field: str, name: str, array: Any) -> Array:
    """Return an array as a file holds it. Raises TypeError for other arrays."""
    try:
        return _sendable(name, array)[1]
    except TypeError as error:
        raise TypeError(f"{field}: {error}") from None


def refuse_masked(name: str, array: Any) -> None:
    """Raise TypeError for a masked array, because a file cannot hold the mask."""
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(
            f"{name}: expected an array without a mask, found a masked array; "
            "array.filled(0) gives its masked values a number"
        )


def name_fault(name: Any) -> str | None:
    """Return why a tensor cannot have that name, as a sentence; None if it can."""
    if not isinstance(name, str):
        return f"expected names as str, found {name!r}"
    if name in RESERVED_NAMES:
        return f"no tensor can be called {name}, which the format of files reserves"
    try:
        name.encode()
    except UnicodeEncodeError:
        return f"the name {name!r} has a lone surrogate, which UTF-8 cannot express"
    return None


def _is_marked(dtype: np.dtype[Any]) -> bool:
    return _bfloat16 is not None or "stepd" in (dtype.metadata or ())


def scalar(dtype: str, value: float) -> Tensor:
    """Return a scalar tensor, I64 or F64."""
    array: Array = np.array([value], _DTYPES[dtype])
    return Tensor(dtype, (), array.view(np.uint8).data)


def array_of(tensor: Tensor) -> Array:
    """Return a tensor's array, which is a view of the tensor's bytes."""
    array: Array = np.ndarray(tensor.shape, _DTYPES[tensor.dtype], tensor.data)
    return array


def canonical(entries: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Return entries in canonical order: by dtype, then by UTF-8 order of names."""
    given = dict(entries)
    by_dtype: dict[str, list[str]] = {dtype: [] for dtype in _DTYPES}
    for name, tensor in given.items():
        by_dtype[tensor.dtype].append(name)
    # str compares by code point, which is the order of UTF-8 bytes.
    return {name: given[name] for own in by_dtype.values() for name in sorted(own)}


def file_parts(
    entries: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> list[memoryview]:
    """Return a safetensors file in parts: the header, then each tensor's bytes."""
    header = _HeaderText()
    if metadata is not None:
        header.add_metadata(metadata)
    for name, (dtype, shape, data) in entries.items():
        header.add(name, dtype, shape, data.nbytes)
    return [header.start(), *(data for _, _, data in entries.values())]


def arrays_parts(
    field: str, arrays: Mapping[str, Any], *, has_int8: bool = False
) -> list[memoryview]:
    """Return a safetensors file of arrays in parts; large arrays are views.

    Wide dtypes come first, so that every array is aligned. ``has_int8`` allows int8.
    Raises TypeError for an array that cannot be sent.
    """
    if not isinstance(arrays, Mapping):
        found = type(arrays).__name__
        raise TypeError(
            f"{field}: expected a mapping of names to arrays, found {found}"
        )
    by_dtype: dict[str, list[tuple[str, Array]]] = {name: [] for name in _DTYPES}
    for name, given in arrays.items():
        try:
            if has_int8 and getattr(given, "dtype", None) == np.int8:
                wire, array = "I8", np.ascontiguousarray(given).reshape(given.shape)
            else:
                wire, array = _sendable(name, given)
        except TypeError as error:
            raise TypeError(f"{field}: {error}") from None
        by_dtype[wire].append((name, array))
    header = _HeaderText()
    data: list[memoryview] = []
    small = bytearray()
    for wire, own in by_dtype.items():
        for name, array in own:
            header.add(name, wire, array.shape, array.nbytes)
            if array.nbytes < _COPIED_BYTES:
                small += array.tobytes()
                continue
            if small:
                data.append(memoryview(small))
                small = bytearray()
            data.append(array.reshape(-1).view(np.uint8).data)
    if small:
        data.append(memoryview(small))
    return [header.start(), *data]


class _HeaderText:
    """The header of a file, built as text.

    For many small tensors, a dict and lists per tensor would cost more than the step,
    above all in the garbage collector.
    """

    def __init__(self) -> None:
        self._entries: list[str] = []
        self._end = 0

    def add_metadata(self, metadata: Mapping[str, str]) -> None:
        self._entries.append(f'"__metadata__":{_json(dict(sorted(metadata.items())))}')

    def add(self, name: str, dtype: str, shape: tuple[int, ...], nbytes: int) -> None:
        sizes = ",".join(map(str, shape))
        start, self._end = self._end, self._end + nbytes
        self._entries.append(
            f'{_quoted(name)}:{{"dtype":"{dtype}","shape":[{sizes}],'
            f'"data_offsets":[{start},{self._end}]}}'
        )

    def start(self) -> memoryview:
        """Return the length field and the header of the file."""
        text = f"{{{','.join(self._entries)}}}".encode()
        padded = text.ljust(math.ceil(len(text) / _ALIGNMENT) * _ALIGNMENT)
        return memoryview(len(padded).to_bytes(_LENGTH_BYTES, "little") + padded)


#: This function encodes a name as a JSON string, with the fewest escapes.
_quoted = json.encoder.encode_basestring


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class Entry(NamedTuple):
    """A tensor's header entry; ``begin`` and ``end`` delimit its bytes."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Header(NamedTuple):
    """A parsed header. Callers share it through a cache, and must not change it."""

    metadata: dict[str, str]
    entries: dict[str, Entry]


#: Longer headers are not cached.
_CACHED_HEADER_BYTES = 2**21


@functools.lru_cache(maxsize=32)
def _cached_header(text: bytes) -> Header:
    """Parse and cache a header. The header stays the same from step to step."""
    return _read_header(text)


def _read_header(text: bytes) -> Header:
    try:
        # safetensors itself accepts a size only as digits: no 2.0, 2e0 or -0.
        count = _count if b"-" in text else int
        header: dict[str, Any] = json.loads(text, parse_float=_count, parse_int=count)
        metadata: dict[str, str] = header.pop("__metadata__", {})
        entries = {name: _entry(name, entry) for name, entry in header.items()}
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"the safetensors header is malformed: {error!r}") from error
    return Header(metadata, entries)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"the safetensors header has {text} where a size stands")
    return int(text)


def open_file(file: memoryview) -> tuple[Header, memoryview]:
    """Return header and data of a safetensors file. Raises ValueError if invalid."""
    if file.nbytes < _LENGTH_BYTES:
        raise ValueError(f"a safetensors file has 8 bytes or more, not {file.nbytes}")
    length = int.from_bytes(file[:_LENGTH_BYTES], "little")
    start = _LENGTH_BYTES + length
    if length > _MAX_HEADER_BYTES or start > file.nbytes:
        raise ValueError(f"a safetensors header of {length} bytes is not in the file")
    text = bytes(file[_LENGTH_BYTES:start])
    is_cached = length <= _CACHED_HEADER_BYTES
    header = _cached_header(text) if is_cached else _read_header(text)
    data = file[start:]
    end = max((entry.end for entry in header.entries.values()), default=0)
    if end > data.nbytes:
        name = next(n for n, entry in header.entries.items() if entry.end == end)
        raise ValueError(f"{name}: its bytes end at {end} of {data.nbytes}")
    return header, data


def read_file(file: memoryview) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return metadata and tensors of a file. Raises ValueError if invalid."""
    header, data = open_file(file)
    return header.metadata, dict(tensors_in(header, data))


def tensors_in(header: Header, data: memoryview) -> Iterator[tuple[str, Tensor]]:
    """Iterate over a file's names and tensors. The tensors are views of the data."""
    for name, (dtype, shape, begin, end) in header.entries.items():
        yield name, Tensor(dtype, shape, data[begin:end])


def tensor_in(header: Header, data: memoryview, name: str) -> Tensor:
    """Return one tensor of a file. Raises KeyError for an unknown name."""
    dtype, shape, begin, end = header.entries[name]
    return Tensor(dtype, shape, data[begin:end])


def _entry(name: str, entry: Mapping[str, Any]) -> Entry:
    dtype, shape = entry["dtype"], tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    if dtype not in _DTYPES:
        raise ValueError(f"{name}: expected one of {', '.join(_DTYPES)}, found {dtype}")
    if 0 in shape and math.prod(shape[: shape.index(0)]) >= 2**53:
        raise ValueError(f"{name}: the product of shape {list(shape)} is too large")
    expected = math.prod(shape) * _DTYPES[dtype].itemsize
    if not 0 <= begin <= end or end - begin != expected:
        raise ValueError(f"{name}: {expected} bytes are not at {begin} to {end}")
    return Entry(dtype, shape, begin, end)


def arrays_of(file: memoryview, names: Sequence[str] | None) -> dict[str, Array]:
    """Return a file's arrays as views, in the order of ``names`` or of the file."""
    header, data = open_file(file)
    arrays: dict[str, Array] = {}
    for name in header.entries if names is None else names:
        dtype, shape, begin, _ = header.entries[name]
        arrays[name] = np.ndarray(shape, _DTYPES[dtype], data, begin)
    return arrays
