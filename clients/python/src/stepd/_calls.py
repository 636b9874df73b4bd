"""Each method of the server as a request and the reading of its reply.

Nothing here sends anything: Client and AsyncClient run the same calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote

from ._state import Source, State
from ._tensors import Array, Arrays, arrays_of, file_parts, tensors_of
from ._wire import Blob, encode

T = TypeVar("T")

Json = dict[str, Any]
Optimizer = Mapping[str, Any]
Groups = Sequence[Mapping[str, Any]]
Schedule = Mapping[str, Any]
Convention = Mapping[str, Any]
NonFinite = Literal["error", "skip", "propagate"]


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request that may be sent any number of times."""

    verb: Literal["GET", "POST"]
    path: str
    body: list[memoryview]
    read: Callable[[Json], T]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.body)


@dataclass(frozen=True)
class TensorStats:
    """Euclidean norms of a tensor and counts of its gradient's values."""

    grad_norm: float
    param_norm: float
    update_norm: float
    zeros: int
    non_finite: int
    #: Of LAMB and LARS: what the step was multiplied by.
    trust_ratio: float | None = None


@dataclass(frozen=True)
class Stats:
    """Euclidean norms over all tensors and counts of the gradients' values.

    Gradients count after the loss scale and before clipping, parameters before the
    step. ``tensors`` has those of each tensor if they were asked for.
    """

    grad_norm: float
    param_norm: float
    update_norm: float
    zeros: int
    non_finite: int
    clipped: bool
    tensors: Mapping[str, TensorStats] | None = None


@dataclass(frozen=True)
class StepResult:
    """New parameters and new state."""

    #: The new parameters, in the caller's order, shapes and dtypes.
    params: dict[str, Array]
    #: The next step's state.
    state: State
    #: The largest step count in the state.
    step: int
    #: The learning rate that was used.
    lr: float
    #: Whether nothing was done because of ``non_finite="skip"``.
    skipped: bool
    stats: Stats | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Conversion:
    """A state in another convention."""

    #: A safetensors file.
    file: memoryview
    #: Sentences of what the file does not hold of the given state.
    lost: tuple[str, ...]

    @property
    def state(self) -> State:
        """The file as a state. Raises ValueError where it is in another's format."""
        return State(self.file)


@dataclass(frozen=True)
class TensorNorms:
    """Sums of squares of a tensor's values in float64."""

    grad_squares: float
    zeros: int
    non_finite: int
    param_squares: float | None = None


@dataclass(frozen=True)
class NormsResult:
    """Sums of squares by tensor, and the norm over all gradients of the call."""

    tensors: dict[str, TensorNorms]
    grad_norm: float


def _blob(arrays: Mapping[str, Any]) -> Blob:
    return Blob(file_parts(tensors_of(arrays)))


def _post(path: str, fields: Json, read: Callable[[Json], T]) -> Call[T]:
    return Call("POST", path, encode(fields), read)


def _get(path: str) -> Call[Json]:
    return Call("GET", path, [], dict)


def step(
    optimizer: Optimizer,
    params: Arrays,
    grads: Arrays,
    state: State | None,
    settings: Json,
) -> Call[StepResult]:
    names = list(params)

    def read(reply: Json) -> StepResult:
        return StepResult(
            params=arrays_of(reply["params"], names),
            state=State(reply["state"]),
            step=reply["step"],
            lr=reply["lr"],
            skipped=reply["skipped"],
            stats=_stats(reply.get("stats")),
            warnings=tuple(reply.get("warnings", ())),
        )

    fields = {
        "optimizer": optimizer,
        **settings,
        "params": _blob(params),
        "grads": _blob(grads),
        "state": None if state is None else Blob(state.parts()),
    }
    return _post("/v1/step", fields, read)


def _numbers(values: Json) -> Json:
    """Norms as floats: in JSON infinity and NaN are texts."""
    return {
        key: float(value) if isinstance(value, str) else value
        for key, value in values.items()
    }


def _stats(stats: Json | None) -> Stats | None:
    if stats is None:
        return None
    tensors: Json | None = stats.pop("tensors", None)
    by_name = tensors and {
        name: TensorStats(**_numbers(values)) for name, values in tensors.items()
    }
    return Stats(**_numbers(stats), tensors=by_name)


def init(
    optimizer: Optimizer,
    params: Arrays,
    groups: Groups | None,
    master_weights: bool | None,
) -> Call[State]:
    fields = {
        "optimizer": optimizer,
        "groups": groups,
        "master_weights": master_weights,
        "params": _blob(params),
    }
    return _post("/v1/init", fields, lambda reply: State(reply["state"]))


def norms(
    grads: Arrays, params: Arrays | None, loss_scale: float | None
) -> Call[NormsResult]:
    def read(reply: Json) -> NormsResult:
        tensors = {
            name: TensorNorms(**_numbers(values))
            for name, values in reply["tensors"].items()
        }
        return NormsResult(tensors, float(reply["grad_norm"]))

    fields = {
        "loss_scale": loss_scale,
        "grads": _blob(grads),
        "params": None if params is None else _blob(params),
    }
    return _post("/v1/norms", fields, read)


def plan(
    optimizer: Optimizer,
    tensors: Mapping[str, Any],
    groups: Groups | None,
    grad_dtype: str | None,
    master_weights: bool | None,
) -> Call[Json]:
    fields = {
        "optimizer": optimizer,
        "groups": groups,
        "tensors": {name: _shape(value) for name, value in tensors.items()},
        "grad_dtype": grad_dtype,
        "master_weights": master_weights,
    }
    return _post("/v1/plan", fields, dict)


def _shape(value: Any) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    (tensor,) = tensors_of({"": value}).values()
    return {"shape": tensor.shape, "dtype": tensor.dtype}


def inspect(state: State) -> Call[Json]:
    return _post("/v1/state/inspect", {"state": Blob(state.parts())}, dict)


def convert(
    state: State | Source,
    source: Convention | None,
    target: Convention | None,
    optimizer: str | None,
    fill: Sequence[str] | None,
) -> Call[Conversion]:
    own = state.parts() if isinstance(state, State) else [memoryview(state).cast("B")]
    fields = {
        "from": source,
        "to": target,
        "optimizer": optimizer,
        "fill": fill,
        "state": Blob(own),
    }
    return _post(
        "/v1/state/convert",
        fields,
        lambda reply: Conversion(reply["state"], tuple(reply["lost"])),
    )


def evaluate_schedule(
    schedule: Schedule, lr: float | None, start: int | None, count: int | None
) -> Call[Json]:
    fields = {"schedule": schedule, "lr": lr, "from": start, "count": count}
    return _post("/v1/schedule", fields, dict)


def optimizers() -> Call[list[Json]]:
    return Call("GET", "/v1/optimizers", [], lambda reply: list(reply["optimizers"]))


def describe(name: str) -> Call[Json]:
    return _get(f"/v1/optimizers/{quote(name, safe='')}")


def info() -> Call[Json]:
    return _get("/v1")


def ready() -> Call[Json]:
    return _get("/health/ready")
