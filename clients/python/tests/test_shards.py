"""A sharded step is the whole step, whatever fails on the way."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from conftest import Server

import stepd

Arrays = dict[str, np.ndarray[Any, Any]]

ADAMW = {"name": "adamw", "lr": 1e-2}


def tensors(seed: int, scale: float = 1.0) -> Arrays:
    rng = np.random.default_rng(seed)
    sizes = {"embed": 5000, "z": 7, "ü": 64, "deep/w": 900, "\U0001f600": 33, "": 12}
    return {
        name: (scale * rng.standard_normal(size)).astype(np.float32)
        for name, size in sizes.items()
    }


@pytest.fixture
def sharded(server: Server) -> Iterator[stepd.ShardedClient]:
    with stepd.ShardedClient([server.url], request_bytes=8000, connections=2) as client:
        yield client


def assert_same(one: stepd.StepResult, other: stepd.StepResult) -> None:
    assert list(one.params) == list(other.params)
    for name, array in one.params.items():
        assert array.tobytes() == other.params[name].tobytes(), name
    assert one.state.to_bytes() == other.state.to_bytes()
    assert (one.step, one.lr, one.skipped) == (other.step, other.lr, other.skipped)
    assert set(one.warnings) <= set(other.warnings) or one.warnings == other.warnings


HARD: dict[str, dict[str, Any]] = {
    "plain": {},
    "clip": {"clip": {"max_norm": 0.5}},
    "value": {"clip": {"max_value": 0.1}},
    "lamb": {"optimizer": {"name": "lamb", "max_grad_norm": 1.0}},
    "lamb and clip": {
        "optimizer": {"name": "lamb", "max_grad_norm": 1.0},
        "clip": {"max_norm": 0.5},
        "loss_scale": 8.0,
    },
    "nadam": {"optimizer": {"name": "nadam"}},
    "groups": {
        "groups": [
            {"tensors": ["z", "*/w"], "optimizer": {"weight_decay": 0, "lr": 1}}
        ],
        "schedule": {"name": "exponential", "gamma": 0.5},
        "clip": {"max_norm": 1.0},
    },
}


@pytest.mark.parametrize("settings", HARD.values(), ids=HARD)
def test_is_the_whole_step(
    client: stepd.Client, sharded: stepd.ShardedClient, settings: dict[str, Any]
) -> None:
    settings = {"optimizer": ADAMW, **settings}
    state: stepd.State | None = None
    params: Arrays = tensors(1)
    for seed in range(2, 5):
        grads = tensors(seed)
        if seed == 3:
            del grads["z"]
        given = {"params": params, "grads": grads, "state": state, **settings}
        one, two = client.step(**given), sharded.step(**given)
        assert_same(two, one)
        params, state = one.params, two.state


def test_rounds_at_random_as_the_whole_step(
    client: stepd.Client, sharded: stepd.ShardedClient
) -> None:
    params = {
        name: (array.view(np.uint32) >> 16).astype(np.uint16).view(stepd.bfloat16)
        for name, array in tensors(1).items()
    }
    for extra in ({"stochastic_rounding": {"seed": 5}}, {"master_weights": True}):
        given: dict[str, Any] = {"params": params, "grads": tensors(2), **extra}
        assert_same(sharded.step(ADAMW, **given), client.step(ADAMW, **given))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("clip", [None, {"max_norm": 1.0}])
@pytest.mark.parametrize("non_finite", ["skip", "propagate"])
@pytest.mark.parametrize("steps", [0, 1])
def test_non_finite_gradients(
    client: stepd.Client,
    sharded: stepd.ShardedClient,
    value: float,
    clip: dict[str, float] | None,
    non_finite: Any,
    steps: int,
) -> None:
    params, grads = tensors(1), tensors(2)
    state = client.step({"name": "adam"}, params, grads).state if steps else None
    grads["deep/w"][3] = value
    settings: dict[str, Any] = {"clip": clip, "non_finite": non_finite}
    two = sharded.step(ADAMW, params, grads, state, **settings)
    one = client.step(ADAMW, params, grads, state, **settings)
    assert two.skipped == (non_finite == "skip")
    assert two.state.to_bytes() == one.state.to_bytes() or non_finite == "propagate"
    for name, array in one.params.items():
        # Payloads of NaN are outside of the promise.
        assert np.array_equal(array, two.params[name], equal_nan=True)


def test_a_norm_past_float64(
    client: stepd.Client, sharded: stepd.ShardedClient
) -> None:
    params = {name: array.astype(np.float64) for name, array in tensors(1).items()}
    grads = {name: array.astype(np.float64) for name, array in tensors(2).items()}
    grads["z"][0] = 1e300
    given: dict[str, Any] = {"params": params, "grads": grads, "clip": {"max_norm": 1}}
    assert_same(sharded.step(ADAMW, **given), client.step(ADAMW, **given))


@pytest.mark.parametrize(
    "settings", [HARD["clip"], HARD["lamb and clip"]], ids=["clip", "lamb and clip"]
)
@pytest.mark.parametrize("wide", ["params", "grads", "some params", "some grads"])
def test_clips_in_the_dtype_of_the_step(
    client: stepd.Client,
    sharded: stepd.ShardedClient,
    wide: str,
    settings: dict[str, Any],
) -> None:
    given: dict[str, Any] = {"params": tensors(1), "grads": tensors(2)}
    # No value of these is one of float32, so that each dtype has its own squares.
    third = {name: array / 3.0 for name, array in tensors(3).items()}
    of = wide.split()[-1]
    for name in ("deep/w", "z") if "some" in wide else list(third):
        given[of][name] = third[name].astype(np.float64) + 1 / 3
    settings = {"optimizer": ADAMW, **settings}
    assert_same(sharded.step(**given, **settings), client.step(**given, **settings))


def test_skips_what_only_float32_overflows(
    client: stepd.Client, sharded: stepd.ShardedClient
) -> None:
    params, grads = tensors(1), tensors(2)
    grads["z"] = np.full(7, 1e39)
    given: dict[str, Any] = {"params": params, "grads": grads, "non_finite": "skip"}
    one = client.step(ADAMW, **given)
    assert one.skipped
    assert_same(sharded.step(ADAMW, **given), one)


def test_errors_are_those_of_the_whole_step(sharded: stepd.ShardedClient) -> None:
    params, grads = tensors(1), tensors(2)
    with pytest.raises(stepd.InvalidParams, match="lr"):
        sharded.step({"name": "adamw", "lr": -1}, params, grads)
    with pytest.raises(stepd.TensorMismatch, match="stray"):
        sharded.step(ADAMW, params, {**grads, "stray": grads["z"]})
    stray = sharded.step(ADAMW, {"other": grads["z"]}, {"other": grads["z"]}).state
    with pytest.raises(stepd.StateMismatch, match="other"):
        sharded.step(ADAMW, params, grads, stray)
    grads["deep/w"][3] = np.nan
    for clip in (None, {"max_norm": 1.0}):
        with pytest.raises(stepd.NonFiniteGradient) as caught:
            sharded.step(ADAMW, params, grads, clip=clip)
        assert caught.value.tensors == ("deep/w",)


def test_init_and_norms(client: stepd.Client, sharded: stepd.ShardedClient) -> None:
    params = tensors(1)
    assert sharded.init(ADAMW, params) == client.init(ADAMW, params)
    assert sharded.norms(params, loss_scale=3) == client.norms(params, loss_scale=3)
    wide = {name: array.astype(np.float64) / 3 for name, array in params.items()}
    assert sharded.norms(wide, params) == client.norms(wide, params)
    assert sharded.norms(params, wide) == client.norms(params, wide)
    with pytest.raises(stepd.TensorMismatch, match="embed"):
        sharded.norms(params, {})
    assert sharded.step(ADAMW, {}, {}).params == {}


def test_a_killed_replica_changes_no_bit(client: stepd.Client) -> None:
    steps = 200
    gradients = [tensors(seed, scale=3.0) for seed in range(10)]
    optimizer = {"name": "lamb", "lr": 1e-2, "max_grad_norm": 1.0}

    def run(
        step: Any, before: Any = lambda _: None
    ) -> tuple[Arrays, stepd.State | None]:
        params: Arrays = tensors(99)
        state: stepd.State | None = None
        for index in range(steps):
            before(index)
            result = step(optimizer, params, gradients[index % 10], state)
            params, state = result.params, result.state
        return params, state

    expected, expected_state = run(client.step)
    with Server() as a, Server() as b, Server() as c:
        urls = [a.url, b.url, c.url]
        with stepd.ShardedClient(urls, request_bytes=9000, connections=3) as sharded:

            def kill(index: int) -> None:
                if index == steps // 2:
                    # SIGKILL, while the step's calls are under way.
                    threading.Timer(0.003, b.process.kill).start()

            params, state = run(sharded.step, kill)
        assert b.process.poll() == -signal.SIGKILL
    assert state is not None and expected_state is not None
    assert state.to_bytes() == expected_state.to_bytes()
    for name, array in expected.items():
        assert params[name].tobytes() == array.tobytes()


def test_gives_up_when_no_replica_is_left() -> None:
    urls = ["http://127.0.0.1:1", "http://127.0.0.1:2"]
    sharded = stepd.ShardedClient(urls, retries=2)
    with sharded, pytest.raises(stepd.ConnectError):
        sharded.step(ADAMW, tensors(1), tensors(2))
    with pytest.raises(ValueError, match="URL"):
        stepd.ShardedClient([])
