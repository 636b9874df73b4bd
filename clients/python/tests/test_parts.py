"""Tests that a step in parts over several connections equals one call."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from conftest import Server
from proxy import Proxy, hang_up, never_reply

import stepd
from stepd import _parts

Arrays = dict[str, np.ndarray[Any, Any]]

ADAMW = {"name": "adamw", "lr": 1e-2}

#: The largest tensor has four shards, of which the last is short.
SIZES = {"embed": (2, 98_339), "z": (7,), "ü": (), "deep/w": (900,), "head": (70_001,)}


def tensors(seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    return {
        name: np.asarray(rng.standard_normal(size), np.float32)
        for name, size in SIZES.items()
    }


def narrowed(arrays: Arrays) -> Arrays:
    return {
        name: (array.view(np.uint32) >> 16).astype(np.uint16).view(stepd.bfloat16)
        for name, array in arrays.items()
    }


class Counted(stepd.Client):
    """A client that counts its calls of a step."""

    calls = 0

    def _step_once(self, *given: Any) -> stepd.StepResult:
        self.calls += 1
        return super()._step_once(*given)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_parts, "SMALLEST_SPLIT_BYTES", 2**20)
    monkeypatch.setattr(_parts, "FIRST_PART_BYTES", 2**20)


@pytest.fixture(scope="module")
def caching() -> Iterator[Server]:
    with Server(STEPD_CACHE_MIB="64") as running:
        yield running


@pytest.fixture
def split(server: Server) -> Iterator[Counted]:
    with Counted(server.url, connections=2, retries=0) as client:
        client._part_bytes = 2**20
        yield client


def assert_same(one: stepd.StepResult, other: stepd.StepResult) -> None:
    assert list(one.params) == list(other.params)
    for name, array in one.params.items():
        assert array.shape == other.params[name].shape
        assert array.dtype == other.params[name].dtype
        assert array.tobytes() == other.params[name].tobytes(), name
    assert one.state.to_bytes() == other.state.to_bytes()
    assert (one.step, one.lr, one.skipped) == (other.step, other.lr, other.skipped)
    assert one.warnings == other.warnings


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "non-contiguous": {},
    "bfloat16": {"stochastic_rounding": {"seed": 5}},
    "master weights": {"master_weights": True},
    "moments in BF16": {"optimizer": {"name": "adamw", "state_dtype": "BF16"}},
    "moments in Q8": {"optimizer": {"name": "adamw", "state_dtype": "Q8"}},
    "scalar slots": {"optimizer": {"name": "nadam"}},
    "clip": {"clip": {"max_norm": 0.5}, "loss_scale": 8.0},
    "skip": {"non_finite": "skip"},
    "rounded reply": {"reply": {"params": "bf16"}},
    "groups": {"groups": [{"tensors": ["*/w"], "optimizer": {"lr": 1}}]},
    "whole tensors": {"optimizer": {"name": "lamb", "max_grad_norm": 1.0}},
    "whole tensors by choice": {"optimizer": {"name": "lion", "caution": True}},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_parts_equal_one_call(client: stepd.Client, split: Counted, name: str) -> None:
    settings = {"optimizer": ADAMW, **SETTINGS[name]}
    state: stepd.State | None = None
    params = tensors(1)
    if name in ("bfloat16", "master weights"):
        params = narrowed(params)
    if name == "non-contiguous":
        params["embed"] = np.asfortranarray(params["embed"])
    for seed in (2, 3):
        grads = tensors(seed)
        if seed == 3:
            del grads["z"]
        given: dict[str, Any] = {"params": params, "grads": grads, "state": state}
        one = client.step(**given, **settings)
        assert_same(split.step(**given, **settings), one)
        if name != "rounded reply":
            params = one.params
        state = one.state
    assert split.calls >= 4


def test_what_is_one_call(client: stepd.Client, split: Counted, server: Server) -> None:
    params, grads = tensors(1), tensors(2)
    split.step(ADAMW, params, grads, stats="global")
    split.step(ADAMW, {"z": params["z"]}, {"z": grads["z"]})
    split.step(ADAMW, params, None, reduce={"updates": [(grads, 1)], "form": "deltas"})
    assert split.calls == 3
    with Counted(server.url) as local:
        local.step(ADAMW, params, grads)
        assert local.calls == 1


def test_a_server_on_another_host_gets_parts() -> None:
    with stepd.Client("http://stepd.example") as far:
        assert far._connections == 2
    for near in ("http://127.0.0.2", "http://localhost", "http://[::1]:1", "unix:///s"):
        with stepd.Client(near) as client:
            assert client._connections == 1


def test_an_error_names_all_slices_as_one_tensor(
    client: stepd.Client, split: Counted
) -> None:
    params, grads = tensors(1), tensors(2)
    grads["embed"][0, 5] = grads["embed"][1, 98_338] = grads["z"][1] = np.nan
    errors = []
    for each in (client, split):
        with pytest.raises(stepd.NonFiniteGradient) as raised:
            each.step(ADAMW, params, grads)
        errors.append(raised.value)
    one, two = errors
    assert str(two) == str(one)
    assert (two.field, two.tensors) == (one.field, one.tensors)


def test_a_mismatch_is_named(split: Counted) -> None:
    params, grads = tensors(1), tensors(2)
    grads["embed"] = grads["embed"].reshape(98_339, 2)
    with pytest.raises(stepd.TensorMismatch, match="embed"):
        split.step(ADAMW, params, grads)
    state = split.step(ADAMW, params, tensors(2)).state
    with pytest.raises(stepd.StateMismatch, match="embed"):
        split.step(ADAMW, {**params, "embed": params["embed"][0]}, {}, state)


def test_resident_steps(client: stepd.Client, caching: Server) -> None:
    params = tensors(1)
    with stepd.Client(caching.url, connections=2) as split:
        reply: Any = {"cache": True}
        kept = split.step(ADAMW, params, tensors(2), reply=reply)
        one = client.step(ADAMW, params, tensors(2))
        for seed in (3, 4):
            kept = split.step(
                ADAMW, None, tensors(seed), cached=kept.cached, reply=reply
            )
            one = client.step(ADAMW, one.params, tensors(seed), one.state)
        assert {k: v.tobytes() for k, v in kept.params.items()} == {
            k: v.tobytes() for k, v in one.params.items()
        }
        assert kept.state.to_bytes() == one.state.to_bytes()
        assert kept.cached is not None and len(kept.cached.shards) > 2


def test_a_failed_part_loses_nothing(client: stepd.Client, caching: Server) -> None:
    params = tensors(1)
    reply: Any = {"cache": True}
    with (
        Proxy(caching.url, []) as proxy,
        stepd.Client(proxy.url, connections=2, retries=0) as split,
    ):
        first = split.step(ADAMW, params, tensors(2), reply=reply)
        before = first.state.to_bytes()
        split._transport.close()
        proxy.faults.append(hang_up)
        with pytest.raises(stepd.ConnectError):
            split.step(ADAMW, None, tensors(3), cached=first.cached, reply=reply)
        again = split.step(ADAMW, None, tensors(3), cached=first.cached)
    assert first.state.to_bytes() == before
    one = client.step(ADAMW, first.params, tensors(3), first.state)
    assert again.state.to_bytes() == one.state.to_bytes()
    assert all(np.array_equal(again.params[name], one.params[name]) for name in SIZES)


def test_parts_grow_with_the_round_trip_and_the_rate() -> None:
    with stepd.Client("http://stepd.example") as client:
        client._transport.round_trip = 0.05
        client._observe(64 * 2**20, 0.5)
        assert 25 * 2**20 < client._part_bytes < 32 * 2**20
        assert client._part_limit(2**30) == client._part_bytes
        assert client._part_limit(16 * 2**20) == 4 * 2**20
        client._transport.round_trip = 1e-4
        client._observe(256 * 2**20, 0.25)
        assert 12 * 2**20 < client._part_bytes < 14 * 2**20
        client._observe(32 * 2**20, 1.0)
        assert client._part_bytes == 2**20


class CountedAsync(stepd.AsyncClient):
    """An AsyncClient that counts its requests."""

    calls = 0

    async def _send(self, *given: Any) -> Any:
        self.calls += 1
        return await super()._send(*given)


@pytest.mark.parametrize("name", ["plain", "clip", "moments in Q8", "whole tensors"])
def test_async_parts_equal_one_call(
    client: stepd.Client, caching: Server, name: str
) -> None:
    settings = {"optimizer": ADAMW, **SETTINGS[name]}
    given: dict[str, Any] = {"params": tensors(1), "grads": tensors(2), **settings}
    one = client.step(**given)

    async def steps() -> None:
        async with CountedAsync(caching.url, connections=2, retries=0) as split:
            split._part_bytes = 2**20
            reply: Any = {"cache": True}
            first = await split.step(**given, reply=reply)
            assert split.calls >= 3
            assert_same(first, one)
            assert split._round_trip > 0
            more = {"grads": tensors(3), **settings}
            kept = await split.step(params=None, cached=first.cached, **more)
            other = client.step(params=one.params, state=one.state, **more)
            assert kept.state.to_bytes() == other.state.to_bytes()

    asyncio.run(steps())


def test_async_steps_share_a_client(client: stepd.Client, server: Server) -> None:
    async def steps() -> list[stepd.StepResult]:
        async with CountedAsync(server.url, connections=2) as split:
            seeds = (2, 3, 4)
            every = [split.step(ADAMW, tensors(1), tensors(seed)) for seed in seeds]
            return list(await asyncio.gather(*every))

    for seed, result in zip((2, 3, 4), asyncio.run(steps()), strict=True):
        assert_same(result, client.step(ADAMW, tensors(1), tensors(seed)))


def test_a_cancelled_async_step_ends_its_calls(server: Server) -> None:
    async def cancelled() -> None:
        with Proxy(server.url, [never_reply] * 8) as proxy:
            async with CountedAsync(proxy.url, connections=2) as split:
                step = asyncio.ensure_future(split.step(ADAMW, tensors(1), tensors(2)))
                while split.calls < 2:
                    await asyncio.sleep(0.01)
                step.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asyncio.wait_for(step, 20)
            assert split.calls == 2

    asyncio.run(cancelled())
    for thread in threading.enumerate():
        if thread.name.startswith("stepd"):
            thread.join(20)
            assert not thread.is_alive()
