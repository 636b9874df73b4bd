"""Tests the server's cache of results, and replies that omit results."""

from __future__ import annotations

import pathlib
import pickle
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import Server
from proxy import Proxy, answer, hang_up
from test_shared import Blocking, agree, same, sent, tensors

import stepd

ADAMW = {"name": "adamw"}
KEEP: stepd.Reply = {"cache": True}

both = pytest.mark.parametrize("kind", [stepd.Client, Blocking], ids=["sync", "async"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def caching(folder: pathlib.Path) -> Iterator[Server]:
    with Server(STEPD_CACHE_MIB="64", STEPD_SHARED_DIR=str(folder)) as running:
        yield running


@both
def test_cached_run(kind: Any, caching: Server) -> None:
    with kind(caching.url) as client:
        first = client.step(ADAMW, tensors(1), tensors(2))
        expected = client.step(ADAMW, first.params, tensors(3), first.state)
        kept = client.step(ADAMW, tensors(1), tensors(2), reply=KEEP)
        assert agree(kept, first) and isinstance(kept.cached, stepd.Cached)
        assert kept.cached.params and kept.cached.state
        assert pickle.loads(pickle.dumps(kept.cached)) == kept.cached
        # The step gets all values, some values, and none.
        for params, state in (
            (kept.params, kept.state),
            (kept.params, None),
            (None, kept.state),
            (None, None),
        ):
            result = client.step(ADAMW, params, tensors(3), state, cached=kept.cached)
            assert result.state == expected.state
            order = list(params or sorted(tensors(1), key=list(tensors(1)).index))
            assert list(result.params) == order
            assert np.array_equal(result.params["w"], expected.params["w"])
            assert result.cached is None


def test_handles_replace_values(caching: Server) -> None:
    with stepd.Client(caching.url) as client:
        kept = client.step(ADAMW, tensors(1), tensors(2), reply=KEEP)
        calls = sent(client)
        client.step(ADAMW, kept.params, tensors(3), kept.state, cached=kept.cached)
        assert len(calls) == 1
        grads = sum(array.nbytes for array in tensors(3).values())
        assert calls[0].nbytes < grads + 1000


@both
def test_cache_is_empty_after_a_restart(kind: Any) -> None:
    with Server(STEPD_CACHE_MIB="64") as server, kind(server.url) as client:
        kept = client.step(ADAMW, tensors(1), tensors(2), reply=KEEP)
    with Server(STEPD_CACHE_MIB="64") as server, kind(server.url, retries=0) as client:
        expected = client.step(ADAMW, kept.params, tensors(3), kept.state)
        given = (kept.params, tensors(3), kept.state)
        again = client.step(ADAMW, *given, cached=kept.cached, reply=KEEP)
        assert agree(again, expected) and again.cached is not None
        for params, state in ((None, kept.state), (kept.params, None)):
            with pytest.raises(stepd.BlobMissing):
                client.step(ADAMW, params, tensors(3), state, cached=kept.cached)


def test_state_none(caching: Server) -> None:
    with stepd.Client(caching.url) as client:
        params, cached = tensors(1), None
        mirror = client.step(ADAMW, params, tensors(0))
        for seed in range(4):
            if seed:
                mirror = client.step(ADAMW, mirror.params, tensors(seed), mirror.state)
            result = client.step(
                ADAMW,
                params,
                tensors(seed),
                cached=cached,
                reply={"cache": True, "state": "none"},
            )
            params, cached = result.params, result.cached
            with pytest.raises(ValueError, match="stayed on the server"):
                _ = result.state
            assert "state" not in repr(result).split("params")[0]
            assert same(result, mirror)
            assert not hasattr(result, "stat")
            pickle.loads(pickle.dumps(result))
        last = client.step(ADAMW, params, tensors(9), cached=cached)
        assert agree(last, client.step(ADAMW, mirror.params, tensors(9), mirror.state))


@both
def test_params_bf16_or_none(
    kind: Any, caching: Server, tmp_path: pathlib.Path
) -> None:
    for dtype in (np.float32, np.float16, stepd.bfloat16):
        with kind(caching.url) as client:
            given = (ADAMW, tensors(1, dtype), tensors(2, dtype))
            whole = client.step(*given)
            rounded = client.step(*given, reply={"params": "bf16"})
            none = client.step(*given, reply={"params": "none"})
        assert list(rounded.params) == list(whole.params) and none.params == {}
        assert whole.state == rounded.state == none.state
        for name, array in whole.params.items():
            found = rounded.params[name]
            assert found.dtype == stepd.bfloat16 and found.shape == array.shape
            wide = np.asarray(found.view(np.uint16), np.uint32) << 16
            exact = array.astype(np.float32)
            assert np.all(np.abs(wide.view(np.float32) - exact) <= np.abs(exact) / 256)
    with kind(caching.url) as client, pytest.raises(stepd.StepdError):
        wide64 = tensors(1, np.float64)
        client.step(ADAMW, wide64, wide64, reply={"params": "bf16"})


def test_with_shared_memory(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("both")
    with Server(STEPD_CACHE_MIB="64", STEPD_SHARED_DIR=str(folder)) as server:
        for dtype in (np.float32, np.float16):
            given = (ADAMW, tensors(1, dtype), tensors(2, dtype))
            replies: list[stepd.Reply] = [
                {"params": "bf16", "cache": True},
                {"params": "none", "cache": True},
                {"state": "none", "cache": True},
            ]
            with (
                stepd.Client(server.url) as plain,
                stepd.Client(server.url, shared_dir=folder) as client,
            ):
                state = plain.step(*given).state
                for reply in replies:
                    one = plain.step(*given, state, reply=reply)
                    other = client.step(*given, state, reply=reply)
                    assert same(one, other) and one.cached and other.cached
                    if reply.get("state") != "none":
                        assert one.state == other.state
                assert other.cached is not None
                calls = sent(client)
                for params in (None, other.params):
                    last = client.step(
                        ADAMW, params, tensors(3, dtype), cached=other.cached
                    )
                    assert last.step == 3
                    # Only blobs that are sent in full have places.
                    assert not calls[-1].files.keys() & {"params", "state"}
                    assert len(calls[-1].written) == (params is not None)
    assert list(folder.iterdir()) == []


def test_invalid_cached(caching: Server, server: Server) -> None:
    with stepd.Client(caching.url) as client:
        with pytest.raises(ValueError, match="params: expected arrays"):
            client.step(ADAMW, None, tensors(1))
        with pytest.raises(ValueError, match="params: expected arrays"):
            client.step(ADAMW, None, tensors(1), cached=stepd.Cached(state="nobody"))
        with pytest.raises(stepd.BlobMissing) as caught:
            unknown = stepd.Cached(params="nobody")
            client.step(ADAMW, None, tensors(1), cached=unknown)
        assert caught.value.field == "/params"
        with pytest.raises(stepd.InvalidParams):
            client.step(ADAMW, tensors(1), tensors(1), reply={"state": "none"})
    with stepd.Client(server.url) as client:
        # A server without a cache caches nothing, and refuses calls that need a cache.
        assert client.step(ADAMW, tensors(1), tensors(1), reply=KEEP).cached is None
        with pytest.raises(stepd.InvalidParams, match="STEPD_CACHE_MIB"):
            client.step(
                ADAMW,
                tensors(1),
                tensors(1),
                reply={"cache": True, "state": "none"},
            )


def sharded(*urls: str, **options: Any) -> stepd.ShardedClient:
    """Return a client that makes one call per tensor."""
    return stepd.ShardedClient(urls, **{"request_bytes": 1, "retries": 0, **options})


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clip": {"clip": {"max_norm": 0.5}, "loss_scale": 4.0},
    "lamb": {"optimizer": {"name": "lamb", "max_grad_norm": 1.0}},
    "schedule": {"schedule": {"name": "exponential", "gamma": 0.5}},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("given", [True, False], ids=["values", "handles"])
@pytest.mark.parametrize("shares", [False, True], ids=["sent", "shared"])
def test_sharded_cached_run(
    caching: Server,
    folder: pathlib.Path,
    settings: dict[str, Any],
    given: bool,
    shares: bool,
) -> None:
    settings = {"optimizer": ADAMW, **settings}
    reply: stepd.Reply = {"cache": True} if given else {"cache": True, "state": "none"}
    options = {"shared_dir": folder} if shares else {}
    with (
        Server(STEPD_CACHE_MIB="64", STEPD_SHARED_DIR=str(folder)) as other,
        stepd.Client(caching.url) as plain,
        sharded(caching.url, other.url, **options) as client,
    ):
        params: Any = tensors(1)
        state: Any = None
        mirror: Any = None
        cached = None
        for seed in range(5):
            grads = tensors(seed)
            if seed % 2:
                # The other parameters do not step, so the step counts differ.
                grads = {"s": grads["s"], "v": grads["v"].astype(np.float64)}
            before = (mirror.params, mirror.state) if mirror else (params, None)
            mirror = plain.step(
                params=before[0], state=before[1], grads=grads, **settings
            )
            last: dict[str, Any] = {} if seed == 4 else {"reply": reply}
            result = client.step(
                params=params,
                state=state,
                grads=grads,
                cached=cached,
                **settings,
                **last,
            )
            assert same(result, mirror)
            assert (result.step, result.lr) == (mirror.step, mirror.lr)
            cached = pickle.loads(pickle.dumps(result.cached))
            params, state = (result.params, result.state) if given else (None, None)
            if not given and seed < 4:
                with pytest.raises(ValueError, match="stayed on the server"):
                    _ = result.state
        assert cached is None and result.state == mirror.state


def test_sharded_handles_go_to_their_server(caching: Server) -> None:
    with (
        Server(STEPD_CACHE_MIB="64") as other,
        sharded(caching.url, other.url) as client,
    ):
        kept = client.step(ADAMW, tensors(1), tensors(2), reply=KEEP)
        assert kept.cached is not None
        shards = kept.cached.shards
        assert {shard.url for shard in shards} == {caching.url, other.url}
        calls = [sent(replica.client) for replica in client._replicas]
        for _ in range(3):
            client.step(ADAMW, None, tensors(3), cached=kept.cached)
        # The client sends only gradients, even if the caller passes everything.
        client.step(ADAMW, kept.params, tensors(3), kept.state, cached=kept.cached)
        assert sum(map(len, calls)) == 4 * len(shards)
        grads = sum(array.nbytes for array in tensors(3).values())
        nbytes = sum(call.nbytes for each in calls for call in each)
        assert nbytes < 4 * (grads + 1000 * len(shards))


def test_another_replica_receives_missing_values(caching: Server) -> None:
    with stepd.Client(caching.url) as plain, ExitStack() as stack:
        other = stack.enter_context(Server(STEPD_CACHE_MIB="64"))
        client = stack.enter_context(sharded(caching.url, other.url))
        fresh = {name: one for name, one in tensors(1).items() if one.size}
        kept = client.step(ADAMW, fresh, fresh, reply=KEEP)
        assert kept.cached is not None
        moved = [one for one in kept.cached.shards if one.url == other.url]
        assert moved and len(moved) < len(kept.cached.shards)
        grads = {name: one for name, one in tensors(3).items() if one.size}
        expected = plain.step(ADAMW, kept.params, grads, kept.state)
        other.kill()
        calls = sent(client._replicas[0].client)
        again = client.step(
            ADAMW, kept.params, grads, kept.state, cached=kept.cached, reply=KEEP
        )
        assert agree(again, expected) and again.cached is not None
        assert {one.url for one in again.cached.shards} == {caching.url}
        # Each moved shard, and no other shard, takes one more call.
        assert len(calls) == len(kept.cached.shards) + len(moved)
        # Without the values no server can continue.
        with pytest.raises(stepd.BlobMissing):
            client.step(ADAMW, None, grads, cached=kept.cached)
        with pytest.raises(stepd.BlobMissing):
            client.step(ADAMW, kept.params, grads, cached=kept.cached)


def test_waits_for_the_server_with_the_blobs(caching: Server) -> None:
    busy = answer("503 Busy", b"", "Retry-After: 0")
    with (
        Server(STEPD_CACHE_MIB="64") as other,
        Proxy(caching.url, []) as home,
        stepd.Client(caching.url) as plain,
        sharded(home.url, other.url, retries=1) as client,
    ):
        # One replica has cached everything, and then fails twice.
        client._replicas[1].cool_down_until = float("inf")
        kept = client.step(ADAMW, tensors(1), tensors(2), reply=KEEP)
        expected = plain.step(ADAMW, kept.params, tensors(3), kept.state)
        client._replicas[1].cool_down_until = 0.0
        client._replicas[0].client.close()
        home.faults += [busy, hang_up]
        result = client.step(ADAMW, None, tensors(3), cached=kept.cached)
        assert agree(result, expected)


def test_cached_has_a_hash(caching: Server) -> None:
    with stepd.Client(caching.url) as plain, sharded(caching.url) as client:
        found = set()
        for one in (plain, client):
            kept = one.step(ADAMW, tensors(1), tensors(2), reply=KEEP).cached
            assert kept is not None
            found |= {kept, pickle.loads(pickle.dumps(kept))}
        assert len(found) == 2


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("non_finite", ["skip", "propagate", "error"])
@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_sharded_handles_without_numbers(
    caching: Server, value: float, non_finite: Any, name: str
) -> None:
    optimizer = {"name": name, **({"max_grad_norm": 1.0} if name == "lamb" else {})}
    grads = tensors(3)
    grads["v"][3] = value
    keep: stepd.Reply = {"cache": True, "state": "none", "params": "bf16"}
    with stepd.Client(caching.url) as plain, sharded(caching.url) as client:
        for clip in (None, {"max_norm": 1.0}):
            one: Any = plain.step(optimizer, tensors(1), tensors(2))
            two = client.step(optimizer, tensors(1), tensors(2), reply=keep)
            settings: dict[str, Any] = {"clip": clip, "non_finite": non_finite}
            if non_finite == "error":
                with pytest.raises(stepd.NonFiniteGradient):
                    client.step(optimizer, None, grads, cached=two.cached, **settings)
                continue
            one = plain.step(optimizer, one.params, grads, one.state, **settings)
            two = client.step(
                optimizer, None, grads, cached=two.cached, reply=keep, **settings
            )
            assert two.skipped == one.skipped == (non_finite == "skip")
            one = plain.step(
                optimizer, one.params, tensors(4), one.state, non_finite="propagate"
            )
            two = client.step(
                optimizer, None, tensors(4), cached=two.cached, non_finite="propagate"
            )
            assert list(two.params) == list(one.params) and two.step == one.step
            for key, array in one.params.items():
                assert np.array_equal(array, two.params[key], equal_nan=True)


def test_sharded_params_bf16_or_none(caching: Server) -> None:
    with stepd.Client(caching.url) as plain, sharded(caching.url) as client:
        replies: list[stepd.Reply] = [{"params": "bf16"}, {"params": "none"}, {}]
        for reply in replies:
            given = (ADAMW, tensors(1), tensors(2))
            one = plain.step(*given, reply=reply)
            two = client.step(*given, reply=reply)
            assert agree(two, one) and two.cached is None


def test_invalid_sharded_cached(caching: Server) -> None:
    with stepd.Client(caching.url) as plain, sharded(caching.url) as client:
        given = (ADAMW, tensors(1), tensors(2))
        one = plain.step(*given, reply=KEEP)
        two = client.step(*given, reply=KEEP)
        assert two.cached is not None
        with pytest.raises(ValueError, match=r"cached: .*found a Client's"):
            client.step(*given, cached=one.cached)
        with pytest.raises(ValueError, match=r"cached: .*found an empty one"):
            client.step(*given, cached=stepd.Cached())
        with (
            stepd.Client(caching.url.replace("127.0.0.1", "localhost")) as other,
            pytest.raises(ValueError, match=r"cached: .*found a ShardedClient's"),
        ):
            other.step(*given, cached=two.cached)
        with pytest.raises(ValueError, match="params: expected those of the result"):
            client.step(ADAMW, {"b": two.params["b"]}, {}, cached=two.cached)
        with pytest.raises(ValueError, match="params: expected arrays, or cached"):
            client.step(ADAMW, None, tensors(2))
        first, *others = two.cached.shards
        for field, kept in (
            ("params", stepd.Cached(None, first.cached.state)),
            ("state", stepd.Cached(first.cached.params, None)),
        ):
            less = stepd.Cached(shards=(replace(first, cached=kept), *others))
            with pytest.raises(ValueError, match=f"{field}: expected"):
                client.step(ADAMW, None, tensors(2), cached=less)
        with pytest.raises(stepd.InvalidParams):
            client.step(*given, reply={"state": "none"})
