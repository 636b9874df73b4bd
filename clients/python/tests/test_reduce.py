"""Tests that every client and every form of reduce gives numpy's float64 bits."""

from __future__ import annotations

import asyncio
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from conftest import Server

import stepd

Arrays = dict[str, np.ndarray[Any, Any]]

SIZES = {"embed": (50, 100), "z": (7,), "ü": (64,), "scalar": (), "empty": (0,)}

WEIGHTS = [3.0, 0.5, 11.0, 2.0, 7.0]


def tensors(seed: int, dtype: Any = np.float32) -> Arrays:
    rng = np.random.default_rng(seed)
    return {
        name: np.asarray(rng.standard_normal(size)).astype(dtype)
        for name, size in SIZES.items()
    }


PARAMS = tensors(1)
UPDATES = [(tensors(10 + seed), weight) for seed, weight in enumerate(WEIGHTS)]


class Waiting:
    """An AsyncClient whose methods wait for the result, as those of a Client do."""

    def __init__(self, client: stepd.AsyncClient) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **given: asyncio.run(self._call(name, args, given))

    async def _call(self, name: str, args: Any, given: Any) -> Any:
        async with self._client:
            return await getattr(self._client, name)(*args, **given)


@pytest.fixture(params=["Client", "AsyncClient", "ShardedClient"])
def client(request: pytest.FixtureRequest, server: Server) -> Iterator[Any]:
    if request.param == "AsyncClient":
        yield Waiting(stepd.AsyncClient(server.url))
        return
    if request.param == "Client":
        with stepd.Client(server.url) as one:
            yield one
        return
    with stepd.ShardedClient([server.url], request_bytes=4000) as many:
        yield many


def mean(updates: list[tuple[Arrays, float]], name: str) -> Any:
    total = np.zeros(SIZES[name])
    for arrays, weight in updates:
        total = total + arrays[name].astype(np.float64) * weight
    return total / sum(weight for _, weight in updates)


def same(found: Arrays, expected: Arrays) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].tobytes() == np.asarray(array).tobytes(), name


def test_the_mean_has_the_bits_of_numpy(client: Any) -> None:
    result = client.reduce(UPDATES, PARAMS)
    expected = {
        name: (array.astype(np.float64) - mean(UPDATES, name)).astype(np.float32)
        for name, array in PARAMS.items()
    }
    same(result.grads, expected)
    assert (result.count, result.weight) == (5, sum(WEIGHTS))
    assert (result.dropped, result.skipped, result.accumulator) == ((), False, None)


def test_the_median_has_the_bits_of_numpy(client: Any) -> None:
    updates = [tensors(10 + seed) for seed in range(7)]
    result = client.reduce(updates, form="gradients", method={"name": "median"})
    for name, array in result.grads.items():
        stacked = np.stack([one[name].astype(np.float64) for one in updates])
        expected = np.median(stacked, axis=0).astype(np.float32)
        np.testing.assert_array_equal(array, expected, name)


def test_int8_and_bfloat16_updates(client: Any) -> None:
    rng = np.random.default_rng(5)
    codes = rng.integers(-127, 128, (50, 100)).astype(np.int8)
    scale = rng.random(50).astype(np.float32)
    half = stepd.bfloat16
    bits = rng.integers(0, 0x4000, 7).astype(np.uint16)
    update = {"w": codes, "w.scale": scale, "z": bits.view(half)}
    result = client.reduce([update, (update, 2.0)], form="deltas")
    wide = codes.astype(np.float64) * scale.astype(np.float64)[:, None]
    expected = -((wide * 1.0 + wide * 2.0) / 3.0)
    same({"w": result.grads["w"]}, {"w": expected.astype(np.float32)})
    assert result.grads["z"].dtype == np.float32


def test_an_accumulator_carries_the_sums(client: Any) -> None:
    whole = client.reduce(UPDATES, PARAMS)
    total = None
    for update in UPDATES:
        part = client.reduce([update], PARAMS, accumulator=total, finish=False)
        total = bytes(part.accumulator)
    same(client.reduce([], PARAMS, accumulator=total).grads, whole.grads)
    whole = client.reduce(UPDATES, form="deltas")
    part = client.reduce(UPDATES[:2], form="deltas", finish=False)
    last = client.reduce(UPDATES[2:], form="deltas", accumulator=part.accumulator)
    same(last.grads, whole.grads)


def test_every_client_makes_the_same_accumulator(server: Server) -> None:
    with (
        stepd.Client(server.url) as one,
        stepd.ShardedClient([server.url], request_bytes=4000) as many,
    ):
        wide = [(tensors(seed, np.float64), 1.0) for seed in range(3)]
        for updates in (UPDATES, wide):
            first = one.reduce(updates, form="deltas", finish=False)
            second = many.reduce(updates, form="deltas", finish=False)
            assert bytes(first.accumulator or b"") == bytes(second.accumulator or b"")


def test_drop_leaves_out_an_update_that_one_call_has(client: Any) -> None:
    spoilt = [*UPDATES[:2], ({**UPDATES[2][0], "z": np.full(7, np.nan, "f4")}, 11.0)]
    spoilt += UPDATES[3:]
    rest = [UPDATES[0], UPDATES[1], UPDATES[3], UPDATES[4]]
    result = client.reduce(spoilt, PARAMS, non_finite="drop")
    assert result.dropped == (2,)
    expected = client.reduce(rest, PARAMS)
    same(result.grads, expected.grads)
    assert (result.count, result.weight) == (expected.count, expected.weight)
    with pytest.raises(stepd.NonFiniteGradient, match=r"/updates/2/tensors.*\"z\""):
        client.reduce(spoilt, PARAMS)


def test_a_tensor_that_some_updates_lack(client: Any) -> None:
    updates = [
        ({name: array for name, array in arrays.items() if name != "ü"}, weight)
        if index == 1
        else (arrays, weight)
        for index, (arrays, weight) in enumerate(UPDATES)
    ]
    with pytest.raises(stepd.TensorMismatch, match="/updates/1/tensors/ü"):
        client.reduce(updates, PARAMS)
    result = client.reduce(updates, PARAMS, missing="renormalize")
    left = [UPDATES[0], *UPDATES[2:]]
    expected = (PARAMS["ü"].astype(np.float64) - mean(left, "ü")).astype(np.float32)
    assert result.grads["ü"].tobytes() == expected.tobytes()


def test_a_step_with_reduce_is_a_step_with_the_gradients(client: Any) -> None:
    optimizer = {"name": "adamw", "lr": 0.01}
    grads = client.reduce(UPDATES, PARAMS).grads
    options: dict[str, Any] = {"clip": {"max_norm": 0.5}}
    expected = client.step(optimizer, PARAMS, grads, **options)
    reduce = {"updates": UPDATES}
    found = client.step(optimizer, PARAMS, None, reduce=reduce, **options)
    same(found.params, expected.params)
    assert found.state.to_bytes() == expected.state.to_bytes()
    assert (found.reduce.count, found.reduce.weight) == (5, sum(WEIGHTS))
    none = client.step(optimizer, PARAMS, None, found.state, reduce={"updates": []})
    assert (none.skipped, none.reduce.skipped, none.warnings) == (True, True, ())
    same(none.params, PARAMS)
    assert none.state.to_bytes() == found.state.to_bytes()


def test_average_of_schedule_free_parameters(client: Any) -> None:
    free = {"name": "schedule_free_sgd"}
    params = {"w": np.array([1, 2], "f4"), "b": np.array([3], "f4")}
    ones = {name: np.ones_like(value) for name, value in params.items()}
    first = client.step(free, params, ones)
    twos = {name: 2 * value for name, value in ones.items()}
    second = client.step(free, first.params, twos, first.state)
    averages = client.average(free, second.params, second.state)
    # z is 1 lower after the first step, and 3 lower after the second.
    for name, value in params.items():
        np.testing.assert_allclose(averages[name], value - 2, atol=1e-6)
    with pytest.raises(stepd.InvalidParams, match="averages parameters"):
        client.average({"name": "sgd"}, second.params, second.state)


def test_distances_are_those_of_numpy(client: Any, server: Server) -> None:
    updates = [arrays for arrays, _ in UPDATES]
    found = client.distances(updates)
    flat = np.stack(
        [
            np.concatenate([array.astype(np.float64).ravel() for array in own.values()])
            for own in updates
        ]
    )
    expected = ((flat[:, None] - flat[None]) ** 2).sum(axis=2)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    with stepd.Client(server.url) as whole:
        assert found.tobytes() == whole.distances(updates).tobytes()
    spoilt = [*updates, {**updates[0], "z": np.full(7, np.inf, "f4")}]
    assert np.isinf(client.distances(spoilt)[0, -1])


def test_updates_go_through_the_shared_folder(tmp_path: pathlib.Path) -> None:
    params = {"w": np.ones((300, 100), np.float32)}
    updates = [({"w": np.full((300, 100), 2, np.float32)}, 1.0)] * 3
    with (
        Server(STEPD_SHARED_DIR=str(tmp_path)) as server,
        stepd.Client(server.url, shared_dir=tmp_path) as client,
    ):
        result = client.reduce(updates, params)
        same(result.grads, {"w": np.full((300, 100), -1, np.float32)})


@pytest.mark.parametrize(
    ("given", "kind", "text"),
    [
        ({"updates": {"w": PARAMS["z"]}}, TypeError, "updates: expected a list"),
        ({"updates": [3]}, TypeError, r"updates\[0\]: expected arrays by name"),
        ({"updates": [({}, "1")]}, TypeError, r"updates\[0\].weight: expected a num"),
        ({"updates": [{"w": [1.0]}]}, TypeError, r"updates\[0\]: w: expected an array"),
        ({"accumulator": {}}, TypeError, "accumulator: expected bytes"),
        ({"method": "median"}, TypeError, "method: expected a mapping"),
        ({"form": 1}, TypeError, "form: expected a str"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_sent(
    client: Any, given: Any, kind: Any, text: str
) -> None:
    with pytest.raises(kind, match=text):
        client.reduce(**{"updates": [], **given})
