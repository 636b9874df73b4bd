"""Compares stepd with optax's own optimizer in flax (nnx, linen) and optax chains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen
import flax.serialization
import flax.training.train_state
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import stepd
from stepd.optax import RemoteState, remote

Remote = Callable[..., optax.GradientTransformation]

#: After a few steps, weights differ by a few units in the last place: optax adds the
#: difference of new and old parameters, and XLA fuses multiplications with additions.
CLOSE = {"rtol": 1e-4, "atol": 1e-6}


def assert_close(one: Any, other: Any, **limits: float) -> None:
    a, b = (jax.tree.leaves(tree) for tree in (one, other))
    assert len(a) == len(b) > 0
    for x, y in zip(a, b, strict=True):
        used: Any = limits or CLOSE
        np.testing.assert_allclose(x, y, **used)


def assert_equal(one: Any, other: Any) -> None:
    assert_close(one, other, rtol=0, atol=0)


def data(seed: Any) -> tuple[Any, Any]:
    x = jax.random.normal(jax.random.key(seed), (16, 6))
    return x, jnp.stack([x.sum(1), x.prod(1)], 1)


class Model(nnx.Module):  # type: ignore[misc]
    """Twelve layers in a list. Their paths sort differently as text than as numbers."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(6, 6, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(6, 6, rngs=rngs) for _ in range(12)])
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.last = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = self.first(x)
        for layer in self.layers:
            x = x + 0.1 * jnp.tanh(layer(x))
        return self.last(self.norm(x))


def fit_nnx(transformation: Any, steps: int = 6, jit: bool = True) -> tuple[Any, Any]:
    model = Model()
    optimizer = nnx.Optimizer(model, transformation, wrt=nnx.Param)

    def step(model: Any, optimizer: Any, x: Any, y: Any) -> Any:
        def loss(model: Any) -> Any:
            return jnp.mean((model(x) - y) ** 2)

        optimizer.update(model, nnx.grad(loss)(model))

    run = nnx.jit(step) if jit else step
    for seed in range(steps):
        run(model, optimizer, *data(seed))
    return nnx.state(model, nnx.Param), optimizer


@pytest.mark.parametrize("jit", [True, False])
def test_nnx(client: stepd.Client, jit: bool) -> None:
    steps = 6 if jit else 2
    transformation = remote(client, {"name": "adamw", "lr": 1e-2})
    mine, optimizer = fit_nnx(transformation, steps, jit)
    theirs, _ = fit_nnx(adamw(), steps)
    assert_close(mine, theirs)
    state = stepd.State(np.asarray(optimizer.opt_state.file[...]).data)
    assert set(state.steps.values()) == {steps}
    # The names are the paths in the model.
    assert {"first/bias", "layers/11/kernel"} <= state.steps.keys()


def test_nnx_groups_and_statistics(client: stepd.Client) -> None:
    groups = [{"tensors": ["*/bias", "norm/*"], "optimizer": {"weight_decay": 0.0}}]
    transformation = remote(
        client,
        {"name": "adamw", "lr": 1e-2, "weight_decay": 0.5},
        groups=groups,
        clip={"max_norm": 1.0},
        stats="global",
    )
    mine, optimizer = fit_nnx(transformation)

    def mask(params: Any) -> Any:
        def is_decayed(path: Any, leaf: Any) -> bool:
            name = jax.tree_util.keystr(path)
            return "bias" not in name and "norm" not in name

        return jax.tree_util.tree_map_with_path(is_decayed, params)

    norms: list[float] = []

    def note(updates: Any, state: Any, params: Any = None) -> Any:
        jax.debug.callback(lambda n: norms.append(float(n)), optax.tree.norm(updates))
        return updates, state

    noting = optax.GradientTransformation(lambda params: optax.EmptyState(), note)
    chain = optax.chain(
        noting,
        optax.clip_by_global_norm(1.0),
        optax.adamw(1e-2, weight_decay=0.5, mask=mask),
    )
    theirs, _ = fit_nnx(chain)
    barrier: Any = jax.effects_barrier
    barrier()
    # torch's clipping adds 1e-6 to the norm, and optax's clipping does not.
    assert_close(mine, theirs, rtol=1e-3, atol=1e-5)
    found = float(optimizer.opt_state.stats.grad_norm[...])
    assert found == pytest.approx(norms[-1], rel=1e-4)


def test_nnx_resumes_to_the_same_bits(client: stepd.Client) -> None:
    transformation = remote(client, {"name": "nadam", "lr": 1e-2})
    model = Model()
    optimizer = nnx.Optimizer(model, transformation, wrt=nnx.Param)

    def step(model: Any, optimizer: Any, seed: int) -> None:
        x, y = data(seed)

        def loss(model: Any) -> Any:
            return jnp.mean((model(x) - y) ** 2)

        optimizer.update(model, nnx.grad(loss)(model))

    for seed in range(3):
        step(model, optimizer, seed)
    saved = jax.tree.map(jnp.array, nnx.to_pure_dict(nnx.state((model, optimizer))))

    again = Model()
    resumed = nnx.Optimizer(again, transformation, wrt=nnx.Param)
    target = nnx.state((again, resumed))
    nnx.replace_by_pure_dict(target, saved)
    nnx.update((again, resumed), target)
    for seed in range(3, 6):
        step(model, optimizer, seed)
        step(again, resumed, seed)
    assert_equal(nnx.state(again), nnx.state(model))


class Layers(flax.linen.Module):  # type: ignore[misc]
    """A few layers, named by flax."""

    @flax.linen.compact  # type: ignore[untyped-decorator]
    def __call__(self, x: Any) -> Any:
        x = jnp.tanh(flax.linen.Dense(16)(x))
        x = flax.linen.LayerNorm()(x)
        return flax.linen.Dense(2)(x)


def begin(transformation: Any) -> Any:
    model = Layers()
    params = model.init(jax.random.key(0), jnp.ones((1, 6)))["params"]
    return flax.training.train_state.TrainState.create(
        apply_fn=model.apply, params=params, tx=transformation
    )


@jax.jit
def step_linen(state: Any, x: Any, y: Any) -> Any:
    def loss(params: Any) -> Any:
        return jnp.mean((state.apply_fn({"params": params}, x) - y) ** 2)

    return state.apply_gradients(grads=jax.grad(loss)(state.params))


def fit_linen(transformation: Any, steps: int = 8) -> Any:
    state = begin(transformation)
    for seed in range(steps):
        state = step_linen(state, *data(seed))
    return state


def adamw(lr: Any = 1e-2) -> optax.GradientTransformation:
    return optax.adamw(lr, weight_decay=0.01)


def labels(params: Any) -> Any:
    return {name: "dense" if "Dense" in name else "norm" for name in params}


def is_kernel(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def is_none(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim <= 1, params)


#: Each function builds a transformation around a function that makes AdamW.
WRAPPERS: dict[str, Callable[[Callable[..., Any]], Any]] = {
    "alone": lambda make: make(),
    "chain": lambda make: optax.chain(
        optax.clip_by_global_norm(0.5), optax.zero_nans(), make(), optax.scale(0.5)
    ),
    "schedule": lambda make: optax.inject_hyperparams(make)(
        lr=optax.warmup_cosine_decay_schedule(0.0, 1e-2, 3, 8)
    ),
    "injected": lambda make: optax.inject_hyperparams(make)(lr=5e-3),
    "multi_transform": lambda make: optax.multi_transform(
        {"dense": make(), "norm": optax.sgd(1e-2)}, labels
    ),
    "two of ours": lambda make: optax.multi_transform(
        {"dense": make(1e-2), "norm": make(1e-3)}, labels
    ),
    "masked": lambda make: optax.chain(
        optax.masked(make(), is_kernel),
        optax.masked(
            optax.set_to_zero(), lambda p: jax.tree.map(lambda x: not x, is_kernel(p))
        ),
    ),
    "partition": lambda make: optax.partition(
        {"dense": make(), "norm": optax.set_to_zero()}, labels
    ),
    "MultiSteps": lambda make: optax.MultiSteps(make(), every_k_schedule=2),
    "apply_if_finite": lambda make: optax.apply_if_finite(make(), 2),
    "flatten": lambda make: optax.flatten(make()),
    "lookahead of updates": lambda make: optax.chain(make(), optax.ema(0.5)),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers(client: stepd.Client, name: str) -> None:
    def mine(lr: Any = 1e-2) -> optax.GradientTransformation:
        return remote(client, {"name": "adamw", "lr": lr})

    start = begin(optax.sgd(0.0)).params
    ours, theirs = (fit_linen(WRAPPERS[name](make)) for make in (mine, adamw))
    assert_close(ours.params, theirs.params)
    moved = [
        not np.array_equal(a, b)
        for a, b in zip(*map(jax.tree.leaves, (ours.params, start)), strict=True)
    ]
    assert all(moved) or (any(moved) and name in ("masked", "partition"))


def test_injected_rate_changed_by_hand(client: stepd.Client) -> None:
    results = []
    for make in (lambda lr: remote(client, {"name": "adamw", "lr": lr}), adamw):
        state = begin(optax.inject_hyperparams(make)(lr=1e-2))
        for seed in range(6):
            state.opt_state.hyperparams["lr"] = jnp.float32(1e-2 / (seed + 1))
            state = step_linen(state, *data(seed))
        results.append(state.params)
    assert_close(*results)


def test_linen_resumes_to_the_same_bits(client: stepd.Client) -> None:
    transformation = remote(client, {"name": "lamb", "lr": 1e-2}, stats="tensor")
    state = fit_linen(transformation, 3)
    saved = flax.serialization.to_bytes(state)
    again = flax.serialization.from_bytes(begin(transformation), saved)
    assert isinstance(again.opt_state, RemoteState)
    for seed in range(3, 6):
        state, again = (step_linen(one, *data(seed)) for one in (state, again))
    assert_equal(again, state)
    assert np.all(state.opt_state.stats.tensors["trust_ratio"] > 0)


def test_a_scan_of_steps(client: stepd.Client) -> None:
    results = []
    for transformation in (remote(client, {"name": "adamw", "lr": 1e-2}), adamw()):
        state = begin(transformation)
        x, y = jax.vmap(data)(jnp.arange(5))

        @jax.jit
        def run(state: Any, x: Any, y: Any) -> Any:
            return jax.lax.scan(
                lambda state, entry: (step_linen(state, *entry), None), state, (x, y)
            )[0]

        results.append(run(state, x, y).params)
    assert_close(*results)


def test_frozen_tree_with_plain_gradients(client: stepd.Client) -> None:
    frozen = flax.core.freeze(begin(adamw()).params)
    transformation = remote(client, {"name": "sgd", "lr": 0.5})
    state = transformation.init(frozen)
    plain = flax.core.unfreeze(frozen)
    updates, _ = jax.jit(transformation.update)(plain, state, plain)
    assert_close(updates, jax.tree.map(lambda leaf: -0.5 * leaf, plain))
