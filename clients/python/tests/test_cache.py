"""What the server keeps, and replies that leave something out."""

from __future__ import annotations

import pathlib
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from conftest import Server
from test_shared import Blocking, agree, same, sent, tensors

import stepd

ADAMW = {"name": "adamw"}
KEEP: stepd.Reply = {"cache": True}

both = pytest.mark.parametrize("kind", [stepd.Client, Blocking], ids=["sync", "async"])


@pytest.fixture(scope="module")
def caching(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("shared")
    with Server(STEPD_CACHE_MIB="64", STEPD_SHARED_DIR=str(folder)) as running:
        yield running


@both
def test_a_run_by_digests(kind: Any, caching: Server) -> None:
    with kind(caching.url) as client:
        first = client.step(ADAMW, tensors(1), tensors(2))
        expected = client.step(ADAMW, first.params, tensors(3), first.state)
        kept = client.step(ADAMW, tensors(1), tensors(2), reply=KEEP)
        assert agree(kept, first) and isinstance(kept.cached, stepd.Cached)
        assert kept.cached.params and kept.cached.state
        assert pickle.loads(pickle.dumps(kept.cached)) == kept.cached
        # With values, without some, and with none.
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


def test_digests_stand_for_what_is_given(caching: Server) -> None:
    with stepd.Client(caching.url) as client:
        kept = client.step(ADAMW, tensors(1), tensors(2), reply=KEEP)
        calls = sent(client)
        client.step(ADAMW, kept.params, tensors(3), kept.state, cached=kept.cached)
        assert len(calls) == 1
        grads = sum(array.nbytes for array in tensors(3).values())
        assert calls[0].nbytes < grads + 1000


@both
def test_a_server_that_was_started_anew(kind: Any) -> None:
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


def test_a_state_that_stays_there(caching: Server) -> None:
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
def test_parameters_rounded_or_left_out(
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
                    assert same(one, other) and one.cached == other.cached
                    if reply.get("state") != "none":
                        assert one.state == other.state
                assert other.cached is not None
                calls = sent(client)
                for params in (None, other.params):
                    last = client.step(
                        ADAMW, params, tensors(3, dtype), cached=other.cached
                    )
                    assert last.step == 3
                    # Places only for what has no name.
                    assert not calls[-1].files.keys() & {"params", "state"}
                    assert len(calls[-1].written) == (params is not None)
    assert list(folder.iterdir()) == []


def test_what_is_wrong(caching: Server, server: Server) -> None:
    with stepd.Client(caching.url) as client:
        with pytest.raises(ValueError, match="params: expected arrays"):
            client.step(ADAMW, None, tensors(1))
        with pytest.raises(ValueError, match="params: expected arrays"):
            client.step(ADAMW, None, tensors(1), cached=stepd.Cached(state="0" * 64))
        with pytest.raises(stepd.BlobMissing) as caught:
            unknown = stepd.Cached(params="0" * 64)
            client.step(ADAMW, None, tensors(1), cached=unknown)
        assert caught.value.field == "/params"
        with pytest.raises(stepd.InvalidParams):
            client.step(ADAMW, tensors(1), tensors(1), reply={"state": "none"})
    with stepd.Client(server.url) as client:
        # A server without a cache keeps nothing, and says so where it matters.
        assert client.step(ADAMW, tensors(1), tensors(1), reply=KEEP).cached is None
        with pytest.raises(stepd.InvalidParams, match="STEPD_CACHE_MIB"):
            client.step(
                ADAMW,
                tensors(1),
                tensors(1),
                reply={"cache": True, "state": "none"},
            )
