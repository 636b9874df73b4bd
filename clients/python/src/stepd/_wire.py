"""MessagePack bodies. Large blobs are never copied.

A request is a list of parts, in which blobs are views. A generator decodes the reply:
it yields the buffer for the next bytes, so that each blob is received directly into its
own memory. Large buffers come from a pool.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Generator, Iterator, Mapping
from typing import Any

import msgpack
import numpy as np

from ._memory import POOLED_BYTES, Pool

MEDIA_TYPE = "application/vnd.msgpack"

_MAX_BLOB = 2**32 - 1

#: A MessagePack map starts with one of these bytes; no JSON text does.
_MAPS = [bytes([first]) for first in (*range(0x80, 0x90), 0xDE, 0xDF)]

#: Parts below this size are joined: one send costs more than copying them.
_JOIN_BYTES = 65536

#: The reader reads this many bytes ahead, or more if a value other than a blob is
#: longer.
_AHEAD_BYTES = 16384


class Blob:
    """Several parts that are encoded as one bin value."""

    def __init__(self, parts: list[memoryview]) -> None:
        self.parts = parts
        self.nbytes = sum(part.nbytes for part in parts)


def _to_msgpack(value: Any) -> Any:
    """Convert the types that MessagePack lacks: numpy scalars, other mappings."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, int):
        raise ValueError(f"expected integers of at most 64 bits, found {value}")
    raise TypeError(f"expected a number, a text, a list or a mapping, found {value!r}")


def encode(fields: Mapping[str, Any]) -> list[memoryview]:
    """Encode a map, in parts. Fields that are None are omitted."""
    packer = msgpack.Packer(default=_to_msgpack)
    given = {key: value for key, value in fields.items() if value is not None}
    parts = [memoryview(packer.pack_map_header(len(given)))]
    for key, value in given.items():
        parts.append(memoryview(packer.pack(key)))
        parts.extend(_value_parts(packer, key, value))
    return _joined(parts)


def _value_parts(packer: msgpack.Packer, key: str, value: Any) -> Iterator[memoryview]:
    if isinstance(value, Blob):
        if value.nbytes > _MAX_BLOB:
            raise ValueError(
                f"{key}: expected at most {_MAX_BLOB} bytes, found {value.nbytes}; "
                "a ShardedClient sends them in several calls"
            )
        yield memoryview(struct.pack(">BI", 0xC6, value.nbytes))
        yield from value.parts
    elif not _has_blob(value):
        yield memoryview(_packed(packer, key, value))
    elif isinstance(value, dict):
        yield memoryview(packer.pack_map_header(len(value)))
        for name, member in value.items():
            yield memoryview(packer.pack(name))
            yield from _value_parts(packer, f"{key}.{name}", member)
    else:
        yield memoryview(packer.pack_array_header(len(value)))
        for index, item in enumerate(value):
            yield from _value_parts(packer, f"{key}[{index}]", item)


def _has_blob(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_blob, value.values()))
    if isinstance(value, list):
        return any(map(_has_blob, value))
    return isinstance(value, Blob)


def _packed(packer: msgpack.Packer, key: str, value: Any) -> bytes:
    try:
        packed: bytes = packer.pack(value)
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{key}: expected text, found {error.object[:60]!r}, which has a lone "
            "surrogate"
        ) from None
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None
    except TypeError as error:
        raise TypeError(f"{key}: {error}") from None
    return packed


def problem_in(body: bytes) -> Any:
    """Decode an error's problem details, from JSON or MessagePack."""
    is_map = body[:1] in _MAPS
    return msgpack.unpackb(body) if is_map else json.loads(body)


def _joined(parts: list[memoryview]) -> list[memoryview]:
    """Merge small parts that follow one another."""
    result: list[memoryview] = []
    small = bytearray()
    for part in parts:
        if part.nbytes < _JOIN_BYTES:
            small += part
            continue
        if small:
            result.append(memoryview(small))
            small = bytearray()
        result.append(part)
    return [*result, memoryview(small)] if small else result


Reader = Generator[memoryview, int, dict[str, Any]]


def decode(total: int, pool: Pool) -> Reader:
    """Decode a map of ``total`` bytes: yields buffers to fill, receives byte counts.

    The blobs in the map are memory views. Each has its own buffer, aligned for any
    dtype. Raises ValueError for invalid bytes.
    """
    reader = _ReadAhead(total, pool)
    value: Any
    result: dict[str, Any] = {}
    for _ in range((yield from reader.map_length())):
        key = yield from reader.value()
        length = yield from reader.blob_length()
        if length is None:
            value = yield from reader.value()
        else:
            value = yield from reader.blob(length)
        result[key] = value
    if reader.left:
        raise ValueError(f"{reader.left} bytes follow the reply")
    return result


class _ReadAhead:
    """Bytes that were read but not yet decoded."""

    def __init__(self, total: int, pool: Pool) -> None:
        self._unread = total
        self._pool = pool
        self._buffer = bytearray()

    @property
    def left(self) -> int:
        """The number of bytes of the body that are not decoded yet."""
        return self._unread + len(self._buffer)

    def _more(self, count: int) -> Generator[memoryview, int, None]:
        """Read until ``count`` bytes are buffered."""
        while len(self._buffer) < count:
            chunk = memoryview(bytearray(min(max(count, _AHEAD_BYTES), self._unread)))
            got = yield from self._fill(chunk)
            self._buffer += chunk[:got]

    def _fill(self, buffer: memoryview) -> Generator[memoryview, int, int]:
        if not buffer.nbytes:
            raise ValueError("the reply ends in the middle of a value")
        got = yield buffer
        if not got:
            raise EOFError("the connection ended in the middle of the reply")
        self._unread -= got
        return got

    def _take(self, count: int) -> bytearray:
        taken = self._buffer[:count]
        del self._buffer[:count]
        return taken

    def map_length(self) -> Generator[memoryview, int, int]:
        yield from self._more(1)
        kind = self._buffer[0]
        if kind & 0xF0 == 0x80:
            return self._take(1)[0] & 0x0F
        size = {0xDE: 2, 0xDF: 4}.get(kind)
        if size is None:
            raise ValueError("the reply is no map")
        yield from self._more(1 + size)
        return int.from_bytes(self._take(1 + size)[1:], "big")

    def blob_length(self) -> Generator[memoryview, int, int | None]:
        """Return the next blob's length, or None if the next value is not a blob."""
        yield from self._more(1)
        size = {0xC4: 1, 0xC5: 2, 0xC6: 4}.get(self._buffer[0])
        if size is None:
            return None
        yield from self._more(1 + size)
        length = int.from_bytes(self._take(1 + size)[1:], "big")
        if length > self.left:
            raise ValueError(f"a blob of {length} bytes is longer than the reply")
        return length

    def blob(self, length: int) -> Generator[memoryview, int, memoryview]:
        if length < POOLED_BYTES:
            # np.empty, unlike bytearray, does not write zeros first.
            blob = np.empty(length, np.uint8).data
        else:
            blob, _ = self._pool.take(length)
        first = self._take(min(length, len(self._buffer)))
        blob[: len(first)] = first
        filled = len(first)
        while filled < length:
            filled += yield from self._fill(blob[filled:])
        return blob

    def value(self) -> Generator[memoryview, int, Any]:
        count = 1
        while True:
            yield from self._more(min(count, self.left) or 1)
            # max_buffer_size also limits each length inside the value to the length of
            # the body.
            unpacker = msgpack.Unpacker(max_buffer_size=max(self.left, 1))
            unpacker.feed(self._buffer)
            try:
                value = unpacker.unpack()
            except msgpack.OutOfData:
                if not self._unread:
                    raise ValueError("the reply ends in the middle") from None
                count = 2 * len(self._buffer)
                continue
            self._take(unpacker.tell())
            return value
