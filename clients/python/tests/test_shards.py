"""Tests that a sharded step equals the whole step, whatever fails during the step."""

from __future__ import annotations

import json
import math
import signal
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from conftest import Server
from proxy import Proxy, answer, hang_up, never_reply

import stepd
from stepd._calls import CachedShard, TensorInfo
from stepd._optimizer_table import ALL_TENSORS
from stepd._tensors import array_of

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
    assert one.warnings == other.warnings


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
    "moments in BF16": {"optimizer": {"name": "adamw", "state_dtype": "BF16"}},
    "moments in Q8": {"optimizer": {"name": "adamw", "state_dtype": "Q8"}},
    "groups": {
        "groups": [
            {"tensors": ["z", "*/w"], "optimizer": {"weight_decay": 0, "lr": 1}}
        ],
        "schedule": {"name": "exponential", "gamma": 0.5},
        "clip": {"max_norm": 1.0},
    },
}


@pytest.mark.parametrize("settings", HARD.values(), ids=HARD)
def test_sharded_step_equals_whole_step(
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


def test_rounds_stochastically_like_the_whole_step(
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
        # The promise of equal bits excludes the payloads of NaN.
        assert np.array_equal(array, two.params[name], equal_nan=True)


def matrices(arrays: dict[str, Any]) -> dict[str, Any]:
    """Returns the arrays as matrices of one column, if they are not matrices."""
    return {name: a if a.ndim == 2 else a.reshape(-1, 1) for name, a in arrays.items()}


REQUIRED = {"qhm": {"lr": 0.1, "momentum": 0.9, "nu": 0.7}}


@pytest.mark.parametrize("value", [np.nan, np.inf, 60000.0])
@pytest.mark.parametrize("non_finite", ["skip", "propagate"])
def test_every_optimizer_with_non_finite_gradients(
    client: stepd.Client, sharded: stepd.ShardedClient, value: float, non_finite: Any
) -> None:
    params = tensors(1)
    params["none"] = np.zeros((0, 2), np.float32)
    grads = {name: array.astype(np.float16) for name, array in tensors(2).items()}
    grads["none"] = np.zeros((0, 2), np.float16)
    # 60,000 becomes infinity after the loss scale.
    grads["deep/w"][3] = value
    given: dict[str, Any] = {
        "non_finite": non_finite,
        "clip": {"max_norm": 1.0},
        "loss_scale": 1e-34,
    }
    for optimizer in client.optimizers():
        if optimizer["name"] in ALL_TENSORS:
            with pytest.raises(ValueError, match=optimizer["name"]):
                sharded.step({"name": optimizer["name"]}, params, grads)
            continue
        settings = {"name": optimizer["name"], **REQUIRED.get(optimizer["name"], {})}
        # Muon takes matrices alone.
        p, g = (
            (matrices(params), matrices(grads))
            if settings["name"] == "muon"
            else (params, grads)
        )
        one = client.step(settings, p, g, **given)
        two = sharded.step(settings, p, g, **given)
        assert (two.skipped, two.step, two.lr) == (one.skipped, one.step, one.lr)
        assert one.skipped == (non_finite == "skip")
        assert two.warnings == one.warnings
        for (slot, name, a), (_, _, b) in zip(
            one.state.entries(), two.state.entries(), strict=True
        ):
            x, y = array_of(a), array_of(b)
            assert np.array_equal(x, y, equal_nan=x.dtype.kind == "f"), (slot, name)
        for name, array in one.params.items():
            assert np.array_equal(array, two.params[name], equal_nan=True), name


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("non_finite", [None, "error", "skip", "propagate"])
def test_sends_the_callers_gradients(
    sharded: stepd.ShardedClient,
    monkeypatch: pytest.MonkeyPatch,
    value: float,
    non_finite: Any,
) -> None:
    params, grads = tensors(1), tensors(2)
    grads["deep/w"][3] = value
    for array in (*params.values(), *grads.values()):
        array.flags.writeable = False
    before = {name: array.tobytes() for name, array in grads.items()}
    sent: dict[str, Any] = {}
    step = stepd.Client._step_once

    def recording_step(
        self: Any, optimizer: Any, params: Any, grads: Any, *rest: Any, **more: Any
    ) -> Any:
        sent.update(grads)
        return step(self, optimizer, params, grads, *rest, **more)

    monkeypatch.setattr(stepd.Client, "_step_once", recording_step)
    given: dict[str, Any] = {"clip": {"max_norm": 1.0}, "non_finite": non_finite}
    try:
        assert sharded.step(ADAMW, params, grads, **given).skipped == (
            non_finite == "skip"
        )
    except stepd.NonFiniteGradient as error:
        assert non_finite in (None, "error") and error.tensors == ("deep/w",)
    assert all(sent[name] is array for name, array in grads.items())
    assert {name: array.tobytes() for name, array in grads.items()} == before


@pytest.mark.parametrize("total", [math.nan, math.inf, np.float32("inf")])
def test_others_non_finite_and_total_norm(
    client: stepd.Client, sharded: stepd.ShardedClient, total: float
) -> None:
    params, grads = tensors(1), tensors(2)
    sgd, clip = {"name": "sgd"}, {"max_norm": 1.0, "total_norm": total}
    for one in (client, sharded):
        stepped = one.step(sgd, params, grads, clip=clip)
        for name, array in stepped.params.items():
            expected = np.full_like(array, np.nan) if total != total else params[name]
            assert np.array_equal(array, expected, equal_nan=True)
        with pytest.raises(stepd.NonFiniteGradient) as caught:
            one.step(sgd, params, grads, others_non_finite=True)
        assert caught.value.field == "/others_non_finite"
        skip: Any = {"non_finite": "skip", "others_non_finite": True}
        assert one.step(sgd, params, grads, **skip).skipped
        broken = {**grads, "z": grads["z"] * np.nan}
        with pytest.raises(stepd.NonFiniteGradient) as caught:
            one.step(sgd, params, broken, others_non_finite=True)
        assert caught.value.tensors == ("z",)
        with pytest.raises(stepd.InvalidParams, match="/clip/total_norm"):
            one.step(sgd, params, grads, clip={**clip, "total_norm": -math.inf})


@pytest.mark.parametrize("loss_scale", [None, 1e-5, 1e38])
def test_norm_that_overflows_float64(
    client: stepd.Client, sharded: stepd.ShardedClient, loss_scale: float | None
) -> None:
    params = {name: array.astype(np.float64) for name, array in tensors(1).items()}
    grads = {name: array.astype(np.float64) for name, array in tensors(2).items()}
    grads["z"][0] = 1e300
    given: dict[str, Any] = {
        "params": params,
        "grads": grads,
        "clip": {"max_norm": 1},
        "loss_scale": loss_scale,
    }
    assert_same(sharded.step(ADAMW, **given), client.step(ADAMW, **given))


@pytest.mark.parametrize(
    "settings", [HARD["clip"], HARD["lamb and clip"]], ids=["clip", "lamb and clip"]
)
@pytest.mark.parametrize("wide", ["params", "grads", "some params", "some grads"])
def test_clips_in_the_steps_dtype(
    client: stepd.Client,
    sharded: stepd.ShardedClient,
    wide: str,
    settings: dict[str, Any],
) -> None:
    given: dict[str, Any] = {"params": tensors(1), "grads": tensors(2)}
    # float32 holds none of the values exactly, so squares in float32 and float64
    # differ.
    third = {name: array / 3.0 for name, array in tensors(3).items()}
    of = wide.split()[-1]
    for name in ("deep/w", "z") if "some" in wide else list(third):
        given[of][name] = third[name].astype(np.float64) + 1 / 3
    settings = {"optimizer": ADAMW, **settings}
    assert_same(sharded.step(**given, **settings), client.step(**given, **settings))


def test_skipped_step_has_the_requested_form(
    client: stepd.Client, sharded: stepd.ShardedClient
) -> None:
    params, grads = tensors(1), tensors(2)
    grads["z"][0] = np.nan
    reply: Any = {"params": "bf16"}
    one = client.step(ADAMW, params, {}, reply=reply)
    for either in (client, sharded):
        two = either.step(ADAMW, params, grads, non_finite="skip", reply=reply)
        assert two.skipped
        for name, array in one.params.items():
            assert two.params[name].dtype == stepd.bfloat16
            assert two.params[name].tobytes() == array.tobytes()


def test_skips_gradients_that_overflow_only_float32(
    client: stepd.Client, sharded: stepd.ShardedClient
) -> None:
    params, grads = tensors(1), tensors(2)
    grads["z"] = np.full(7, 1e39)
    given: dict[str, Any] = {"params": params, "grads": grads, "non_finite": "skip"}
    one = client.step(ADAMW, **given)
    assert one.skipped
    assert_same(sharded.step(ADAMW, **given), one)


def test_errors_equal_those_of_the_whole_step(sharded: stepd.ShardedClient) -> None:
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


def many(value: float) -> tuple[Arrays, Arrays]:
    params = {f"{i}": np.ones(4, np.float32) for i in range(20)}
    grads = {name: np.full(4, value, np.float32) for name in params}
    return params, grads


@pytest.mark.parametrize("clip", [None, {"max_norm": 1.0}])
@pytest.mark.parametrize("broken", [["13", "4", '"\\,'], [f"{i}" for i in range(19)]])
def test_refusal_names_the_same_tensors_as_one_call(
    client: stepd.Client, broken: list[str], clip: dict[str, float] | None
) -> None:
    params, grads = many(1.0)
    params['"\\,'], grads['"\\,'] = params["1"], grads["1"]
    for count, name in enumerate(broken):
        grads[name] = grads[name].copy()
        grads[name][count % 4 :] = np.nan
    with stepd.ShardedClient([client.url], request_bytes=60) as sharded:
        errors = []
        for one in (client, sharded):
            with pytest.raises(stepd.NonFiniteGradient) as caught:
                one.step(ADAMW, params, grads, clip=clip)
            errors.append({**caught.value.problem(), "request_id": None})
        assert errors[0] == errors[1]
        # The server reports a wrong shape before it checks the values of gradients.
        grads["9"] = grads["9"][:2]
        with pytest.raises(stepd.TensorMismatch):
            client.step(ADAMW, params, grads, clip=clip)
        with pytest.raises(stepd.TensorMismatch):
            sharded.step(ADAMW, params, grads, clip=clip)


@pytest.mark.parametrize("size", [60, 400])
def test_warns_like_one_call(client: stepd.Client, size: int) -> None:
    params, grads = many(1e25)
    with stepd.ShardedClient([client.url], request_bytes=size) as sharded:
        one = client.step(ADAMW, params, grads)
        assert len(one.warnings) == 1 and "and 12 more tensors" in one.warnings[0]
        assert_same(sharded.step(ADAMW, params, grads), one)
        # Warnings have two causes here: 0/0 in every second tensor, and overflowing
        # squares.
        for name in list(grads)[::2]:
            grads[name] = np.zeros(4, np.float32)
        adam = {"name": "adam", "eps": 0}
        one = client.step(adam, params, grads)
        assert [" more tensors" in sentence for sentence in one.warnings] == [True] * 2
        assert_same(sharded.step(adam, params, grads), one)


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


def test_has_no_statistics(sharded: stepd.ShardedClient) -> None:
    with pytest.raises(ValueError, match="stats: a ShardedClient has none"):
        sharded.step(ADAMW, tensors(1), tensors(2), stats="global")
    plain = sharded.step(ADAMW, tensors(1), tensors(2), stats="none", clip=None)
    assert plain.stats is None


@pytest.mark.parametrize("size", [1, 2**20])
def test_closed_client_raises(server: Server, size: int) -> None:
    with stepd.ShardedClient([server.url], request_bytes=size) as sharded:
        sharded.step(ADAMW, tensors(1), tensors(2))
    with pytest.raises(RuntimeError, match="this ShardedClient is closed"):
        sharded.step(ADAMW, tensors(1), tensors(2))


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
                    # The server gets SIGKILL while the step's calls are in progress.
                    threading.Timer(0.003, b.process.kill).start()

            params, state = run(sharded.step, kill)
        assert b.process.poll() == -signal.SIGKILL
    assert state is not None and expected_state is not None
    assert state.to_bytes() == expected_state.to_bytes()
    for name, array in expected.items():
        assert params[name].tobytes() == array.tobytes()


def problem(name: str, status: int) -> Any:
    body = json.dumps({"type": f"urn:stepd:error:{name}", "name": name, "detail": "x"})
    kind = "Content-Type: application/problem+json"
    return answer(f"{status} X", body.encode(), kind)


FOREIGN = {
    "hang up": hang_up,
    "never_reply": never_reply,
    "500": problem("INTERNAL_ERROR", 500),
    "429": problem("OVERLOADED", 429),
    "503": problem("DRAINING", 503),
    "junk with 200": answer("200 OK", b"no!"),
    "a list with 200": answer("200 OK", b"[]", "Content-Type: application/json"),
    "another's map": answer(
        "200 OK",
        b'{"state":5,"stats":5,"params":{}}',
        "Content-Type: application/json",
    ),
    "404 of a proxy": answer("404 Not Found", b"<h1>nginx</h1>"),
    "404 of another service": answer("404 Not Found", b'{"name":"NOT_FOUND"}'),
    "502": answer("502 Bad Gateway", b"<h1>no backend</h1>"),
    "504": answer("504 Gateway Timeout"),
    "redirect": answer("307 Temporary Redirect", b"", "Location: /other"),
}


@pytest.mark.parametrize("fault", FOREIGN.values(), ids=FOREIGN)
def test_failed_call_goes_to_another_replica(server: Server, fault: Any) -> None:
    params, grads = tensors(1), tensors(2)
    # There is no second round: the first round must reach the one replica that works.
    with (
        Proxy(server.url, [fault] * 99) as a,
        Proxy(server.url, [fault] * 99) as b,
        stepd.ShardedClient(
            [a.url, b.url, server.url], request_bytes=8000, retries=0, timeout=0.5
        ) as sharded,
        stepd.Client(server.url) as client,
    ):
        assert_same(
            sharded.step(ADAMW, params, grads), client.step(ADAMW, params, grads)
        )
        assert a.connections and b.connections


def test_wrong_call_goes_to_no_other_replica(server: Server) -> None:
    for name, status in (
        ("UNAUTHENTICATED", 401),
        ("PAYLOAD_TOO_LARGE", 413),
        ("UNSUPPORTED_MEDIA_TYPE", 415),
        ("STATE_CORRUPT", 422),
    ):
        with (
            Proxy(server.url, [problem(name, status)]) as bad,
            stepd.ShardedClient([bad.url, server.url]) as sharded,
            pytest.raises(stepd.ServerError.by_name[name]),
        ):
            sharded.step(ADAMW, tensors(1), tensors(2))


def test_every_round_tries_every_replica_once(server: Server) -> None:
    with (
        Proxy(server.url, [hang_up] * 99) as a,
        Proxy(server.url, [hang_up] * 99) as b,
        stepd.ShardedClient(
            [a.url, b.url], retries=stepd.Retry(attempts=2, first=0.001)
        ) as sharded,
        pytest.raises(stepd.ConnectError),
    ):
        sharded.describe("adamw")
    assert (a.connections, b.connections) == (3, 3)


class Clock:
    """A clock that advances only by sleep, or when the test sets it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("stepd._shards.monotonic", clock)
    monkeypatch.setattr("stepd._shards.sleep", clock.sleep)
    return clock


def test_dead_replica_cools_down_longer_each_time(server: Server, clock: Clock) -> None:
    with (
        Proxy(server.url, [hang_up] * 9) as bad,
        stepd.ShardedClient([bad.url, server.url], request_bytes=8000) as sharded,
    ):
        start = clock.now
        asked: list[float] = []
        # The replica works after 9 failures. The cool-downs are 1, 2, 4 ... 60, 60 s.
        while len(asked) < 10:
            before = bad.connections
            sharded.describe("adamw")
            if bad.connections > before:
                asked.append(clock.now - start)
            clock.now += 0.5
        assert asked == [0, 1, 3, 7, 15, 31, 63, 123, 183, 243]
        # A success resets the cool-down, so that the next cool-down is 1 s.
        bad.faults += [hang_up] * 9
        again: list[float] = []
        while len(again) < 3:
            # Only new connections break, so the test closes the open connection.
            sharded._replicas[0].client.close()
            before = bad.connections
            sharded.describe("adamw")
            if bad.connections > before:
                again.append(clock.now)
            clock.now += 0.5
        assert [one - again[0] for one in again] == [0, 1, 3]


@pytest.mark.parametrize("has_handles", [True, False])
def test_refusal_ends_the_cool_down(
    server: Server, clock: Clock, has_handles: bool
) -> None:
    with (
        Proxy(server.url, [hang_up] * 3) as bad,
        stepd.ShardedClient([bad.url], retries=0) as sharded,
    ):
        (replica,) = sharded._replicas
        while bad.faults:
            with pytest.raises(stepd.ConnectError):
                sharded.describe("adamw")
        assert replica.cool_down_until == clock.now + 4
        handles = stepd.Cached("nobody", "nobody")
        kept = CachedShard(bad.url, handles, {"w": TensorInfo((), False, 1)})
        if has_handles:
            with pytest.raises(stepd.BlobMissing):
                sharded.step(ADAMW, None, {}, cached=stepd.Cached(shards=(kept,)))
        else:
            with pytest.raises(stepd.InvalidParams):
                sharded.step({"name": "adamw", "lr": -1}, tensors(1), {})
        assert (replica.failures, replica.cool_down_until) == (0, 0)
        # A success resets the cool-down, so that the next cool-down is 1 s.
        replica.client.close()
        bad.faults.append(hang_up)
        with pytest.raises(stepd.ConnectError):
            sharded.describe("adamw")
        assert replica.cool_down_until == clock.now + 1


def test_cooling_replica_precedes_one_that_just_failed(
    server: Server, clock: Clock
) -> None:
    with (
        Proxy(server.url, [hang_up] * 4) as long_dead,
        Proxy(server.url, []) as other,
        stepd.ShardedClient([long_dead.url, other.url], retries=0) as sharded,
    ):
        while long_dead.faults:
            sharded.describe("adamw")
            clock.now += 0.5
        # This replica works now, but its cool-down exceeds the other replica's.
        other.faults += [hang_up] * 2
        sharded._replicas[1].client.close()
        sharded.describe("adamw")
        assert (long_dead.connections, len(other.faults)) == (5, 1)


def test_concurrent_failures_count_once(clock: Clock) -> None:
    together = threading.Barrier(3)

    def drop(connection: Any) -> None:
        together.wait(10)
        hang_up(connection)

    def ask(client: stepd.ShardedClient) -> None:
        with pytest.raises(stepd.ConnectError):
            client.describe("adamw")

    with (
        Proxy("http://127.0.0.1:1", [drop] * 3 + [hang_up]) as bad,
        stepd.ShardedClient([bad.url], retries=0) as sharded,
    ):
        (replica,) = sharded._replicas
        asking = [threading.Thread(target=ask, args=[sharded]) for _ in range(3)]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
        assert replica.cool_down_until == clock.now + 1
        ask(sharded)
        assert replica.cool_down_until == clock.now + 2
        assert bad.connections == 4


def test_waits_for_the_replica_that_is_ready_first(
    server: Server, clock: Clock
) -> None:
    def busy(seconds: str) -> Any:
        return answer("503 Busy", b"", f"Retry-After: {seconds}")

    with (
        Proxy(server.url, [busy("7")]) as a,
        Proxy(server.url, [busy("30")]) as b,
        stepd.ShardedClient([a.url, b.url]) as sharded,
    ):
        start = clock.now
        sharded.describe("adamw")
        assert 7 <= clock.now - start < 8


def test_gives_up_without_replicas() -> None:
    urls = ["http://127.0.0.1:1", "http://127.0.0.1:2"]
    sharded = stepd.ShardedClient(urls, retries=2)
    with sharded, pytest.raises(stepd.ConnectError):
        sharded.step(ADAMW, tensors(1), tensors(2))
    with pytest.raises(ValueError, match="urls: expected at least one"):
        stepd.ShardedClient([])


@pytest.mark.parametrize("cache_mib", ["64", "0"])
def test_clipping_sends_kept_gradients_once(cache_mib: str) -> None:
    settings: Any = {"clip": {"max_norm": 0.5}, "loss_scale": 3.0}
    params, grads = tensors(1), tensors(2)
    size = sum(array.nbytes for array in params.values())
    sent: dict[str, int] = {}
    with (
        Server(STEPD_CACHE_MIB=cache_mib) as server,
        stepd.Client(server.url) as client,
        stepd.ShardedClient([server.url], request_bytes=8000) as sharded,
    ):
        transport = sharded._replicas[0].client._transport
        send = transport.send

        def count(call: Any, *more: Any) -> Any:
            sent[call.path] = sent.get(call.path, 0) + call.nbytes
            return send(call, *more)

        vars(transport)["send"] = count
        reply: Any = {"cache": cache_mib != "0"}
        one = client.step(ADAMW, params, grads, **settings)
        two = sharded.step(ADAMW, params, grads, reply=reply, **settings)
        assert_same(one, two)
        assert size < sent["/v1/norms"] < 1.5 * size
        times = 1 if cache_mib == "64" else 2
        assert times * size < sent["/v1/step"] < (times + 0.5) * size
        # Parameters and state are on the server, too, so the step has handles alone.
        if two.cached is not None:
            sent.clear()
            again = sharded.step(
                ADAMW, None, grads, cached=two.cached, reply=reply, **settings
            )
            assert_same(
                client.step(ADAMW, one.params, grads, one.state, **settings), again
            )
            assert sent["/v1/step"] < 0.3 * size


def test_kept_gradients_that_the_server_has_lost(client: stepd.Client) -> None:
    params, grads = tensors(1), tensors(2)
    lost = stepd.Cached(grads="gone.grads")
    found = client.step(ADAMW, params, grads, cached=lost)
    assert_same(found, client.step(ADAMW, params, grads))
