"""An optax transformation whose steps stepd does. Needs the extra ``optax``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ._client import Client
from ._options import Groups, NonFinite, Optimizer, Schedule
from ._shards import ShardedClient
from ._state import State
from ._tensors import Array
from ._timeout import Timeout


class RemoteState(NamedTuple):
    """The state as a safetensors file, uint8[bytes], whose length stays the same.

    ``stepd.State(np.asarray(state.file))`` reads it. A file keeps int64 and float64
    exact, which arrays of jax by default are not.
    """

    file: jax.Array


def remote(
    client: Client | ShardedClient | str,
    optimizer: Optimizer,
    *,
    groups: Groups | None = None,
    schedule: Schedule | None = None,
    clip: Mapping[str, float] | None = None,
    loss_scale: float | None = None,
    non_finite: NonFinite | None = None,
    timeout: float | Timeout | None = None,
) -> optax.GradientTransformation:
    """A ``GradientTransformation`` of any optimizer, usable under ``jit``.

    Parameters may be any tree of arrays in float16, bfloat16, float32 or float64; the
    names that ``groups`` go by are the paths in the tree, such as ``layer/w``.
    ``update`` needs ``params``. The updates are the differences of the new and the old
    parameters: ``optax.apply_updates`` gives the new ones but for the last bits. Under
    ``vmap`` each entry is a step of its own, one call after the other.

    Raises ValueError for a tree in which two paths give one name.

    Inside ``jit`` a :class:`stepd.StepdError` is what jax makes of it.
    """
    remote_client = Client(client) if isinstance(client, str) else client
    settings: dict[str, Any] = {
        "groups": groups,
        "schedule": schedule,
        "clip": clip,
        "loss_scale": loss_scale,
        "non_finite": non_finite,
        "timeout": timeout,
    }

    def init(params: Any) -> RemoteState:
        # Starting values do not depend on the parameters', which may be traced.
        names, leaves = _flatten(params)
        zeros = [np.zeros(leaf.shape, leaf.dtype) for leaf in leaves]
        state = remote_client.init(
            optimizer, dict(zip(names, zeros, strict=True)), groups=groups
        )
        return RemoteState(jnp.asarray(np.frombuffer(state.to_bytes(), np.uint8)))

    def update(
        grads: Any, state: RemoteState, params: Any = None
    ) -> tuple[Any, RemoteState]:
        if params is None:
            raise ValueError("stepd.optax.remote needs params in update")
        names, leaves = _flatten(params)
        structure: Any = jax.tree_util.tree_structure(params)

        def step(file: Any, old: Any, new: Any) -> tuple[list[Array], Array]:
            before = [np.asarray(leaf) for leaf in old]
            result = remote_client.step(
                optimizer,
                dict(zip(names, before, strict=True)),
                dict(zip(names, map(np.asarray, new), strict=True)),
                State(np.ascontiguousarray(file).data),
                **settings,
            )
            updates = [
                np.asarray(result.params[name] - array)
                for name, array in zip(names, before, strict=True)
            ]
            return updates, np.frombuffer(result.state.to_bytes(), np.uint8)

        shape: Any = jax.ShapeDtypeStruct
        shapes = [shape(leaf.shape, leaf.dtype) for leaf in leaves]
        kept = shape(state.file.shape, jnp.uint8)
        gradients = structure.flatten_up_to(grads)
        updates, file = jax.pure_callback(
            step,
            (shapes, kept),
            state.file,
            leaves,
            gradients,
            vmap_method="sequential",
        )
        return structure.unflatten(updates), RemoteState(file)

    return optax.GradientTransformation(init, update)


def _flatten(tree: Any) -> tuple[list[str], list[Any]]:
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    by_name: dict[str, Any] = {}
    for path, _ in paths:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        other = by_name.setdefault(name, path)
        if other is not path:
            both = " and ".join(map(jax.tree_util.keystr, (other, path)))
            raise ValueError(f"expected names of their own, found {name} for {both}")
    return list(by_name), [leaf for _, leaf in paths]
