"""An optax transformation that runs its steps on stepd. Needs the extra ``optax``."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

try:
    import jax
    import jax.numpy as jnp
    import optax
except ImportError as error:
    raise ImportError('stepd.optax needs optax: pip install "stepd[optax]"') from error

from ._adapter import adapter_options, check, client_of, is_sendable
from ._calls import Cached, StepResult
from ._client import Client
from ._options import Optimizer, StepOptions
from ._shards import ShardedClient
from ._state import State
from ._tensors import Array, refuse_masked
from ._timeout import Timeout

if TYPE_CHECKING:
    from typing_extensions import Unpack

#: This value replaces a traced hyperparameter when only a state's shape matters.
_ANY_NUMBER = 0.5

_shape: Any = jax.ShapeDtypeStruct

_NORMS = ("grad_norm", "param_norm", "update_norm")
_COUNTS = ("zeros", "non_finite")


class RemoteStats(NamedTuple):
    """Statistics of a step as arrays. After a skipped step the norms are NaN.

    With ``stats="tensor"``, ``tensors`` holds the same statistics per parameter, and
    ``trust_ratio``: arrays in the order of ``jax.tree.leaves(params)``. Missing norms
    are NaN, missing counts 0.
    """

    grad_norm: jax.Array
    param_norm: jax.Array
    update_norm: jax.Array
    zeros: jax.Array
    non_finite: jax.Array
    clipped: jax.Array
    skipped: jax.Array
    tensors: dict[str, jax.Array] | None = None


class RemoteState(NamedTuple):
    """The state as a safetensors file, uint8[bytes] of constant length.

    ``stepd.State(np.asarray(state.file))`` reads the file. A file keeps int64 and
    float64 exactly, which jax arrays by default do not.

    ``order`` maps each leaf of the parameters to its name, as an index into the sorted
    names of the file, so that paths may change between ``init`` and ``update``. None
    means that the paths are the names. ``stats`` holds the last step's statistics, if
    the caller requested statistics.
    """

    file: jax.Array
    order: jax.Array | None = None
    stats: RemoteStats | None = None


def remote(
    client: Client | ShardedClient | str,
    optimizer: Optimizer,
    *,
    timeout: float | Timeout | None = None,
    **options: Unpack[StepOptions],
) -> optax.GradientTransformation:
    """Return a ``GradientTransformation`` for any optimizer, usable under ``jit``.

    Parameters may be any tree of arrays in float16, bfloat16, float32 or float64.
    ``groups`` match parameters by their paths in the tree, such as ``layer/w``.
    ``update`` needs ``params``. A parameter whose gradient is None does not change. The
    updates are the differences of new and old parameters, so ``optax.apply_updates``
    gives the new parameters except for the last bits. Under ``vmap`` each entry is a
    separate step, and the calls run one after another.

    Numbers in ``optimizer`` and in the options may be jax arrays, even traced ones, as
    ``optax.inject_hyperparams`` makes them. The options are those of a step
    (:class:`stepd.StepOptions`). With ``reply={"cache": True}``, ``update`` sets
    ``cached`` itself. With ``stats`` the state holds the last step's statistics.

    Raises TypeError for a client or a hyperparameter that cannot be used. ``init`` and
    ``update`` raise TypeError for leaves that are not arrays of floats, and ValueError
    if two paths in the tree give the same name.

    ``update`` raises :class:`stepd.StateMismatch` for the state of another tree. Inside
    ``jit``, jax wraps a :class:`stepd.StepdError` in its own exception.
    """
    remote_client = _client_of(client) if isinstance(client, str) else client_of(client)
    if not isinstance(optimizer, Mapping):
        raise TypeError(
            'optimizer: expected a dict such as {"name": "adamw", "lr": 1e-3}, '
            f"found {optimizer!r:.60}"
        )
    fixed, numbers, fill = _numbers(
        {"optimizer": optimizer, "options": adapter_options(options)}
    )
    stats: str = fixed["options"].get("stats") or "none"
    masters: bool | None = fixed["options"].get("master_weights")
    keeps = bool((fixed["options"].get("reply") or {}).get("cache"))
    cached_result: list[StepResult] = []

    def init(params: Any) -> RemoteState:
        names, leaves = _flatten(params)

        def start(given: Sequence[Any], values: Sequence[Any]) -> Array:
            settings = fill([np.asarray(one).tolist() for one in given])
            state = remote_client.init(
                settings["optimizer"],
                dict(zip(names, map(np.asarray, values), strict=True)),
                groups=settings["options"].get("groups"),
                master_weights=masters,
                timeout=timeout,
            )
            return np.frombuffer(state.to_bytes(), np.uint8)

        if not numbers:
            check(remote_client, fixed["optimizer"], fixed["options"])
        # The length of the state depends on no value. The content depends on the
        # parameters' values if there are master weights, and these values may be
        # traced.
        zeros = [np.zeros(leaf.shape, leaf.dtype) for leaf in leaves]
        alike = start([_ANY_NUMBER] * len(numbers), zeros)
        if numbers or masters:
            file = _call_or_callback(
                start, _shape(alike.shape, jnp.uint8), numbers, leaves
            )
        else:
            file = jnp.asarray(alike)
        # Entry i of the order is the index of name i among the sorted names.
        order = jnp.asarray(np.argsort(np.argsort(names)), jnp.int32)
        empty = _stats(None, stats, len(names), []) if stats != "none" else None
        return RemoteState(file, order, jax.tree.map(jnp.asarray, empty))

    def update(
        grads: Any, state: RemoteState, params: Any = None
    ) -> tuple[Any, RemoteState]:
        if params is None:
            raise ValueError("stepd.optax.remote needs params in update")
        if not isinstance(state, RemoteState):
            kind = type(state).__name__
            raise TypeError(f"state: expected the RemoteState of init, found {kind}")
        paths, leaves = _flatten(params)
        structure: Any = jax.tree_util.tree_structure(params)
        try:
            given = structure.flatten_up_to(grads)
        except (TypeError, ValueError) as error:
            raise ValueError(f"grads: expected the tree of params: {error}") from None
        gradients = _gradients(given, paths, leaves)
        if state.order is not None and state.order.shape != (len(leaves),):
            expected = f"the {state.order.size} arrays of init"
            raise ValueError(f"params: expected {expected}, found {len(leaves)}")
        if not leaves:
            return grads, state

        def step(
            file: Any, order: Any, old: Any, new: Any, given: Any
        ) -> tuple[list[Array], Array, Any]:
            before = [np.asarray(leaf) for leaf in old]
            own_state = State(np.ascontiguousarray(file).data)
            names = _names(own_state, order, paths)
            arrays = dict(zip(names, before, strict=True))
            settings = fill([np.asarray(one).tolist() for one in given])
            own_options: StepOptions = settings["options"]
            if cached_result:
                own_options["cached"] = _cached(cached_result[0], arrays, own_state)
            result = remote_client.step(
                settings["optimizer"],
                arrays,
                {names[place]: np.asarray(one) for place, one in new.items()},
                own_state,
                timeout=timeout,
                **own_options,
            )
            cached_result[:] = [result] if keeps and result.cached else []
            updates = [
                np.asarray(result.params[name].astype(array.dtype) - array)
                for name, array in arrays.items()
            ]
            after = np.frombuffer(result.state.to_bytes(), np.uint8)
            for sentence in result.warnings:
                warnings.warn(sentence, RuntimeWarning, stacklevel=2)
            if stats == "none":
                return updates, after, None
            return updates, after, _stats(result, stats, len(names), names)

        shapes = [_shape(leaf.shape, leaf.dtype) for leaf in leaves]
        empty = _stats(None, stats, len(leaves), []) if stats != "none" else None
        after = jax.tree.map(lambda one: _shape(one.shape, one.dtype), empty)
        updates, file, new_stats = _call_or_callback(
            step,
            (shapes, _shape(state.file.shape, jnp.uint8), after),
            state.file,
            state.order,
            leaves,
            gradients,
            numbers,
        )
        return structure.unflatten(updates), RemoteState(file, state.order, new_stats)

    return optax.GradientTransformation(init, update)


def _call_or_callback(function: Callable[..., Any], shapes: Any, *given: Any) -> Any:
    """Call a function of arrays. If an array is traced, call it through a callback.

    The call is direct otherwise, because a callback prints every error's traceback.
    """
    if any(isinstance(one, jax.core.Tracer) for one in jax.tree.leaves(given)):
        return jax.pure_callback(function, shapes, *given, vmap_method="sequential")
    return jax.tree.map(jnp.asarray, function(*given))


@functools.lru_cache(maxsize=8)
def _client_of(url: str) -> Any:
    """Return one client per URL: inject_hyperparams calls ``remote`` at every step."""
    return client_of(url)


def _numbers(
    settings: Mapping[str, Any],
) -> tuple[dict[str, Any], list[Any], Callable[[Sequence[Any]], dict[str, Any]]]:
    """Split settings into constants, traced numbers, and a function that joins both."""
    traced: list[Any] = []

    def plain(value: Any, path: str) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(one, f"{path}/{key}") for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [plain(one, f"{path}/{place}") for place, one in enumerate(value)]
        if isinstance(value, jax.core.Tracer):
            traced.append(value)
            return _TracedIndex(len(traced) - 1)
        if isinstance(value, jax.Array | np.ndarray | np.generic):
            return np.asarray(value).tolist()
        if callable(value) and not isinstance(value, Cached):
            if path == "schedule":
                raise TypeError(
                    "schedule: expected a schedule of stepd.schedules, found a "
                    "function; one of optax goes into the rate: "
                    "optax.inject_hyperparams(lambda lr: remote(client, {..., "
                    '"lr": lr}))(lr=function)'
                )
            if not path.startswith("optimizer/"):
                raise TypeError(
                    f"{path}: expected a number, found a function; "
                    "optax.inject_hyperparams gives its number to remote at each step"
                )
            key = path.rpartition("/")[2]
            raise TypeError(
                f"{path}: expected a number, found a function; "
                f"optax.inject_hyperparams(lambda {key}: remote(client, {{..., "
                f'"{key}": {key}}}))({key}=function) calls it at each step, and '
                "schedule= names a schedule of stepd.schedules"
            )
        return value

    def filled(value: Any, given: Sequence[Any]) -> Any:
        if isinstance(value, dict):
            return {key: filled(one, given) for key, one in value.items()}
        if isinstance(value, list):
            return [filled(one, given) for one in value]
        return given[value.place] if isinstance(value, _TracedIndex) else value

    fixed = {
        "optimizer": plain(settings["optimizer"], "optimizer"),
        "options": {key: plain(one, key) for key, one in settings["options"].items()},
    }
    return fixed, traced, lambda given: filled(fixed, given)


class _TracedIndex(NamedTuple):
    """The index of a traced number in the list of traced numbers."""

    place: int


def _flatten(tree: Any) -> tuple[list[str], list[Any]]:
    """Return names and arrays of a tree. A flax.nnx variable counts as one leaf."""
    by_name: dict[str, Any] = {}
    leaves: list[Any] = []
    nodes, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_variable)
    for path, node in nodes:
        inner, _ = jax.tree_util.tree_flatten_with_path(node)
        for rest, leaf in inner:
            whole = (*path, *rest) if len(inner) > 1 else path
            name = jax.tree_util.keystr(whole, simple=True, separator="/")
            other = by_name.setdefault(name, whole)
            if other is not whole:
                both = " and ".join(map(jax.tree_util.keystr, (other, whole)))
                raise ValueError(
                    f"expected names of their own, found {name} for {both}"
                )
            if not is_sendable(name):
                raise ValueError(f"{name!r} cannot be the name of an array in a file")
            leaves.append(_float_array(name, leaf))
    return list(by_name), leaves


def _is_variable(node: Any) -> bool:
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(node, nnx.Variable)


def _float_array(name: str, leaf: Any) -> Any:
    refuse_masked(name, leaf)
    try:
        array = jnp.asarray(leaf)
    except (TypeError, ValueError):
        kind = type(leaf).__name__
        raise TypeError(f"{name}: expected an array of floats, found {kind}") from None
    if array.dtype not in (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64):
        expected = "float16, bfloat16, float32 or float64"
        raise TypeError(
            f"{name}: expected {expected}, found {array.dtype}; "
            "optax.masked leaves other arrays out"
        )
    return array


def _gradients(
    given: Sequence[Any], names: Sequence[str], leaves: Sequence[Any]
) -> dict[int, Any]:
    """Return the gradients that are not None, by the index of their parameter."""
    gradients: dict[int, Any] = {}
    for place, (gradient, name, leaf) in enumerate(
        zip(given, names, leaves, strict=True)
    ):
        if gradient is None:
            continue
        array = _float_array(f"grads: {name}", gradient)
        if array.shape != leaf.shape:
            raise ValueError(
                f"grads: {name}: expected shape {leaf.shape}, found {array.shape}"
            )
        gradients[place] = array
    if leaves and not gradients:
        raise ValueError("grads: expected arrays, found None for each parameter")
    return gradients


def _names(state: State, order: Any, paths: Sequence[str]) -> list[str]:
    """Return the names of the leaves from the state, otherwise their paths."""
    names = sorted({name for _, name, _ in state.entries()})
    if order is None or len(names) != len(paths):
        return list(paths)
    return [names[place] for place in np.asarray(order)]


def _cached(
    result: StepResult, arrays: Mapping[str, Array], state: State
) -> Cached | None:
    """Return the handles that this step can use in place of parameters and state."""
    if result.cached is None or result.state != state:
        return None
    same = result.params.keys() == arrays.keys() and all(
        np.array_equal(_bits(result.params[name].astype(array.dtype)), _bits(array))
        for name, array in arrays.items()
    )
    if same:
        return result.cached
    # apply_updates may change the last bits of parameters, which then are sent in full.
    return Cached(state=result.cached.state) if result.cached.state else None


def _bits(array: Array) -> Array:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _stats(
    result: StepResult | None, which: str, tensors: int, names: Sequence[str]
) -> RemoteStats:
    """Return statistics as arrays. Without a result, norms are NaN and counts are 0."""
    real = np.dtype(jax.dtypes.canonicalize_dtype(float))
    count = np.dtype(jax.dtypes.canonicalize_dtype(np.int64))
    whole = result.stats if result is not None else None
    by_tensor: dict[str, Array] | None = None
    if which == "tensor":
        of_each = whole.tensors if whole is not None else None
        by_tensor = {
            **{key: np.full(tensors, np.nan, real) for key in (*_NORMS, "trust_ratio")},
            **{key: np.zeros(tensors, count) for key in _COUNTS},
        }
        for place, name in enumerate(names):
            one = (of_each or {}).get(name)
            for key, values in by_tensor.items():
                value = getattr(one, key, None)
                if value is not None:
                    values[place] = value
    fields: dict[str, Any] = {
        **{key: np.asarray(getattr(whole, key, np.nan), real) for key in _NORMS},
        **{key: np.asarray(getattr(whole, key, 0), count) for key in _COUNTS},
        "clipped": np.asarray(getattr(whole, "clipped", False)),
        "skipped": np.asarray(getattr(result, "skipped", False)),
        "tensors": by_tensor,
    }
    return RemoteStats(**fields)
