"""The server's methods: how to encode each request and read its reply.

Client and AsyncClient send these calls; this module sends nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    Literal,
    NamedTuple,
    TypeVar,
    cast,
)
from urllib.parse import quote

from ._checks import (
    expected,
    require_arrays,
    require_mapping,
    require_number,
    require_optimizer,
    require_options,
    require_state,
    require_text,
    require_texts,
)
from ._error_table import BlobMissing, InvalidParams
from ._errors import StepdError
from ._ledger import Receipt
from ._options import Groups, Optimizer, Reply, Schedule, Slices, StepOptions
from ._reduce import (
    AnyUpdate,
    ReduceOptions,
    ReduceResult,
    Reduction,
    matrix_of,
    matrix_on_wire,
    reduction_fields,
    reduction_of,
    result_of,
)
from ._shared import Place, SharedFolder
from ._state import Source, State
from ._tensors import Array, Arrays, arrays_of, arrays_parts, tensor_of
from ._wire import Blob, encode

T = TypeVar("T")

Json = dict[str, Any]
Convention = Mapping[str, Any]


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request to the server. Sending the request again is always safe."""

    verb: Literal["GET", "POST"]
    path: str
    body: list[memoryview]
    read: Callable[[Json], T]
    #: Objects that must stay alive until the reply is complete.
    kept_alive: object = None
    #: Returns another call to send at once if that call avoids the error, else None.
    replacement: Callable[[StepdError], Call[T] | None] = lambda error: None
    #: Returns an equal call with new files. A server that timed out may still write to
    #: the old files.
    with_new_files: Callable[[], Call[T]] | None = None

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.body)


@dataclass(frozen=True)
class TensorStats:
    """Euclidean norms of one tensor, and counts of its gradient's values."""

    grad_norm: float
    param_norm: float
    update_norm: float
    zeros: int
    non_finite: int
    #: The factor of the step. Only LAMB and LARS have one.
    trust_ratio: float | None = None


@dataclass(frozen=True)
class Stats:
    """Euclidean norms over all tensors, and counts of the gradients' values.

    The server measures gradients after the loss scale and before clipping, and
    parameters before the step. ``tensors`` holds each tensor's statistics, if
    requested.
    """

    grad_norm: float
    param_norm: float
    update_norm: float
    zeros: int
    non_finite: int
    clipped: bool
    tensors: Mapping[str, TensorStats] | None = None


@dataclass(frozen=True)
class Cached:
    """Handles of a cached result, valid for its server and caller; None if not cached.

    A result that came in several calls has its handles in ``shards``.

    The server keeps the last two results of a run. A result goes when a cached step
    uses the result after it, or repeats the step that gave it.
    """

    params: str | None = None
    state: str | None = None
    #: One entry per call of a result that came in several.
    shards: tuple[CachedShard, ...] = ()
    #: Gradients that :meth:`Client.norms` has kept. The step that uses them frees them.
    grads: str | None = None


class TensorInfo(NamedTuple):
    """Shape, precision and step count of a parameter that only the server holds."""

    shape: tuple[int, ...]
    is_double: bool
    #: The number of steps taken.
    step: int


@dataclass(frozen=True)
class CachedShard:
    """One server's cached result of one call."""

    url: str
    cached: Cached
    #: The call's parameters, in the order of the call.
    tensors: Mapping[str, TensorInfo] = field(hash=False)
    #: First and last element (exclusive) of each tensor of which the call had a slice.
    slices: Mapping[str, tuple[int, int]] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class StepResult:
    """New parameters and new state."""

    #: The new parameters in the caller's order, shapes and dtypes. Empty if ``reply``
    #: omits them. With ``cached`` alone, in the order of the server's file.
    params: dict[str, Array]
    #: The state for the next step. Raises ValueError if ``reply`` omits it.
    state: State = field(repr=False)
    #: The largest step count in the state.
    step: int
    #: The learning rate of this step.
    lr: float
    #: True if the step did nothing, because of ``non_finite="skip"``.
    skipped: bool
    stats: Stats | None = None
    warnings: tuple[str, ...] = ()
    #: Handles for the next step's ``cached``. None if the server cached nothing.
    cached: Cached | None = None
    #: What the option ``reduce`` combined.
    reduce: Reduction | None = None
    #: With the option ``receipt``: the receipt of each call, for a :class:`Ledger`.
    receipts: tuple[Receipt, ...] = field(default=(), repr=False)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            # Python calls __getattr__ only for attributes that are missing.
            if name != "state":
                raise AttributeError(f"StepResult has no attribute {name!r}")
            raise ValueError(
                'the state stayed on the server, because reply had "state": "none"; '
                "a step without that gives it"
            )


@dataclass(frozen=True)
class Conversion:
    """A converted state."""

    #: A safetensors file.
    file: memoryview
    #: One sentence for each part of the given state that the file cannot hold.
    lost: tuple[str, ...]

    @property
    def state(self) -> State:
        """Return the file as a State. Raises ValueError if in a foreign format."""
        return State(self.file)


@dataclass(frozen=True)
class TensorNorms:
    """Sums of squares over one tensor, in float64."""

    grad_squares: float
    zeros: int
    non_finite: int
    param_squares: float | None = None
    #: The sums of squares of each 65,536 elements, if the tensor is a slice.
    grad_shard_squares: Sequence[float] | None = None
    param_shard_squares: Sequence[float] | None = None


@dataclass(frozen=True)
class NormsResult:
    """Sums of squares of each tensor, and the norm over all gradients of the call."""

    tensors: dict[str, TensorNorms]
    grad_norm: float
    warnings: tuple[str, ...] = ()
    #: The handle of the gradients, for the next step's ``cached``. None if not kept.
    cached: Cached | None = None


def _blob(field: str, arrays: Mapping[str, Any]) -> Blob:
    return Blob(arrays_parts(field, arrays))


def _post(
    path: str,
    fields: Json,
    read: Callable[[Json], T],
    shared: SharedFolder | None = None,
) -> Call[T]:
    fields = {key: _source(value, shared) for key, value in fields.items()}
    return Call("POST", path, encode(fields), read, kept_alive=fields)


def _source(value: Any, shared: SharedFolder | None) -> Any:
    if shared is None:
        return value
    if isinstance(value, list):
        return [_source(item, shared) for item in value]
    # A Place is a dict too, and has no blobs.
    if type(value) is dict:
        return {key: _source(member, shared) for key, member in value.items()}
    return shared.source(value) if isinstance(value, Blob) else value


def _get(path: str) -> Call[Json]:
    return Call("GET", path, [], dict)


def require_step(
    optimizer: Optimizer,
    params: Arrays | None,
    grads: Arrays | None,
    state: State | None,
    options: StepOptions,
) -> None:
    """Raise TypeError for arguments of the wrong kind."""
    require_optimizer(optimizer)
    if params is not None:
        require_arrays("params", params)
    reduce = options.get("reduce")
    if reduce is None:
        require_arrays("grads", grads)
    else:
        require_mapping("reduce", reduce, '{"updates": [...]}')
        if grads is not None:
            raise ValueError("grads: expected None, because reduce makes them")
    if state is not None:
        require_state(state)
    require_options(options)
    cached = options.get("cached")
    if not isinstance(cached, (Cached, type(None))):
        has_one = isinstance(getattr(cached, "cached", None), Cached)
        hint = "; its cached is meant" if has_one else ""
        raise expected("cached", "that of an earlier result", cached, hint)


def step(
    optimizer: Optimizer,
    params: Arrays | None,
    grads: Arrays | None,
    state: State | None,
    options: StepOptions,
    shared: SharedFolder | None = None,
) -> Call[StepResult]:
    require_step(optimizer, params, grads, state, options)
    fields: Json = {"optimizer": optimizer, **options}
    reply: Reply = fields.pop("reply", None) or {}
    cached: Cached = fields.pop("cached", None) or Cached()
    if fields.pop("ledger", None) is not None:
        fields["receipt"] = fields.get("receipt") or True
    if fields.get("clip") is not None:
        fields["clip"] = _clip_on_wire(fields["clip"])
    if cached.shards:
        raise ValueError(
            "cached: expected that of a Client's result, found a ShardedClient's, "
            "which names parts of the tensors"
        )
    handles = {
        "params": cached.params,
        "state": cached.state,
        "grads": cached.grads,
    }
    named = {field: handle for field, handle in handles.items() if handle is not None}
    if params is None and "params" not in named:
        raise ValueError("params: expected arrays, or cached that names them")
    if fields.get("reduce") is not None:
        fields["reduce"] = _source(reduction_fields(fields["reduce"]), shared)
    whole = {} if grads is None else {"grads": _blob("grads", grads)}
    if params is not None:
        whole["params"] = _blob("params", params)
    if state is not None:
        whole["state"] = Blob(state.parts())
    names = None if params is None else list(params)
    return _Step(fields, whole, names, reply, shared).call(named)


NO_STATE = State.from_entries("", 0, ())


def without_state(result: StepResult) -> StepResult:
    """Return the result without a state: its ``state`` attribute raises ValueError."""
    bare = replace(result, state=NO_STATE)
    del vars(bare)["state"]
    return bare


# This is a class, because closures that refer to each other form a cycle. A cycle would
# keep the arrays in memory until the garbage collector runs.
@dataclass(frozen=True)
class _Step:
    """A step in all its encodings, because some servers cannot accept all of them."""

    fields: Json
    #: The blobs that can be sent in full, by field.
    whole: Mapping[str, Blob]
    names: list[str] | None
    reply: Reply
    shared: SharedFolder | None

    def call(
        self, named: Mapping[str, str], *, shares_state: bool = True
    ) -> Call[StepResult]:
        """Encode the step, with handles in place of the blobs in ``named``."""
        into = self._places(shares_state)
        sources: Json = {key: {"handle": handle} for key, handle in named.items()}
        for key in self.whole.keys() - named.keys():
            shares = shares_state or key != "state"
            blob = self.whole[key]
            sources[key] = _source(blob, self.shared if shares else None)
        reply = {**self.reply, "into": into} if into else self.reply
        repeat = partial(self.call, named, shares_state=shares_state)
        return Call(
            "POST",
            "/v1/step",
            encode({**self.fields, "reply": reply or None, **sources}),
            partial(self._read, into),
            kept_alive=sources,
            replacement=partial(self._replacement, named, frozenset(into)),
            with_new_files=repeat if into else None,
        )

    def _places(self, shares_state: bool) -> dict[str, Place]:
        """Reserve places in shared files for the results.

        The results do not overwrite the inputs, so that a failed call changes nothing.
        A result of unknown size gets no place: the reply carries its bytes.
        """
        rooms: dict[str, int] = {}
        if "params" in self.whole and self.reply.get("params") != "none":
            rooms["params"] = self.whole["params"].nbytes
            if self.reply.get("params") == "bf16":
                # The header of a bfloat16 file may be longer than the header that was
                # sent.
                rooms["params"] += 64 * (1 + len(self.names or ()))
        if "state" in self.whole and self.reply.get("state") != "none" and shares_state:
            rooms["state"] = self.whole["state"].nbytes
        if self.shared is None:
            return {}
        places = {field: self.shared.target(room) for field, room in rooms.items()}
        return {field: place for field, place in places.items() if place is not None}

    def _replacement(
        self, named: Mapping[str, str], into: frozenset[str], error: StepdError
    ) -> Call[StepResult] | None:
        missing = getattr(error, "field", None)
        if isinstance(error, BlobMissing) and missing in {
            f"/{field}" for field in named.keys() & self.whole.keys()
        }:
            # A server that lacks one blob may have restarted, and then lacks every
            # blob.
            left = named.keys() - self.whole.keys()
            return self.call({field: named[field] for field in left})
        too_long = missing == "/reply/into/state/length"
        if isinstance(error, InvalidParams) and too_long and "state" in into:
            return self.call(named, shares_state=False)
        return None

    def _read(self, into: Mapping[str, Place], answer: Json) -> StepResult:
        def file(field: str) -> memoryview:
            value = answer[field]
            if isinstance(value, dict):
                return into[field].written(value)
            return cast("memoryview", value)

        has_params = self.reply.get("params") != "none"
        has_state = self.reply.get("state") != "none"
        result = StepResult(
            params=arrays_of(file("params"), self.names) if has_params else {},
            state=State.of_server(file("state")) if has_state else NO_STATE,
            step=answer["step"],
            lr=answer["lr"],
            skipped=answer["skipped"],
            stats=_stats(answer.get("stats")),
            warnings=tuple(answer.get("warnings", ())),
            cached=_cached(answer.get("cached")),
            reduce=reduction_of(answer["reduce"]) if "reduce" in answer else None,
            receipts=self._receipts(answer, file),
        )
        return result if has_state else without_state(result)

    def _receipts(
        self, answer: Json, file: Callable[[str], memoryview]
    ) -> tuple[Receipt, ...]:
        if "receipt" not in answer:
            return ()
        is_rounded = self.reply.get("params") == "bf16"
        outputs = {
            "rounded_params" if field == "params" and is_rounded else field: [
                file(field)
            ]
            for field in ("params", "state")
            if field in answer
        }
        inputs = {field: blob.parts for field, blob in self.whole.items()}
        return (Receipt(answer["receipt"], inputs, outputs),)


def _cached(cached: Json | None) -> Cached | None:
    if not cached:
        return None
    return Cached(**{field: kept["handle"] for field, kept in cached.items()})


def _clip_on_wire(clip: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the clip with an infinite or NaN total_norm as a string."""
    total: Any = clip.get("total_norm")
    if not hasattr(total, "__float__") or math.isfinite(total):
        return clip
    sign = "-" if total < 0 else ""
    return {**clip, "total_norm": "NaN" if math.isnan(total) else f"{sign}Infinity"}


def _numbers(values: Json) -> Json:
    """Return norms as floats. JSON replies hold infinity and NaN as strings."""
    return {key: _number(value) for key, value in values.items()}


def _number(value: Any) -> Any:
    if isinstance(value, list):
        return [_number(item) for item in value]
    return float(value) if isinstance(value, str) else value


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
    slices: Slices | None = None,
    shared: SharedFolder | None = None,
) -> Call[State]:
    require_optimizer(optimizer)
    options = {"groups": groups, "master_weights": master_weights, "slices": slices}
    require_options(options)
    require_arrays("params", params)
    fields = {
        "optimizer": optimizer,
        "groups": groups,
        "slices": slices,
        "master_weights": master_weights,
        "params": _blob("params", params),
    }
    return _post(
        "/v1/init", fields, lambda reply: State.of_server(reply["state"]), shared
    )


def average(
    optimizer: Optimizer,
    params: Arrays,
    state: State,
    groups: Groups | None,
    shared: SharedFolder | None = None,
) -> Call[dict[str, Any]]:
    require_optimizer(optimizer)
    require_options({"groups": groups})
    require_arrays("params", params)
    require_state(state)
    names = list(params)
    fields = {
        "optimizer": optimizer,
        "groups": groups,
        "params": _blob("params", params),
        "state": Blob(state.parts()),
    }
    return _post(
        "/v1/average",
        fields,
        lambda reply: arrays_of(reply["params"], names),
        shared,
    )


def norms(
    grads: Arrays,
    params: Arrays | None,
    loss_scale: float | None,
    slices: Slices | None = None,
    shared: SharedFolder | None = None,
    *,
    keep: bool = False,
) -> Call[NormsResult]:
    def read(reply: Json) -> NormsResult:
        tensors = {
            name: TensorNorms(**_numbers(values))
            for name, values in reply["tensors"].items()
        }
        warnings = tuple(reply.get("warnings", ()))
        cached = _cached(reply.get("cached"))
        return NormsResult(tensors, float(reply["grad_norm"]), warnings, cached)

    require_options({"loss_scale": loss_scale, "slices": slices})
    require_arrays("grads", grads)
    if params is not None:
        require_arrays("params", params)
    fields = {
        "loss_scale": loss_scale,
        "slices": slices,
        "reply": {"cache": True} if keep else None,
        "grads": _blob("grads", grads),
        "params": None if params is None else _blob("params", params),
    }
    return _post("/v1/norms", fields, read, shared)


def reduce(
    updates: Sequence[AnyUpdate],
    params: Arrays | None,
    options: ReduceOptions,
    shared: SharedFolder | None = None,
) -> Call[ReduceResult]:
    if params is not None:
        require_arrays("params", params)
    reduction: Json = {"updates": updates, **options}
    finish = reduction.pop("finish", None)
    fields = {
        **reduction_fields(reduction),
        "finish": finish,
        "params": None if params is None else _blob("params", params),
    }
    return _post("/v1/reduce", fields, partial(result_of, params=params), shared)


def distances(
    updates: Sequence[AnyUpdate],
    earlier: Array | None,
    shared: SharedFolder | None = None,
) -> Call[Array]:
    own = reduction_fields({"updates": updates})["updates"]
    matrix = None if earlier is None else matrix_on_wire(earlier, len(own))
    fields = {"updates": own, "distances": matrix}
    return _post("/v1/distances", fields, matrix_of, shared)


def plan(
    optimizer: Optimizer,
    tensors: Mapping[str, Any],
    groups: Groups | None,
    grad_dtype: str | None,
    master_weights: bool | None,
) -> Call[Json]:
    require_optimizer(optimizer)
    require_options({"groups": groups, "master_weights": master_weights})
    require_mapping("tensors", tensors, '{"w": {"shape": [2, 3], "dtype": "F32"}}')
    if grad_dtype is not None:
        require_text("grad_dtype", grad_dtype)
    fields = {
        "optimizer": optimizer,
        "groups": groups,
        "tensors": {name: _shape(name, value) for name, value in tensors.items()},
        "grad_dtype": grad_dtype,
        "master_weights": master_weights,
    }
    return _post("/v1/plan", fields, dict)


def _shape(name: str, value: Any) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    try:
        tensor = tensor_of(name, value)
    except TypeError as error:
        raise TypeError(
            f'tensors: {error}; {{"shape": [2, 3], "dtype": "F32"}} is enough'
        ) from None
    return {"shape": tensor.shape, "dtype": tensor.dtype}


def inspect(state: State, shared: SharedFolder | None = None) -> Call[Json]:
    require_state(state)
    return _post("/v1/state/inspect", {"state": Blob(state.parts())}, dict, shared)


def convert(
    state: State | Source,
    source: Convention | None,
    target: Convention | None,
    optimizer: str | None,
    fill: Sequence[str] | None,
    state_dtype: str | None,
    shared: SharedFolder | None = None,
) -> Call[Conversion]:
    if isinstance(state, (bytes, bytearray, memoryview)):
        own = [memoryview(state).cast("B")]
    else:
        require_state(state)
        own = state.parts()
    for name, convention in (("source", source), ("target", target)):
        if convention is not None:
            require_mapping(name, convention, '{"format": "torch"}')
    if optimizer is not None:
        require_text("optimizer", optimizer)
    if fill is not None:
        require_texts("fill", fill)
    if state_dtype is not None:
        require_text("state_dtype", state_dtype)
    fields = {
        "from": source,
        "to": target,
        "optimizer": optimizer,
        "fill": fill,
        "state_dtype": state_dtype,
        "state": Blob(own),
    }
    return _post(
        "/v1/state/convert",
        fields,
        lambda reply: Conversion(reply["state"], tuple(reply["lost"])),
        shared,
    )


def evaluate_schedule(
    schedule: Schedule, lr: float | None, start: int | None, count: int | None
) -> Call[Json]:
    require_mapping("schedule", schedule, '{"name": "cosine", "T_max": 1000}')
    for name, value in (("lr", lr), ("start", start), ("count", count)):
        if value is not None:
            require_number(name, value)
    fields = {"schedule": schedule, "lr": lr, "from": start, "count": count}
    return _post("/v1/schedule", fields, dict)


def optimizers() -> Call[list[Json]]:
    return Call("GET", "/v1/optimizers", [], lambda reply: list(reply["optimizers"]))


def describe(name: str) -> Call[Json]:
    require_text("name", name)
    return _get(f"/v1/optimizers/{quote(name, safe='')}")


def info() -> Call[Json]:
    return _get("/v1")


def ready() -> Call[Json]:
    return _get("/health/ready")
