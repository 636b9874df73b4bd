"""Tests stepd.optax.remote(resident=True), on servers that are killed in mid-run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import Server

import stepd
from stepd.optax import fetch, remote

ADAMW = {"name": "adamw", "lr": 0.1}


def start() -> Any:
    random = np.random.default_rng(1)
    shapes = {"layer": {"w": (6, 16), "b": (16,)}, "scale": ()}
    return jax.tree.map(
        lambda shape: jnp.asarray(random.normal(size=shape), jnp.float32),
        shapes,
        is_leaf=lambda one: isinstance(one, tuple),
    )


@pytest.fixture(scope="module")
def caching(server: Server) -> Iterator[Server]:
    with Server(STEPD_CACHE_MIB="64") as running:
        yield running


def take(transformation: Any, run: Any, seeds: range, update: Any = None) -> Any:
    """Take steps with gradients that depend on the seed and on the parameters."""
    params, state = run
    for seed in seeds:
        random = np.random.default_rng(seed)
        grads = jax.tree.map(
            lambda one, random=random: (
                one + jnp.asarray(random.normal(size=one.shape), one.dtype)
            ),
            params,
        )
        updates, state = (update or transformation.update)(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def same(one: Any, other: Any) -> bool:
    pairs = zip(*map(jax.tree.leaves, (one, other)), strict=True)
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)


def test_killed_server(caching: Server) -> None:
    # One server and its successors serve both kinds of replies: a start takes as long
    # as all steps.
    replies: list[Any] = [None, {"params": "bf16"}]
    other = Server(STEPD_CACHE_MIB="64")
    with stepd.Client(caching.url) as quiet, stepd.Client(other.url) as client:
        runs: list[Any] = []
        for reply in replies:
            for connected in (quiet, client):
                given: Any = {"resident": True, "fetch_every": 8, "reply": reply}
                transformation = remote(connected, ADAMW, **given)
                update = jax.jit(transformation.update)
                params = start()
                run = params, transformation.init(params)
                runs.append([transformation, update, run])
        for seed in range(30):
            # A kill after the first step, and amid the steps after a fetch.
            if seed in (1, 18):
                other.kill()
                port = other.url.rpartition(":")[2]
                other = Server(STEPD_CACHE_MIB="64", STEPD_PORT=port)
            for one in runs:
                transformation, update, run = one
                one[2] = take(transformation, run, range(seed, seed + 1), update)
        ends = [(run[0], *fetch(*run)) for _, _, run in runs]
    other.kill()
    for expected, found in (ends[:2], ends[2:]):
        (last, whole, state), (last_two, whole_two, state_two) = expected, found
        assert same(last, last_two) and same(whole, whole_two)
        assert jnp.array_equal(state.file, state_two.file)
        assert stepd.State(np.asarray(state.file).data).steps["scale"] == 30
        exact = jax.tree.map(lambda a, b: jnp.allclose(a, b, rtol=1e-2), last, whole)
        assert all(jax.tree.leaves(exact))


def test_another_process_continues_with_the_same_bits(
    caching: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stepd.Client(caching.url) as client:
        transformation = remote(client, ADAMW, resident=True)
        chain = optax.chain(optax.clip(1.0), transformation)
        params = start()
        saved = fetch(*take(chain, (params, chain.init(params)), range(5)))
        expected = fetch(*take(chain, saved, range(5, 9)))
        # Another process knows no runs.
        monkeypatch.setattr("stepd.optax._RUNS", type(stepd.optax._RUNS)())
        found = fetch(*take(chain, saved, range(5, 9)))
        assert same(found[0], expected[0])
        assert jnp.array_equal(found[1][1].file, expected[1][1].file)


def test_only_the_newest_state_is_used(caching: Server) -> None:
    with stepd.Client(caching.url) as client:
        transformation = remote(client, ADAMW, resident=True)
        params = start()
        first = take(transformation, (params, transformation.init(params)), range(1))
        second = take(transformation, first, range(1, 2))
        with pytest.raises(ValueError, match=r"newest of a resident run.*step 1"):
            take(transformation, first, range(1, 2))
        kept = fetch(*second)
        third = take(transformation, kept, range(2, 3))
        # A fetched state starts a run of its own.
        again = take(transformation, kept, range(2, 3))
        assert same(third[0], again[0])


def test_sends_parameters_that_have_changed(caching: Server) -> None:
    sent: list[Any] = []

    class Recording(stepd.Client):
        def step(self, *args: Any, **options: Any) -> Any:
            sent.append(args[1] is not None)
            return super().step(*args, **options)

    with Recording(caching.url) as client:
        transformation = remote(client, ADAMW, resident=True)
        params = start()
        run = params, transformation.init(params)
        sent.clear()
        params, state = take(transformation, run, range(3))
        assert sent == [True, False, False]
        plain = remote(client, ADAMW)
        twice = jax.tree.map(lambda one: 2 * one, params)
        _, kept = fetch(params, state)
        found = take(transformation, (twice, state), range(3, 4))
        own = kept._replace(place=None)
        assert same(found[0], take(plain, (twice, own), range(3, 4))[0])


def test_invalid_resident(client: stepd.Client, caching: Server) -> None:
    with pytest.raises(stepd.InvalidParams, match="STEPD_CACHE_MIB"):
        remote(client, ADAMW, resident=True).init(start())
    with pytest.raises(ValueError, match="fetch_every: expected"):
        remote(client, ADAMW, resident=True, fetch_every=0)
    plain = remote(client, ADAMW)
    params, state = take(plain, (start(), plain.init(start())), range(1))
    assert same(fetch(params, state), (params, state))
