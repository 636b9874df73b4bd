"""A Flower strategy whose server step runs on stepd (flwr 1.42 or later).

The optimizer's state survives a restart. Replies are combined in the order of the
nodes' ids, so that the order of arrival changes no bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, BinaryIO, Literal, Protocol

import numpy as np
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord
from flwr.serverapp.exception import AggregationError
from flwr.serverapp.strategy import FedAvg

from ._calls import StepResult
from ._errors import ServerError
from ._options import Optimizer
from ._reduce import ReduceResult
from ._state import STEP, State
from ._tensors import Array, scalar

__all__ = [
    "StepdStrategy",
    "fed_adagrad",
    "fed_adam",
    "fed_avg",
    "fed_avgm",
    "fed_yogi",
]

_LATEST = "latest.json"

_log = logging.getLogger("flwr")

#: The options of a reduction that a strategy leaves to its caller.
_REDUCE_OPTIONS = ("method", "missing", "non_finite")

_Arrays = dict[str, Array]


class _Client(Protocol):
    """The methods of Client and ShardedClient that a strategy needs."""

    def step(self, *args: Any, **options: Any) -> StepResult: ...

    def reduce(self, *args: Any, **options: Any) -> ReduceResult: ...

    def init(self, *args: Any, **options: Any) -> State: ...


@dataclasses.dataclass(frozen=True)
class _Reply:
    """A node's reply to a training message."""

    node: int
    arrays: _Arrays
    weight: float
    content: Any


#: An optimizer, or a function that returns the optimizer for a step count from 1 on.
OptimizerOf = Optimizer | Callable[[int], Optimizer]


class StepdStrategy(FedAvg):  # type: ignore[misc]
    """FedAvg whose server step is any optimizer of stepd.

    ``client`` is a :class:`stepd.Client` or :class:`stepd.ShardedClient`. The gradient
    of a round is the parameters minus the weighted mean of the replies.

    ``trainable`` selects the arrays that the optimizer steps: names, or a function of
    the name. The default selects all float arrays. Every other float array becomes the
    mean of the replies. Every integer array becomes that mean, rounded to integers.

    ``count="steps"`` counts the rounds with replies; ``"rounds"`` counts every
    round, so that bias correction follows the round as in Flower's FedAdam.

    ``path`` is a folder that keeps parameters, state and round number. Each round
    replaces all three atomically. A new strategy with the same path continues the run:
    start it with ``strategy.arrays``. ``strategy.round`` counts the completed rounds.

    ``reduce`` holds more options of the reduction: ``method``, ``missing`` and
    ``non_finite``, for example ``{"method": {"name": "median"}}``. Only the mean uses
    the nodes' weights. All other arguments are those of Flower's FedAvg.
    """

    def __init__(
        self,
        client: _Client,
        optimizer: OptimizerOf,
        *,
        trainable: Collection[str] | Callable[[str], bool] | None = None,
        count: Literal["steps", "rounds"] = "steps",
        path: str | os.PathLike[str] | None = None,
        reduce: Mapping[str, Any] | None = None,
        **fedavg: Any,
    ) -> None:
        super().__init__(**fedavg)
        if count not in ("steps", "rounds"):
            raise ValueError(f"count: expected steps or rounds, found {count!r}")
        self._client = client
        self._optimizer = optimizer
        self._trainable = trainable
        self._count = count
        self._reduce = dict(reduce or {})
        for name in self._reduce:
            if name not in _REDUCE_OPTIONS:
                known = ", ".join(_REDUCE_OPTIONS)
                raise TypeError(f"reduce: expected {known}, found {name!r}")
        #: The step count minus the round, with ``count="rounds"``.
        self._ahead = 0
        self._path = None if path is None else pathlib.Path(path)
        self._arrays: _Arrays = {}
        #: The optimizer's state. None before the first step.
        self.state: State | None = None
        #: The number of completed rounds, including those before a restart.
        self.round = 0
        if self._path is not None:
            self._path.mkdir(parents=True, exist_ok=True)
            self._load(self._path)
        #: The number of rounds before the current start.
        self._rounds_before = self.round

    @property
    def arrays(self) -> ArrayRecord | None:
        """The parameters after the last round. None before the first one."""
        return _record(self._arrays) if self._arrays else None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: Any, grid: Any
    ) -> Any:
        given = {name: array.numpy() for name, array in arrays.items()}
        if server_round == 1:
            # Another start of the same strategy continues the run.
            self._rounds_before = self.round
            if self.round > 0 and not _are_equal(given, self._arrays):
                raise ValueError(
                    "initial_arrays: expected strategy.arrays, the parameters after "
                    f"round {self.round}, found other arrays"
                )
        for name, array in given.items():
            if array.dtype.kind not in "fiub":
                raise TypeError(
                    f"{name}: expected floats, integers or booleans, "
                    f"found {array.dtype}"
                )
        self._arrays = given
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round: int, replies: Iterable[Any]) -> Any:
        valid, _ = self._check_and_log_replies(list(replies), is_train=True)
        # Sorting makes the bits independent of the order of arrival.
        valid.sort(key=lambda reply: reply.metadata.src_node_id)
        read = [self._read(message) for message in valid]
        completed = self._rounds_before + server_round
        kept = self._step(completed, read) if _have_weight(read) else []
        self.round = completed
        self._save()
        if not kept:
            return None, None
        contents = [reply.content for reply in kept]
        metrics = self.train_metrics_aggr_fn(contents, self.weighted_by_key)
        return _record(self._arrays), metrics

    def _read(self, message: Any) -> _Reply:
        """Read a reply. Raises AggregationError if its arrays are not the model's."""
        node, content = message.metadata.src_node_id, message.content
        (record,) = content.array_records.values()
        (metrics,) = content.metric_records.values()
        arrays = {name: array.numpy() for name, array in record.items()}
        for name, array in arrays.items():
            own = self._arrays.get(name)
            if own is None or own.shape != array.shape:
                shape = "no such array" if own is None else f"shape {own.shape}"
                reason = f"{name} of node {node}: expected {shape}, found {array.shape}"
                raise AggregationError(reason=reason)
        if self._reduce.get("missing") != "renormalize":
            for name in self._arrays.keys() - arrays.keys():
                reason = f"{name} of node {node}: expected an array, found none"
                raise AggregationError(reason=reason)
        return _Reply(node, arrays, float(metrics[self.weighted_by_key]), content)

    def _step(self, completed: int, replies: list[_Reply]) -> list[_Reply]:
        """Take the server step, and return the replies that it combined.

        An exception leaves the parameters and the state unchanged.
        """
        floats = {n: array for n, array in self._arrays.items() if _is_float(array)}
        params = {n: array for n, array in floats.items() if self._is_trainable(n)}
        others = {n: array for n, array in floats.items() if n not in params}
        optimizer, state = self._begin(completed, params)
        kept = replies
        while True:
            reduce = {**self._reduce, "updates": self._updates(kept, params)}
            with _nodes_logged(kept):
                result = self._client.step(
                    optimizer, params, None, state, reduce=reduce
                )
            combined = result.reduce
            kept = _without(kept, combined.dropped if combined else ())
            if not others:
                means: _Arrays = {}
                break
            with _nodes_logged(kept):
                mean = self._client.reduce(
                    self._updates(kept, others),
                    others,
                    form="gradients",
                    **self._reduce,
                )
            if not mean.dropped:
                means = mean.grads
                break
            # The step must not combine a reply whose other arrays are not finite.
            kept = _without(kept, mean.dropped)
        arrays = {**self._arrays, **result.params}
        for name, array in self._arrays.items():
            if name in means:
                arrays[name] = means[name].astype(array.dtype)
            elif not _is_float(array) and _have_weight(kept):
                arrays[name] = _integer_mean(name, array, kept)
        self._arrays, self.state = arrays, result.state
        return kept if _have_weight(kept) else []

    def _begin(self, completed: int, params: _Arrays) -> tuple[Optimizer, State | None]:
        """Return the optimizer and the state of the step that completes a round."""
        state = self.state
        taken = completed - 1 + self._ahead
        if self._count == "steps":
            taken = 0 if state is None else state.step
        chosen = self._optimizer
        optimizer = chosen(taken + 1) if callable(chosen) else chosen
        if self._count == "rounds":
            if state is None:
                state = self._client.init(optimizer, params)
            state = _with_steps(state, taken)
        return optimizer, state

    def _updates(
        self, replies: list[_Reply], names: Collection[str]
    ) -> list[tuple[_Arrays, float]]:
        method = self._reduce.get("method") or {"name": "mean"}
        is_mean = method.get("name") == "mean"
        return [
            (
                {name: reply.arrays[name] for name in names if name in reply.arrays},
                reply.weight if is_mean else 1.0,
            )
            for reply in replies
        ]

    def _is_trainable(self, name: str) -> bool:
        if self._trainable is None:
            return True
        if callable(self._trainable):
            return bool(self._trainable(name))
        return name in self._trainable

    def _save(self) -> None:
        if self._path is None:
            return
        files = {"params": f"round-{self.round}.npz"}
        with _replaced(self._path / files["params"]) as file:
            np.savez(file, *self._arrays.values())
        if self.state is not None:
            files["state"] = f"round-{self.round}.safetensors"
            with _replaced(self._path / files["state"]) as file:
                file.writelines(self.state.parts())
        latest = {"round": self.round, "names": list(self._arrays), **files}
        # This rename replaces parameters, state and round at once.
        with _replaced(self._path / _LATEST) as file:
            file.write(json.dumps(latest).encode())
        # A killed process may have left partial files, too.
        for old in [*self._path.glob("round-*"), *self._path.glob(f"{_LATEST}.*")]:
            if old.name not in files.values():
                old.unlink(missing_ok=True)

    def _load(self, path: pathlib.Path) -> None:
        try:
            latest = json.loads((path / _LATEST).read_bytes())
        except FileNotFoundError:
            return
        self.round = latest["round"]
        with np.load(path / latest["params"]) as arrays:
            for index, name in enumerate(latest["names"]):
                self._arrays[name] = arrays[f"arr_{index}"]
        if "state" in latest:
            self.state = State.load(path / latest["state"])


@contextlib.contextmanager
def _replaced(path: pathlib.Path) -> Iterator[BinaryIO]:
    """Write a file that replaces an existing one only once it is complete."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def fed_avg(client: _Client, **strategy: Any) -> StepdStrategy:
    """Flower's FedAvg: the new parameters are the weighted mean."""
    return StepdStrategy(client, {"name": "sgd", "lr": 1.0}, **strategy)


def fed_avgm(
    client: _Client,
    *,
    server_learning_rate: float = 1.0,
    server_momentum: float = 0.0,
    **strategy: Any,
) -> StepdStrategy:
    """Flower's FedAvgM: SGD with momentum."""
    optimizer = {"name": "sgd", "lr": server_learning_rate, "momentum": server_momentum}
    return StepdStrategy(client, optimizer, **strategy)


def fed_adagrad(
    client: _Client, *, eta: float = 1e-1, tau: float = 1e-3, **strategy: Any
) -> StepdStrategy:
    """Flower's FedAdagrad."""
    optimizer = {"name": "adagrad", "lr": eta, "eps": tau}
    return StepdStrategy(client, optimizer, **strategy)


def fed_adam(
    client: _Client,
    *,
    eta: float = 1e-1,
    beta_1: float = 0.9,
    beta_2: float = 0.99,
    tau: float = 1e-3,
    **strategy: Any,
) -> StepdStrategy:
    """Flower's FedAdam, whose bias correction counts from server_round + 1."""
    optimizer = {
        "name": "adam",
        "lr": eta,
        "betas": (beta_1, beta_2),
        "eps": tau,
        "bias_correction": "step_size",
    }
    made = StepdStrategy(client, optimizer, **{"count": "rounds", **strategy})
    made._ahead = 1
    return made


def fed_yogi(
    client: _Client,
    *,
    eta: float = 1e-2,
    beta_1: float = 0.9,
    beta_2: float = 0.99,
    tau: float = 1e-3,
    **strategy: Any,
) -> StepdStrategy:
    """Flower's FedYogi, whose moments begin at 0 and have no bias correction."""
    optimizer = {
        "name": "yogi",
        "lr": eta,
        "betas": (beta_1, beta_2),
        "eps": tau,
        "bias_correction": "none",
        "initial_accumulator_value": 0.0,
    }
    return StepdStrategy(client, optimizer, **strategy)


def _record(arrays: Mapping[str, Array]) -> ArrayRecord:
    return ArrayRecord({name: FlowerArray(np.asarray(a)) for name, a in arrays.items()})


def _is_float(array: Array) -> bool:
    return array.dtype.kind == "f"


def _are_equal(one: Mapping[str, Array], other: Mapping[str, Array]) -> bool:
    return one.keys() == other.keys() and all(
        array.dtype == other[name].dtype
        and array.shape == other[name].shape
        and array.tobytes() == other[name].tobytes()
        for name, array in one.items()
    )


def _have_weight(replies: list[_Reply]) -> bool:
    return any(reply.weight != 0 for reply in replies)


def _without(replies: list[_Reply], dropped: Collection[int]) -> list[_Reply]:
    for index in dropped:
        _log.warning("The reply of node %s has NaN or infinity", replies[index].node)
    return [reply for index, reply in enumerate(replies) if index not in dropped]


@contextlib.contextmanager
def _nodes_logged(replies: list[_Reply]) -> Iterator[None]:
    """Log the nodes' ids after a refusal, because errors name updates by index."""
    try:
        yield
    except ServerError:
        nodes = ", ".join(str(reply.node) for reply in replies)
        _log.error("updates/0, updates/1, ... are those of the nodes %s", nodes)
        raise


def _integer_mean(name: str, old: Array, replies: list[_Reply]) -> Array:
    """Return the weighted mean of the replies that have an integer array."""
    own = [(r.arrays[name], r.weight) for r in replies if name in r.arrays]
    weight = sum(weight for _, weight in own)
    if weight == 0:
        return old
    first, _ = own[0]
    # Float64 does not hold all integers, but equal values keep all of their digits.
    if all(np.array_equal(array, first) for array, _ in own):
        return first.astype(old.dtype)
    total: Array = np.zeros(old.shape)
    for array, own_weight in own:
        total = total + array.astype(np.float64) * own_weight
    return np.asarray(np.rint(total / weight)).astype(old.dtype)


def _with_steps(state: State, count: int) -> State:
    """Return a copy of a state with another step count."""
    return state.replaced(
        (f"{slot}/{name}", scalar("I64", count) if slot == STEP else tensor)
        for slot, name, tensor in state.entries()
    )
