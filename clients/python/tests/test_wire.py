"""Compares the codec with msgpack, for pieces of any size and for broken bytes."""

from __future__ import annotations

import random
from typing import Any

import msgpack
import numpy as np
import pytest

from stepd._memory import Pool
from stepd._wire import Blob, decode, encode


def read(data: bytes, piece: int, total: int | None = None) -> dict[str, Any]:
    """Decode with at most ``piece`` bytes at a time."""
    reader = decode(len(data) if total is None else total, Pool())
    at = 0
    try:
        buffer = next(reader)
        while True:
            count = min(piece, buffer.nbytes, len(data) - at)
            buffer[:count] = data[at : at + count]
            at += count
            buffer = reader.send(count)
    except StopIteration as end:
        result: dict[str, Any] = end.value
        return result


VALUE: dict[str, Any] = {
    "params": random.Random(1).randbytes(70_000),
    "small": b"1234",
    "middle": random.Random(2).randbytes(3000),
    "none": b"",
    "step": 7,
    "stats": {f"layer.{i}": {"norm": i / 3, "zeros": [i, None]} for i in range(2000)},
    "state": random.Random(3).randbytes(100_000),
    "warnings": ["ü" * 300],
    **{f"more {i}": i for i in range(20)},
}


@pytest.mark.parametrize("piece", [1, 7, 4096, 10**9])
def test_decodes_msgpack_output(piece: int) -> None:
    found = read(msgpack.packb(VALUE), piece)
    assert list(found) == list(VALUE)
    for key, value in found.items():
        if isinstance(VALUE[key], bytes):
            assert isinstance(value, memoryview) and not value.readonly
            assert np.frombuffer(value, np.uint8).ctypes.data % 16 == 0
        assert value == VALUE[key]


def test_msgpack_decodes_the_output() -> None:
    big = np.random.default_rng(1).bytes(100_000)
    parts = [memoryview(b"ab"), memoryview(big), memoryview(b"cd")]
    fields = {
        "blob": Blob(parts),
        "left out": None,
        "numbers": {"a": np.float32(0.5), "b": np.int64(3), "c": np.arange(2)},
        "null": {"kept": None},
        "tuple": (1, 2.5, True),
    }
    body = encode(fields)
    assert any(part is parts[1] for part in body), "a large part is sent as it is"
    assert msgpack.unpackb(b"".join(body)) == {
        "blob": b"ab" + big + b"cd",
        "numbers": {"a": 0.5, "b": 3, "c": [0, 1]},
        "null": {"kept": None},
        "tuple": [1, 2.5, True],
    }
    with pytest.raises(TypeError, match="object"):
        encode({"x": object()})


def test_refuses_broken_bytes() -> None:
    whole = msgpack.packb({"params": b"x" * 100, "step": 7})
    for end in range(len(whole)):
        with pytest.raises(ValueError):
            read(whole[:end], 10**9)
        with pytest.raises(EOFError):
            read(whole[:end], 10**9, total=len(whole))
    for broken in (
        whole + b"\0",
        b"\x93123",
        b"\x81\xa1a\xc6\xff\xff\xff\xff",
        b"\x81\xa1a\xc1",
        b"\xdf\xff\xff\xff\xff",
    ):
        with pytest.raises(ValueError):
            read(broken, 10**9)
