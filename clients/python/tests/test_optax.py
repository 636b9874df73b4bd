"""stepd.optax against optax itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")

import jax.numpy as jnp  # noqa: E402

import stepd  # noqa: E402
from stepd.optax import RemoteState, remote  # noqa: E402

PARAMS: dict[str, Any] = {
    "layer": {"w": jnp.ones((4, 3)), "b": jnp.zeros(3)},
    "scale": jnp.ones(()),
}


def loss(params: Any, x: Any) -> Any:
    hidden = jnp.tanh(x @ params["layer"]["w"] + params["layer"]["b"])
    return jnp.mean((params["scale"] * hidden - 0.25) ** 2)


def train(transformation: Any, steps: int, jit: bool) -> tuple[Any, Any]:
    def step(params: Any, state: Any, x: Any) -> tuple[Any, Any]:
        grads = jax.grad(loss)(params, x)
        updates, state = transformation.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    run = jax.jit(step) if jit else step
    params, state = PARAMS, transformation.init(PARAMS)
    for seed in range(steps):
        params, state = run(
            params, state, jax.random.normal(jax.random.key(seed), (8, 4))
        )
    return params, state


@pytest.mark.parametrize("jit", [True, False])
@pytest.mark.parametrize(
    ("settings", "twin"),
    [
        ({"name": "adamw", "lr": 1e-2}, optax.adamw(1e-2, weight_decay=0.01)),
        ({"name": "sgd", "lr": 0.1, "momentum": 0.9}, optax.sgd(0.1, momentum=0.9)),
        ({"name": "lamb", "lr": 1e-2}, optax.lamb(1e-2, weight_decay=0.01)),
    ],
    ids=["adamw", "sgd", "lamb"],
)
def test_steps_as_optax_does(
    client: stepd.Client, settings: dict[str, Any], twin: Any, jit: bool
) -> None:
    mine, state = train(remote(client, settings), 10, jit)
    theirs, _ = train(twin, 10, True)
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert isinstance(state, RemoteState)
    read = stepd.State(np.asarray(state.file).data)
    assert read.steps == {"layer/w": 10, "layer/b": 10, "scale": 10}


def test_chains_and_refuses(client: stepd.Client) -> None:
    settings = {"name": "nadam"}
    groups = [{"tensors": ["layer/*"], "optimizer": {"lr": 0}}]
    chained = optax.chain(
        optax.clip_by_global_norm(1.0), remote(client, settings, groups=groups)
    )
    params, _ = train(chained, 3, True)
    assert jnp.array_equal(params["layer"]["w"], PARAMS["layer"]["w"])
    assert not jnp.array_equal(params["scale"], PARAMS["scale"])
    transformation = remote(client, settings)
    with pytest.raises(ValueError, match="params"):
        transformation.update(PARAMS, transformation.init(PARAMS))
    tree = {"a/b": jnp.ones(3), "a": {"b": jnp.zeros(3)}}
    with pytest.raises(ValueError) as caught:
        transformation.init(tree)
    assert "a/b for ['a']['b'] and ['a/b']" in str(caught.value)


def test_vmap_is_a_step_for_each_entry(client: stepd.Client) -> None:
    transformation = remote(client, {"name": "lamb", "lr": 1e-2})

    def step(weights: Any, grads: Any) -> Any:
        state = transformation.init(weights)
        for _ in range(2):
            updates, state = transformation.update(grads, state, weights)
            weights = optax.apply_updates(weights, updates)
        return weights, state.file

    weights = {"w": jnp.arange(1.0, 7.0).reshape(2, 3)}
    grads = {"w": jnp.array([[1.0, 2.0, 3.0], [-3.0, 0.0, 1.0]])}
    mapped, files = jax.jit(jax.vmap(step))(weights, grads)
    for row in range(2):
        alone, file = step({"w": weights["w"][row]}, {"w": grads["w"][row]})
        assert jnp.array_equal(mapped["w"][row], alone["w"])
        assert jnp.array_equal(files[row], file)
