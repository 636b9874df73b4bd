"""Tests the encoding and parsing of files with many small tensors."""

from __future__ import annotations

import gc
import json
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load

import stepd
from stepd._calls import step
from stepd._tensors import arrays_of, arrays_parts, open_file


def file_of(arrays: dict[str, Any]) -> bytes:
    return b"".join(arrays_parts("params", arrays))


def test_the_library_reads_the_parts() -> None:
    arrays = {
        "half": np.arange(3, dtype=np.float16),
        "large": np.arange(20_000, dtype=np.float32).reshape(100, 200),
        'ünï"\n\x01\0': np.ones((), np.float32),
        "": np.zeros((0, 3), np.float32),
        "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "double": np.arange(2, dtype=np.float64),
        "swapped": np.arange(2, dtype=">f4"),
    }
    found = load(file_of(arrays))
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].shape == array.shape and np.array_equal(found[name], array)
    back = arrays_of(memoryview(file_of(arrays)), list(arrays))
    assert all(np.array_equal(back[name], arrays[name]) for name in arrays)


def test_large_arrays_are_views_and_small_ones_are_joined() -> None:
    large = np.ones(5000, np.float32)
    arrays = {f"s{i}": np.ones(3, np.float32) for i in range(1000)} | {"l": large}
    _, small, data = arrays_parts("params", arrays)
    assert (small.nbytes, data.nbytes) == (12_000, 20_000)
    assert np.shares_memory(np.frombuffer(data, np.float32), large)


def test_encoding_creates_no_objects_per_tensor() -> None:
    arrays = {f"layer.{i}": np.ones(3, np.float32) for i in range(2000)}
    optimizer = {"name": "adamw"}
    step(optimizer, arrays, arrays, None, {})
    gc.collect()
    gc.disable()
    try:
        before = gc.get_count()[0]
        call = step(optimizer, arrays, arrays, None, {})
        # A dict and lists for each header entry would be 12,000 objects.
        assert gc.get_count()[0] - before < 4000
    finally:
        gc.enable()
    assert call.nbytes > 2 * 2000 * 3 * 4


def test_headers_are_cached() -> None:
    file = memoryview(file_of({"w": np.ones(3, np.float32)}))
    other = memoryview(file_of({"w": np.zeros(3, np.float32)}))
    assert open_file(file)[0] is open_file(other)[0]
    assert arrays_of(other, None)["w"].tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="w: its bytes end at 12 of 11"):
        arrays_of(other[:-1], None)


def test_state_of_a_reply_is_sent_unchanged(client: stepd.Client) -> None:
    arrays = {f"layer.{i}": np.ones(3, np.float32) for i in range(10)}
    state = client.step({"name": "adamw"}, arrays, arrays).state
    (part,) = state.parts()
    read = stepd.State(bytes(part))
    assert len(read.parts()) > 1 and read.to_bytes() == state.to_bytes() == bytes(part)
    assert read == state and read["exp_avg/layer.3"].shape == (3,)
    header = json.loads(bytes(part[8 : 8 + int.from_bytes(part[:8], "little")]))
    assert set(header) - {"__metadata__"} == set(state)
