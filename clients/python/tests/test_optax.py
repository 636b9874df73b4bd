"""Compares stepd.optax with optax itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")

import jax.numpy as jnp  # noqa: E402
from conftest import Server  # noqa: E402

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
def test_steps_equal_optax(
    client: stepd.Client, settings: dict[str, Any], twin: Any, jit: bool
) -> None:
    mine, state = train(remote(client, settings), 10, jit)
    theirs, _ = train(twin, 10, True)
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert isinstance(state, RemoteState)
    read = stepd.State(np.asarray(state.file).data)
    assert read.steps == {"layer/w": 10, "layer/b": 10, "scale": 10}


@pytest.mark.parametrize("state_dtype", ["BF16", "Q8"])
def test_narrow_moments(client: stepd.Client, state_dtype: str) -> None:
    transform = remote(
        client, {"name": "adamw", "lr": 1e-2, "state_dtype": state_dtype}
    )
    params = {"w": jnp.ones((70, 70)), "b": jnp.ones(3)}
    grads = jax.tree.map(jnp.sin, jax.tree.map(jnp.cumsum, params))
    grads = jax.tree.map(lambda grad, param: grad.reshape(param.shape), grads, params)
    state = transform.init(params)
    plain, traced = transform.update, jax.jit(transform.update)
    _, state = plain(grads, state, params)
    one, _ = plain(grads, state, params)
    other, _ = traced(grads, state, params)
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert jnp.array_equal(left, right)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(state)) < 5 * 4903


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


def test_vmap_steps_each_entry(client: stepd.Client) -> None:
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


def test_paths_may_change_between_init_and_update(client: stepd.Client) -> None:
    transformation = remote(client, {"name": "adamw", "lr": 1e-2})
    # flax wraps arrays like this for init. The paths differ, but the order of leaves is
    # the same.
    wrapped = {key: {"value": leaf} for key, leaf in LEAVES.items()}
    grads = {key: jnp.full_like(leaf, 0.5) for key, leaf in LEAVES.items()}
    found = jax.jit(transformation.update)(grads, transformation.init(wrapped), LEAVES)
    expected = transformation.update(grads, transformation.init(LEAVES), LEAVES)
    for a, b in zip(
        jax.tree.leaves(found[0]), jax.tree.leaves(expected[0]), strict=True
    ):
        assert jnp.array_equal(a, b)
    # Without the order, the names must match.
    state = transformation.init(wrapped)
    with pytest.raises(Exception, match="/value"):
        transformation.update(grads, RemoteState(state.file), LEAVES)
    with pytest.raises(ValueError, match="expected the 13 arrays of init, found 1"):
        transformation.update({"w": jnp.ones(3)}, state, {"w": jnp.ones(3)})


#: The parameters have thirteen leaves: 00 to 11, then b.
LEAVES: dict[str, Any] = {
    f"{place:02}": jnp.full(2, 1.0 + place) for place in range(12)
}
LEAVES["b"] = jnp.ones(3)


@pytest.mark.parametrize("jit", [True, False])
def test_injected_hyperparameters(server: Server, jit: bool) -> None:
    rates = optax.cosine_decay_schedule(1e-2, 10)

    def mine(lr: Any, b1: Any) -> Any:
        return remote(server.url, {"name": "adamw", "lr": lr, "betas": [b1, 0.999]})

    def theirs(lr: Any, b1: Any) -> Any:
        return optax.adamw(lr, b1=b1, weight_decay=0.01)

    results = []
    for make in (mine, theirs):
        injected = optax.inject_hyperparams(make)(lr=rates, b1=0.8)
        params, state = train(injected, 10, jit)
        results.append(params)
        assert state.hyperparams["lr"] == pytest.approx(float(rates(9)), rel=1e-5)
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_traced_numbers_in_any_setting(client: stepd.Client) -> None:
    def step(lr: Any, momentum: Any, limit: Any, decay: Any) -> Any:
        transformation = remote(
            client,
            {"name": "sgd", "lr": lr, "momentum": momentum},
            groups=[{"tensors": ["scale"], "optimizer": {"weight_decay": decay}}],
            clip={"max_norm": limit},
        )
        state = transformation.init(PARAMS)
        updates, state = transformation.update(PARAMS, state, PARAMS)
        return updates, state.file

    numbers = [jnp.float32(one) for one in (0.1, 0.9, 0.5, 0.25)]
    traced = jax.jit(step)(*numbers)
    for plain in (numbers, [float(one) for one in numbers]):
        for a, b in zip(*map(jax.tree.leaves, (traced, step(*plain))), strict=True):
            assert jnp.array_equal(a, b)
    batch = jax.vmap(lambda lr: step(lr, *numbers[1:])[0])(jnp.array([0.1, 0.2]))
    assert jnp.array_equal(batch["scale"][0], traced[0]["scale"])
    assert not jnp.array_equal(batch["scale"][1], traced[0]["scale"])


def test_statistics_are_in_the_state(client: stepd.Client) -> None:
    transformation = remote(client, {"name": "lamb", "lr": 1e-2}, stats="tensor")
    state = transformation.init(PARAMS)
    assert jnp.isnan(state.stats.grad_norm)
    grads = jax.tree.map(lambda leaf: jnp.full_like(leaf, 2.0), PARAMS)
    _, state = jax.jit(transformation.update)(grads, state, PARAMS)
    assert state.stats.grad_norm == pytest.approx(float(optax.tree.norm(grads)))
    assert not state.stats.clipped and not state.stats.skipped
    norms = [float(jnp.linalg.norm(leaf)) for leaf in jax.tree.leaves(grads)]
    np.testing.assert_allclose(state.stats.tensors["grad_norm"], norms, rtol=1e-6)
    assert state.stats.tensors["zeros"].tolist() == [0, 0, 0]
    assert not jnp.isnan(state.stats.tensors["trust_ratio"]).any()
    skipping = remote(client, {"name": "sgd"}, stats="global", non_finite="skip")
    grads["scale"] = jnp.array(jnp.inf)
    updates, after = skipping.update(grads, skipping.init(PARAMS), PARAMS)
    assert after.stats.skipped and not jnp.any(updates["layer"]["w"])


def test_master_weights_and_replies_in_bfloat16(client: stepd.Client) -> None:
    params = {"w": jnp.ones(4, jnp.bfloat16)}
    transformation = remote(
        client, {"name": "sgd", "lr": 1e-3}, master_weights=True, loss_scale=2.0
    )
    state = transformation.init(params)
    for _ in range(8):
        updates, state = transformation.update(params, state, params)
        params = optax.apply_updates(params, updates)
    # A single step is below half of the distance between bfloat16 values.
    kept = stepd.State(np.asarray(state.file).data)["master_param/w"]
    np.testing.assert_allclose(kept, 1 - 8 * 5e-4, rtol=1e-4)
    assert params["w"][0] < 1
    wide = {"w": jnp.ones(4)}
    short = remote(client, {"name": "sgd", "lr": 0.1}, reply={"params": "bf16"})
    updates, _ = short.update(wide, short.init(wide), wide)
    assert updates["w"].dtype == jnp.float32
    assert updates["w"][0] == jnp.bfloat16(0.9).astype(jnp.float32) - 1


def test_sends_handles_of_cached_results() -> None:
    sent: list[Any] = []

    class Recording(stepd.Client):
        def step(self, *args: Any, **options: Any) -> Any:
            sent.append(options.get("cached"))
            return super().step(*args, **options)

    with Server(STEPD_CACHE_MIB="16") as server, Recording(server.url) as client:
        plain, _ = train(remote(client, {"name": "adam"}), 4, True)
        jax.block_until_ready(plain)
        sent.clear()
        keeping = remote(client, {"name": "adam"}, reply={"cache": True})
        params, _ = train(keeping, 4, True)
        jax.block_until_ready(params)
        named = [one and bool(one.state) for one in sent]
        assert named == [None, None, True, True, True]
        jax.block_until_ready(keeping.update(PARAMS, keeping.init(PARAMS), PARAMS))
        assert sent[-1] is None
    for a, b in zip(*map(jax.tree.leaves, (plain, params)), strict=True):
        assert jnp.array_equal(a, b)


def test_parameter_without_gradient_does_not_change(client: stepd.Client) -> None:
    transformation = remote(client, {"name": "adamw", "weight_decay": 0.5})
    grads = {"layer": {"w": None, "b": jnp.ones(3)}, "scale": jnp.ones(())}
    state = transformation.init(PARAMS)
    updates, state = transformation.update(grads, state, PARAMS)
    assert not jnp.any(updates["layer"]["w"]) and jnp.all(updates["layer"]["b"])
    steps = stepd.State(np.asarray(state.file).data).steps
    assert steps == {"layer/w": 0, "layer/b": 1, "scale": 1}
    none = {"layer": {"w": None, "b": None}, "scale": None}
    with pytest.raises(ValueError, match="found None for each parameter"):
        transformation.update(none, state, PARAMS)


COSINE = optax.cosine_decay_schedule(1e-2, 10)
ADAM = {"name": "adam"}

MISTAKES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "client": ({"client": 0.1}, TypeError, "client: expected a Client.*0.1"),
    "async": (
        {"client": stepd.AsyncClient("http://127.0.0.1:1")},
        TypeError,
        "AsyncClient, which needs an event loop",
    ),
    "url": ({"client": "localhost:1"}, ValueError, "localhost:1"),
    "optimizer": ({"optimizer": "adamw"}, TypeError, "optimizer: expected a dict"),
    "schedule": (
        {"optimizer": {"name": "adamw", "lr": COSINE}},
        TypeError,
        r"optimizer/lr: expected a number, found a function; optax.inject_hyperparams\("
        r"lambda lr: .*schedule=",
    ),
    "schedule option": (
        {"optimizer": ADAM, "schedule": COSINE},
        TypeError,
        r"^schedule: expected a schedule of stepd.schedules, found a function; "
        r".*lambda lr: remote\(client, \{..., \"lr\": lr\}\)\)\(lr=function\)$",
    ),
    "function in clip": (
        {"optimizer": ADAM, "clip": {"max_norm": COSINE}},
        TypeError,
        "^clip/max_norm: expected a number, found a function; optax.inject_hyperparams",
    ),
    "option": ({"optimizer": ADAM, "clipp": 1}, TypeError, "the nearest is clip"),
    "lr": (
        {"optimizer": {"name": "adam", "lr": -1}},
        stepd.InvalidParams,
        "/lr: expected at least 0, found -1",
    ),
    "clip": ({"optimizer": ADAM, "clip": 1.0}, TypeError, "clip: expected"),
    "groups": (
        {"optimizer": ADAM, "groups": {"b": 1}},
        TypeError,
        "groups: expected",
    ),
    "cached": ({"optimizer": ADAM, "cached": 1}, TypeError, "cached: expected none"),
    "reply": (
        {"optimizer": ADAM, "reply": {"params": "none"}},
        ValueError,
        "reply: expected params",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_raise_at_once(client: stepd.Client, mistake: str) -> None:
    settings, kind, sentence = MISTAKES[mistake]
    with pytest.raises(kind, match=sentence):
        remote(**{"client": client, "optimizer": ADAM, **settings}).init(PARAMS)


@pytest.mark.parametrize(
    ("params", "grads", "kind", "sentence"),
    [
        ({"n": jnp.arange(3)}, None, TypeError, "n: expected float16.*int32"),
        ({"z": jnp.ones(3, complex)}, None, TypeError, "z: expected.*complex64"),
        ({"s": "text"}, None, TypeError, "s: expected an array of floats, found str"),
        ({"__metadata__": jnp.ones(3)}, None, ValueError, "'__metadata__' cannot be"),
        ({"a\ud800": jnp.ones(3)}, None, ValueError, "cannot be the name"),
        (
            {"w": jnp.ones(3)},
            {"w": jnp.ones(2)},
            ValueError,
            r"grads: w: expected shape \(3,\), found \(2,\)",
        ),
    ],
    ids=["integers", "complex", "text", "metadata", "surrogate", "shape"],
)
def test_invalid_leaves(
    client: stepd.Client, params: Any, grads: Any, kind: Any, sentence: str
) -> None:
    transformation = remote(client, ADAM)
    with pytest.raises(kind, match=sentence):
        state = transformation.init(params)
        jax.jit(transformation.update)(grads, state, params)


def test_other_trees_and_states(client: stepd.Client) -> None:
    transformation = remote(client, ADAM)
    state = transformation.init(PARAMS)
    with pytest.raises(ValueError, match="grads: expected the tree of params"):
        transformation.update({"scale": jnp.ones(())}, state, PARAMS)
    with pytest.raises(TypeError, match="expected the RemoteState of init, found tup"):
        transformation.update(PARAMS, optax.sgd(0.1).init(PARAMS), PARAMS)
    nothing = optax.masked(transformation, jax.tree.map(lambda leaf: False, PARAMS))
    updates, _ = nothing.update(PARAMS, nothing.init(PARAMS), PARAMS)
    assert jax.tree.leaves(updates) == jax.tree.leaves(PARAMS)


def test_python_number_is_an_array(client: stepd.Client) -> None:
    transformation = remote(client, {"name": "sgd", "lr": 0.5})
    params = {"w": 1.0}
    updates, _ = transformation.update(params, transformation.init(params), params)
    assert updates["w"] == -0.5


@pytest.mark.parametrize(
    "other",
    [
        {"w": jnp.ones(2), "b": jnp.ones(3)},
        {"w": jnp.ones(3), "b": jnp.ones((2, 1))},
    ],
)
def test_state_of_another_tree_raises(
    client: stepd.Client, other: dict[str, Any]
) -> None:
    transformation = remote(client, {"name": "adamw"})
    state = transformation.init({"w": jnp.ones(3), "b": jnp.ones(2)})
    with pytest.raises(stepd.StateMismatch, match=r"expected exp_avg/b to be F32 "):
        transformation.update(other, state, other)
    fewer = {"w": jnp.ones(3)}
    with pytest.raises(ValueError, match="expected the 2 arrays of init, found 1"):
        transformation.update(fewer, state, fewer)


def test_server_errors_are_not_wrapped_outside_jit(
    client: stepd.Client,
) -> None:
    transformation = remote(client, {"name": "adamw"})
    state = transformation.init(PARAMS)
    broken = jax.tree.map(lambda one: one * jnp.nan, PARAMS)
    with pytest.raises(stepd.NonFiniteGradient) as caught:
        transformation.update(broken, state, PARAMS)
    assert caught.value.tensors == ("layer/b", "layer/w", "scale")
    masked = {"w": np.ma.masked_array(np.ones(3, np.float32), [True, False, False])}
    with pytest.raises(TypeError, match="w: expected an array without a mask"):
        transformation.init(masked)


def test_groups_of_several_optimizers_equal_multi_transform(
    client: stepd.Client,
) -> None:
    sgd = {"name": "sgd", "lr": 0.1, "momentum": 0.9}
    groups = [{"tensors": ["layer/w"], "optimizer": sgd}]
    mine, state = train(remote(client, ADAM, groups=groups), 5, False)
    labels = {"layer": {"w": "matrix", "b": "rest"}, "scale": "rest"}

    def parted(matrix: Any, rest: Any) -> Any:
        return optax.multi_transform({"matrix": matrix, "rest": rest}, labels)

    # The same server behind two transformations gives the same bits.
    alone, _ = train(parted(remote(client, sgd), remote(client, ADAM)), 5, False)
    theirs, _ = train(parted(optax.sgd(0.1, momentum=0.9), optax.adam(1e-3)), 5, True)
    for a, b, c in zip(*map(jax.tree.leaves, (mine, alone, theirs)), strict=True):
        assert np.array_equal(a, b)
        np.testing.assert_allclose(a, c, rtol=2e-5, atol=1e-7)
    own = stepd.State(np.asarray(state.file).data)
    assert own.optimizers == {"layer/w": "sgd"}
