"""An optax transformation that runs its steps on stepd. Needs the extra ``optax``."""

from __future__ import annotations

import functools
import secrets
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from ._checks import require_count
from ._client import Client
from ._options import Optimizer, StepOptions
from ._resident import ResidentRun
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
    #: With ``resident``, the place in a run: its id (two numbers), the steps of the run
    #: before this state, and those before ``file``.
    place: jax.Array | None = None


def remote(
    client: Client | ShardedClient | str,
    optimizer: Optimizer,
    *,
    timeout: float | Timeout | None = None,
    resident: bool = False,
    fetch_every: int = 20,
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

    With ``resident=True`` parameters and state stay on the server, which needs a cache
    (STEPD_CACHE_MIB): a step sends gradients, and parameters only if they are not the
    old ones with the updates added. The state then holds a place in that run instead of
    new bytes, so only the newest state of a run can be used. :func:`fetch` gives
    parameters and a state to keep. After a loss of the server the steps since the last
    fetch are repeated with the same bits. For that the process holds the gradients of
    up to ``fetch_every`` steps, and parameters and state of the last fetch. It keeps
    the 16 runs that were used last.

    Raises TypeError for a client or a hyperparameter that cannot be used. ``init`` and
    ``update`` raise TypeError for leaves that are not arrays of floats, and ValueError
    if two paths in the tree give the same name.

    ``update`` raises :class:`stepd.StateMismatch` for the state of another tree. Inside
    ``jit``, jax wraps a :class:`stepd.StepdError` in its own exception.
    """
    require_count("fetch_every", fetch_every)
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
            check(
                remote_client, fixed["optimizer"], fixed["options"], resident=resident
            )
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
        place = jnp.zeros(4, jnp.uint32) if resident else None
        return RemoteState(file, order, jax.tree.map(jnp.asarray, empty), place)

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
            file: Any, order: Any, place: Any, old: Any, new: Any, given: Any
        ) -> tuple[list[Array], Array, Any]:
            before = [np.asarray(leaf) for leaf in old]
            own_state = State(np.ascontiguousarray(file).data)
            names = _names(own_state, order, paths)
            arrays = dict(zip(names, before, strict=True))
            settings = fill([np.asarray(one).tolist() for one in given])
            own_options: StepOptions = settings["options"]
            gradients = {names[leaf]: np.asarray(one) for leaf, one in new.items()}
            run = None
            if place is not None:
                run = _run_at(np.asarray(place), paths)
                if run is None:
                    steps = ResidentRun(remote_client, timeout, fetch_every)
                    run = _Run(steps, paths)
                    run.steps.start(arrays, State(own_state.to_bytes()))
                elif run.steps.is_due:
                    run.steps.fetch()
                changed = None if run.has(arrays) else arrays
                optimizer = settings["optimizer"]
                result = run.steps.step(optimizer, gradients, own_options, changed)
            else:
                if cached_result:
                    own_options["cached"] = _cached(cached_result[0], arrays, own_state)
                result = remote_client.step(
                    settings["optimizer"],
                    arrays,
                    gradients,
                    own_state,
                    timeout=timeout,
                    **own_options,
                )
                cached_result[:] = [result] if keeps and result.cached else []
            updates = [
                np.asarray(result.params[name].astype(array.dtype) - array)
                for name, array in arrays.items()
            ]
            if run is not None:
                after = run.moved(np.asarray(place), result.params, arrays, updates)
            else:
                after = np.frombuffer(result.state.to_bytes(), np.uint8)
            for sentence in result.warnings:
                warnings.warn(sentence, RuntimeWarning, stacklevel=2)
            if stats == "none":
                return updates, after, None
            return updates, after, _stats(result, stats, len(names), names)

        shapes = [_shape(leaf.shape, leaf.dtype) for leaf in leaves]
        empty = _stats(None, stats, len(leaves), []) if stats != "none" else None
        after = jax.tree.map(lambda one: _shape(one.shape, one.dtype), empty)
        file, place = state.file, state.place
        if resident and place is None:
            place = jnp.zeros(4, jnp.uint32)
        moved = file if place is None else place
        updates, moved, new_stats = _call_or_callback(
            step,
            (shapes, _shape(moved.shape, moved.dtype), after),
            file,
            state.order,
            place,
            leaves,
            gradients,
            numbers,
        )
        if place is None:
            new_state = RemoteState(moved, state.order, new_stats)
        else:
            new_state = RemoteState(file, state.order, new_stats, moved)
        return structure.unflatten(updates), new_state

    return optax.GradientTransformation(init, update)


class _Run:
    """A run on the server, and what the caller's parameters should be."""

    def __init__(self, steps: ResidentRun, paths: Sequence[str]) -> None:
        self.steps = steps
        self.paths = list(paths)
        self.id = np.frombuffer(secrets.token_bytes(8), np.uint32)
        self.count = 0
        #: The caller's parameters after the updates, and those of the server.
        self._expected: tuple[Mapping[str, Array], ...] = ()

    def has(self, arrays: Mapping[str, Array]) -> bool:
        """Return whether the caller's parameters are those of the run."""
        return not self._expected or any(
            all(_is_same(own[name], array) for name, array in arrays.items())
            for own in self._expected
        )

    def moved(
        self,
        place: Array,
        params: Mapping[str, Array],
        arrays: Mapping[str, Array],
        updates: Sequence[Array],
    ) -> Array:
        """Return the place after a step from ``arrays``."""
        with np.errstate(all="ignore"):
            added = {
                name: np.asarray(array + update, array.dtype)
                for (name, array), update in zip(arrays.items(), updates, strict=True)
            }
        self._expected = (added, params)
        count = int(place[2]) + 1
        self.count = count
        key = self.id.tobytes()
        _RUNS[key] = self
        _RUNS.move_to_end(key)
        while len(_RUNS) > _MOST_RUNS:
            _RUNS.popitem(last=False)
        return np.array([*self.id, count, place[3]], np.uint32)


#: The runs of this process, by id. They outlive transformations, which
#: optax.inject_hyperparams makes at each step.
_RUNS: OrderedDict[bytes, _Run] = OrderedDict()
_MOST_RUNS = 16


def _run_at(place: Array, paths: Sequence[str] | None = None) -> _Run | None:
    """Return the run at a place. Returns None if the state's own file has the place.

    Raises ValueError if the run has gone on from there, or is not of this process.
    """
    run = _RUNS.get(place[:2].tobytes())
    if run is not None and run.count == place[2] and paths in (None, run.paths):
        return run
    if place[2] == place[3]:
        return None
    found = "one of another process" if run is None else f"that of step {place[2]}"
    raise ValueError(
        f"state: expected the newest of a resident run, found {found}; "
        "stepd.optax.fetch gives states that can be kept"
    )


def fetch(params: Any, state: Any) -> tuple[Any, Any]:
    """Return parameters and state of resident runs, with all values in them.

    ``state`` is that of ``remote(..., resident=True)``, or a tree that holds such
    states. Keep the result in a checkpoint, and continue from it: the parameters are
    the server's, which may differ from the sums of the updates in the last bits.
    """
    structure: Any = jax.tree_util.tree_structure(params)
    named = list(_named(params))
    nodes = [leaf for _, leaf in named]
    by_path = {name: index for index, (name, _) in enumerate(named)}

    def fetched(node: Any) -> Any:
        if not isinstance(node, RemoteState) or node.place is None:
            return node
        place = np.asarray(node.place)
        if place.ndim > 1:
            raise ValueError("state: expected that of one run, found those of a vmap")
        run = _run_at(place)
        if run is None:
            return node
        values, own = run.steps.fetch()
        if own is None:
            return node
        names = _names(own, node.order, run.paths)
        for path, name in zip(run.paths, names, strict=True):
            if path in by_path:
                nodes[by_path[path]] = jnp.asarray(values[name])
        file = jnp.asarray(np.frombuffer(own.to_bytes(), np.uint8))
        kept = jnp.asarray([*place[:3], place[2]], jnp.uint32)
        return node._replace(file=file, place=kept)

    after = jax.tree.map(
        fetched, state, is_leaf=lambda one: isinstance(one, RemoteState)
    )
    return structure.unflatten(nodes), after


def _is_same(one: Array, other: Array) -> bool:
    return np.array_equal(_bits(one.astype(other.dtype)), _bits(other))


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
    """Return names and arrays of a tree."""
    names: list[str] = []
    leaves: list[Any] = []
    for name, leaf in _named(tree):
        if not is_sendable(name):
            raise ValueError(f"{name!r} cannot be the name of an array in a file")
        names.append(name)
        leaves.append(_float_array(name, leaf))
    return names, leaves


def _named(tree: Any) -> Iterator[tuple[str, Any]]:
    """Iterate over names and leaves. A flax.nnx variable counts as one leaf."""
    by_name: dict[str, Any] = {}
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
            yield name, leaf


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
        _is_same(result.params[name], array) for name, array in arrays.items()
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
