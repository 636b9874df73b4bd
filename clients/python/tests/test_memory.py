"""Tests that memory is reused, but never while an array views it."""

from __future__ import annotations

import gc
import subprocess
import sys
from time import monotonic
from typing import Any

import numpy as np
import pytest
from conftest import Server

import stepd
from stepd import _memory
from stepd._memory import Pool

SIZE = 2 * _memory.POOLED_BYTES


def address(memory: Any) -> int:
    found: int = np.frombuffer(memory, np.uint8).__array_interface__["data"][0]
    return found


def cycle(memory: Any) -> list[Any]:
    holder = [memory]
    holder.append(holder)
    return holder


VIEWS: dict[str, Any] = {
    "slice": lambda memory: memory[7:9],
    "array": lambda memory: np.frombuffer(memory, np.float32)[::3].reshape(-1, 1).T,
    "view of a view": lambda memory: np.frombuffer(memory, np.uint8)[4:][4:].view("f4"),
    "ndarray": lambda memory: np.ndarray((4,), np.float64, memory[8:])[1:],
    "cycle": lambda memory: cycle(memory),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_memory_with_views_is_not_reused(view: Any) -> None:
    pool = Pool()
    memory, _ = pool.take(SIZE)
    at = address(memory)
    kept = view(memory)
    del memory
    gc.collect()
    other, _ = pool.take(SIZE)
    assert address(other) != at
    del kept
    gc.collect()
    again, _ = pool.take(SIZE - 5)
    assert (address(again), again.nbytes) == (at, SIZE - 5)
    del again
    # A much larger request does not fit, and a much smaller request would waste memory.
    assert address(pool.take(SIZE + 1)[0]) != at
    assert address(pool.take(SIZE // 3)[0]) != at


def test_pool_holds_at_most_what_was_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool()
    kept = [pool.take(SIZE) for _ in range(4)]
    kept.clear()
    for _ in range(9):
        pool.take(SIZE)
    assert len(pool._free) == 4
    later = monotonic() + 61
    monkeypatch.setattr(_memory, "monotonic", lambda: later)
    pool.take(SIZE)
    assert len(pool._free) == 1
    kept = [pool.take(SIZE)]
    pool.close()
    kept.clear()
    assert pool._free == []


FORK = """
import os
from stepd._memory import Pool
pool = Pool()
memory, _ = pool.take(2**21)
child = os.fork()
if child == 0:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
del memory
assert len(pool._free) == 1
pool.take(2**21 - 1)
(region,) = pool._free
assert region.memory.nbytes == 2**21 - 1
"""


def test_memory_is_not_reused_after_a_fork() -> None:
    # The test forks in another process, because forking is unsafe with threads.
    subprocess.run([sys.executable, "-c", FORK], check=True)


def test_replies_reuse_memory_and_results_stay_valid(server: Server) -> None:
    params = {"w": np.ones(400_000, np.float32)}
    with stepd.Client(server.url) as client:
        result = client.step({"name": "adamw"}, params, params)
        first = result.params["w"][5:7]
        state = result.state["exp_avg/w"]
        copies = first.copy(), state.copy()
        places = []
        for seed in range(6):
            grads = {"w": np.full(400_000, seed, np.float32)}
            result = client.step({"name": "adamw"}, result.params, grads, result.state)
            places.append(address(result.params["w"].data.cast("B")))
        assert len(set(places)) == 2
        assert address(first.data.cast("B")) not in places
        assert np.array_equal(first, copies[0])
        assert np.array_equal(state, copies[1])
    # The state stays valid after the client is closed.
    assert np.array_equal(state, copies[1])
