"""A Flower strategy whose server step runs on stepd (flwr 1.42 or later).

The optimizer's state survives a restart. Replies are combined in the order of the
nodes' ids, so that a repeated round has the same bits.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pathlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, BinaryIO, Literal, Protocol

import numpy as np
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAvg

from ._calls import StepResult
from ._options import Optimizer
from ._state import STEP, State
from ._tensors import Array, scalar

__all__ = ["StepdStrategy", "fed_adagrad", "fed_adam", "fed_avg", "fed_avg_m"]

_LATEST = "latest.json"


class _Client(Protocol):
    """The methods of Client and ShardedClient that a strategy needs."""

    def step(self, *args: Any, **options: Any) -> StepResult: ...

    def init(self, *args: Any, **options: Any) -> State: ...


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

    ``reduce`` holds more options of the reduction, such as ``{"non_finite": "drop"}``.
    All other arguments are those of Flower's FedAvg.
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
        #: The step count minus the round, with ``count="rounds"``.
        self._ahead = 0
        self._path = None if path is None else pathlib.Path(path)
        self._arrays: dict[str, Array] = {}
        #: The optimizer's state. None before the first step.
        self.state: State | None = None
        #: The number of completed rounds, including those before a restart.
        self.round = 0
        if self._path is not None:
            self._path.mkdir(parents=True, exist_ok=True)
            self._load(self._path)
        self._rounds_before = self.round

    @property
    def arrays(self) -> ArrayRecord | None:
        """The parameters after the last round. None before the first one."""
        return _record(self._arrays) if self._arrays else None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: Any, grid: Any
    ) -> Any:
        self._arrays = {name: array.numpy() for name, array in arrays.items()}
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round: int, replies: Iterable[Any]) -> Any:
        valid, _ = self._check_and_log_replies(list(replies), is_train=True)
        self.round = self._rounds_before + server_round
        if not valid:
            self._save()
            return None, None
        # Sorting makes the bits independent of the order of arrival.
        valid.sort(key=lambda reply: reply.metadata.src_node_id)
        contents = [reply.content for reply in valid]
        updates = [(_arrays_in(content), self._weight(content)) for content in contents]
        self._step(updates)
        metrics = self.train_metrics_aggr_fn(contents, self.weighted_by_key)
        self._save()
        return _record(self._arrays), metrics

    def _weight(self, content: Any) -> float:
        (metrics,) = content.metric_records.values()
        return float(metrics[self.weighted_by_key])

    def _step(self, updates: list[tuple[dict[str, Array], float]]) -> None:
        names = [name for name, array in self._arrays.items() if _is_float(array)]
        stepped = [name for name in names if self._is_trainable(name)]
        params = {name: self._arrays[name] for name in stepped}
        taken = self.round - 1 + self._ahead
        if self._count == "steps":
            taken = 0 if self.state is None else self.state.step
        optimizer = self._optimizer
        chosen = optimizer(taken + 1) if callable(optimizer) else optimizer
        if self._count == "rounds":
            state = self.state or self._client.init(chosen, params)
            self.state = _with_steps(state, taken)
        own = [
            ({name: arrays[name] for name in stepped if name in arrays}, weight)
            for arrays, weight in updates
        ]
        result = self._client.step(
            chosen,
            params,
            None,
            self.state,
            reduce={**self._reduce, "updates": own, "form": "params"},
        )
        self.state = result.state
        dropped = () if result.reduce is None else result.reduce.dropped
        kept = [one for index, one in enumerate(updates) if index not in dropped]
        total = sum(weight for _, weight in kept)
        arrays = dict(self._arrays)
        arrays.update(result.params)
        for name in arrays.keys() - params.keys():
            # If all weights are 0, the arrays stay unchanged.
            if total > 0:
                arrays[name] = _mean(arrays[name], name, kept, total)
        self._arrays = arrays

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
            self.state.save(self._path / files["state"])
        latest = {"round": self.round, "names": list(self._arrays), **files}
        # This rename replaces parameters, state and round at once.
        with _replaced(self._path / _LATEST) as file:
            file.write(json.dumps(latest).encode())
        for old in self._path.glob("round-*"):
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


def fed_avg_m(
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
    """Flower's FedAdam, whose bias correction counts from server_round + 1.

    Flower adds ``tau`` to the root before the bias correction, and Adam adds ``eps``
    after it. So ``eps`` is ``tau`` divided by the round's bias correction.
    """

    def adam(count: int) -> Optimizer:
        eps = tau / math.sqrt(1 - beta_2**count)
        return {"name": "adam", "lr": eta, "betas": (beta_1, beta_2), "eps": eps}

    made = StepdStrategy(client, adam, **{"count": "rounds", **strategy})
    made._ahead = 1
    return made


def _arrays_in(content: Any) -> dict[str, Array]:
    (record,) = content.array_records.values()
    return {name: array.numpy() for name, array in record.items()}


def _record(arrays: Mapping[str, Array]) -> ArrayRecord:
    return ArrayRecord({name: FlowerArray(np.asarray(a)) for name, a in arrays.items()})


def _is_float(array: Array) -> bool:
    return array.dtype.kind == "f"


def _mean(
    old: Array, name: str, updates: list[tuple[dict[str, Array], float]], total: float
) -> Array:
    """Return the weighted mean in the dtype of the old array."""
    wide: Array = np.zeros(old.shape)
    for arrays, weight in updates:
        wide = wide + arrays[name].astype(np.float64) * weight
    wide = wide / total
    rounded = wide if _is_float(old) else np.rint(wide)
    return np.asarray(rounded).astype(old.dtype)


def _with_steps(state: State, count: int) -> State:
    """Return a copy of a state with another step count."""
    return state.replaced(
        (f"{slot}/{name}", scalar("I64", count) if slot == STEP else tensor)
        for slot, name, tensor in state.entries()
    )
