"""A step sent as several calls, its parts. The result has the bits of one call.

A part has some of the tensors, or slices of large ones. Parts let a connection carry
both directions at once: while one part is received, the next is sent.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any, Protocol, TypeVar

import numpy as np

from ._calls import (
    NO_STATE,
    Cached,
    CachedShard,
    NormsResult,
    StepResult,
    TensorInfo,
    TensorNorms,
    without_state,
)
from ._error_table import NonFiniteGradient
from ._memory import POOLED_BYTES, Pool
from ._norms import (
    clips_by_norm,
    differ_in_arithmetic,
    is_double,
    total_norm,
    zeros_of,
)
from ._optimizer_table import ALL_TENSORS, WHOLE_TENSORS
from ._options import Groups, Optimizer, Slice, Slices, StepOptions
from ._refusals import joined_refusal, joined_sentences
from ._state import State
from ._tensors import Array, Arrays, Tensor, array_of, contiguous
from ._timeout import Span, Timeout

T = TypeVar("T")

MIB = 2**20

#: A slice begins at a multiple of this many elements.
SHARD_ELEMENTS = 65536

#: Elements of a moment in 8 bits that share a scale.
_BLOCK_ELEMENTS = 64

#: The connections that carry the parts of a step. One sends while the other receives.
CONNECTIONS = 2

#: The size of a part, before a connection has shown that it needs larger ones.
FIRST_PART_BYTES = 2 * MIB
LARGEST_PART_BYTES = 64 * MIB

#: A smaller step is one call, because its parts would cost more than they save.
SMALLEST_SPLIT_BYTES = 4 * MIB

#: A part takes this many round trips to send, so that waiting costs little.
_ROUND_TRIPS_PER_PART = 4

#: A part takes at least this many seconds, because each call costs processor time. At
#: 10 Gbit/s, parts of 8 MiB cost the client a third less than those of 2 (measured).
_SECONDS_PER_PART = 0.012

#: With one of these options, or none, a step may be several calls.
SPLIT_OPTIONS = frozenset(
    {
        *("groups", "schedule", "clip", "loss_scale", "non_finite", "reply"),
        *("others_non_finite", "master_weights", "stochastic_rounding"),
    }
)

Range = tuple[int, int]


class Caller(Protocol):
    """Makes the calls of a step."""

    @property
    def url(self) -> str: ...

    def _step_once(
        self,
        optimizer: Optimizer,
        params: Arrays | None,
        grads: Arrays | None,
        state: State | None,
        options: StepOptions,
        timeout: float | Timeout | None,
    ) -> StepResult: ...

    def norms(
        self,
        grads: Arrays,
        params: Arrays | None = None,
        *,
        loss_scale: float | None = None,
        slices: Slices | None = None,
        keep: bool = False,
        timeout: float | Timeout | None = None,
    ) -> NormsResult: ...


@dataclass
class Part:
    """One of the calls that make up a step."""

    #: The parameters of this call, in the order of the call. The shapes are those of
    #: whole tensors.
    tensors: dict[str, TensorInfo]
    #: First and last element (exclusive) of each tensor of which the call has a slice.
    slices: dict[str, Range] = field(default_factory=dict)
    #: Handles of the parameters and state that the server at ``url`` has cached.
    cached: Cached | None = None
    url: str | None = None
    #: Gradients, and entries of the state, that belong to no parameter.
    unmatched: list[str] = field(default_factory=list)
    #: The handle of the gradients that the server at ``url`` has kept.
    kept_grads: str | None = None

    @property
    def names(self) -> list[str]:
        return [*self.tensors, *self.unmatched]

    @property
    def all_cached(self) -> Cached | None:
        """Handles of all that the server has."""
        if self.kept_grads is None:
            return self.cached
        return replace(self.cached or Cached(), grads=self.kept_grads)

    def stepped(self, names: Collection[str]) -> dict[str, TensorInfo]:
        """Return the parameters, with one more step for those in ``names``."""
        return {
            name: tensor._replace(step=tensor.step + (name in names))
            for name, tensor in self.tensors.items()
        }

    def zeros(self, names: Collection[str]) -> dict[str, Array]:
        """Return zeros in place of parameters whose values do not matter."""
        shapes = {name: (end - begin,) for name, (begin, end) in self.slices.items()}
        return {
            name: zeros_of(tensor._replace(shape=shapes.get(name, tensor.shape)))
            for name, tensor in self.tensors.items()
            if name in names
        }

    def slices_on_wire(
        self, names: Collection[str], given: Slices | None = None
    ) -> Slices | None:
        """Return the field ``slices`` of a call with these tensors.

        ``given`` are the caller's own slices.
        """
        own: dict[str, Slice] = {
            name: {"offset": begin} for name, (begin, _) in self.slices.items()
        }
        own.update(given or {})
        return {name: one for name, one in own.items() if name in names} or None


class Inputs:
    """The arrays and the state of a step, from which parts take their share."""

    def __init__(
        self, params: Arrays | None, grads: Arrays, state: State | None
    ) -> None:
        self.params = params
        self.grads = grads
        self.state = state
        self._entries: dict[str, list[tuple[str, Tensor]]] = {}
        for slot, name, tensor in () if state is None else state.entries():
            self._entries.setdefault(name, []).append((slot, tensor))

    def nbytes(self, name: str) -> int:
        """Return the bytes of a tensor's parameter, gradient and state."""
        arrays = [
            each[name] for each in (self.params or {}, self.grads) if name in each
        ]
        own = sum(np.asarray(array).nbytes for array in arrays)
        return own + sum(t.data.nbytes for _, t in self._entries.get(name, ()))

    def resident_bytes(self, name: str) -> int:
        """Return the bytes of a tensor in a step whose results stay on the server."""
        return sum(
            np.asarray(each[name]).nbytes
            for each in (self.params or {}, self.grads)
            if name in each
        )

    def can_slice(self, name: str) -> bool:
        """Return whether all that belongs to a parameter has its shape."""
        if self.params is None or name not in self.grads:
            return False
        shape = np.shape(self.params[name])
        count = math.prod(shape)
        if np.shape(self.grads[name]) != shape or count <= SHARD_ELEMENTS:
            return False
        return all(
            tensor.shape in ((), shape) or _is_scales(slot, tensor, count)
            for slot, tensor in self._entries.get(name, ())
        )

    def params_of(self, part: Part) -> dict[str, Array] | None:
        return None if self.params is None else _cut("params", self.params, part)

    def grads_of(self, part: Part) -> dict[str, Array]:
        return _cut("grads", self.grads, part)

    def state_of(self, part: Part) -> State | None:
        if self.state is None:
            return None
        return self.state.replaced(
            (f"{slot}/{name}", _slice_of(slot, tensor, part.slices.get(name)))
            for name in part.names
            for slot, tensor in self._entries.get(name, ())
        )


def _is_scales(slot: str, tensor: Tensor, count: int) -> bool:
    return slot.endswith(".scale") and tensor.shape == (
        math.ceil(count / _BLOCK_ELEMENTS),
    )


def _cut(field: str, arrays: Arrays, part: Part) -> dict[str, Array]:
    own: dict[str, Array] = {}
    for name in part.names:
        if name not in arrays:
            continue
        own[name] = arrays[name]
        if name in part.slices:
            begin, end = part.slices[name]
            own[name] = contiguous(field, name, arrays[name]).reshape(-1)[begin:end]
    return own


def _slice_of(slot: str, tensor: Tensor, cut: Range | None) -> Tensor:
    if cut is None or not tensor.shape:
        return tensor
    begin, end = _slot_range(slot, cut)
    size = tensor.data.nbytes // math.prod(tensor.shape)
    return Tensor(tensor.dtype, (end - begin,), tensor.data[begin * size : end * size])


def _slot_range(slot: str, cut: Range) -> Range:
    if not slot.endswith(".scale"):
        return cut
    return cut[0] // _BLOCK_ELEMENTS, math.ceil(cut[1] / _BLOCK_ELEMENTS)


class _Joiner:
    """Puts slices of new tensors into whole ones, in whatever order they come."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._lock = threading.Lock()
        self._params: dict[str, Array] = {}
        self._entries: dict[str, Tensor] = {}

    def add(self, part: Part, result: StepResult, has_state: bool) -> StepResult:
        """Take the slices out of a result. Returns the rest of it."""
        if not part.slices:
            return result
        for name, cut in part.slices.items():
            if name in result.params:
                array = result.params[name]
                whole = self._whole(name, array, part.tensors[name].shape)
                _fill(whole, array, cut, name)
        params = {
            name: array
            for name, array in result.params.items()
            if name not in part.slices
        }
        if not has_state:
            return without_state(replace(result, params=params, state=NO_STATE))
        rest: list[tuple[str, Tensor]] = []
        for slot, name, tensor in result.state.entries():
            key = f"{slot}/{name}"
            if name not in part.slices or not tensor.shape:
                # Every slice has the same step count and scalars.
                rest.append((key, tensor))
                continue
            shape = part.tensors[name].shape
            if slot.endswith(".scale"):
                shape = (math.ceil(math.prod(shape) / _BLOCK_ELEMENTS),)
            array = array_of(tensor)
            with self._lock:
                if key not in self._entries:
                    data = self._take(array.itemsize * math.prod(shape))
                    self._entries[key] = Tensor(tensor.dtype, shape, data)
                entry = self._entries[key]
            _fill(array_of(entry), array, _slot_range(slot, part.slices[name]), key)
        return replace(result, params=params, state=result.state.replaced(rest))

    def params(self) -> dict[str, Array]:
        return self._params

    def state(self, like: State) -> State:
        return like.replaced(self._entries.items())

    def _whole(self, name: str, array: Array, shape: tuple[int, ...]) -> Array:
        with self._lock:
            if name not in self._params:
                data = self._take(array.itemsize * math.prod(shape))
                self._params[name] = np.ndarray(shape, array.dtype, data)
            return self._params[name]

    def _take(self, nbytes: int) -> memoryview:
        if nbytes < POOLED_BYTES:
            return np.empty(nbytes, np.uint8).data
        return self._pool.take(nbytes)[0]


def _fill(whole: Array, array: Array, cut: Range, name: str) -> None:
    begin, end = cut
    if array.size != end - begin or array.dtype != whole.dtype:
        found = f"{array.size} of {array.dtype}"
        raise ValueError(f"{name}: expected {end - begin} elements, found {found}")
    whole.reshape(-1)[begin:end] = array.reshape(-1)


def is_large(params: Arrays | None, grads: Arrays, state: State | None) -> bool:
    """Return whether a step has enough bytes to be worth several calls."""
    if not isinstance(params, Mapping) or not isinstance(grads, Mapping):
        return False
    arrays = itertools.chain(params.values(), grads.values())
    sent = sum(getattr(array, "nbytes", 0) for array in arrays)
    if isinstance(state, State):
        sent += state.nbytes
    return sent >= SMALLEST_SPLIT_BYTES


def is_split(
    url: str,
    connections: int,
    optimizer: Optimizer,
    params: Arrays | None,
    grads: Arrays,
    state: State | None,
    options: StepOptions,
) -> bool:
    """Return whether the client of one server sends a step in parts."""
    cached = options.get("cached")
    if isinstance(cached, Cached) and cached.shards:
        return all(one.url == url for one in cached.shards)
    given = {name for name, value in options.items() if value is not None}
    return (
        connections > 1
        and given <= SPLIT_OPTIONS
        and is_large(params, grads, state)
        and can_split(optimizer, options.get("groups"))
    )


def can_split(optimizer: Optimizer, groups: Groups | None) -> bool:
    """Return whether a step of these optimizers may be several calls."""
    try:
        names = {one["name"] for one in _named(optimizer, groups)}
        return names <= WHOLE_TENSORS.keys() - ALL_TENSORS
    except (AttributeError, KeyError, TypeError):
        # The check of arguments, or the server, says what is wrong.
        return False


def sharing(optimizer: Optimizer, groups: Groups | None) -> str | None:
    """Return the name of an optimizer whose step needs all tensors in one call."""
    try:
        names = [one["name"] for one in _named(optimizer, groups)]
        return next((name for name in names if name in ALL_TENSORS), None)
    except (AttributeError, KeyError, TypeError):
        # The server says what is wrong.
        return None


def can_slice(optimizer: Optimizer, groups: Groups | None) -> bool:
    """Return whether calls may have slices of tensors."""
    given = [optimizer, *(group.get("optimizer") or {} for group in groups or ())]
    for one in _named(optimizer, groups):
        whole = WHOLE_TENSORS.get(one["name"], True)
        if whole is True or (whole and any(each.get(whole) for each in given)):
            return False
    return True


def _named(optimizer: Optimizer, groups: Groups | None) -> list[Mapping[str, Any]]:
    own = [group.get("optimizer") or {} for group in groups or ()]
    return [optimizer, *(one for one in own if "name" in one)]


class Splitter:
    """Takes a step as several calls."""

    #: The approximate size of a part; None chooses it.
    _request_bytes: int | None = None
    #: The size that the last steps suggest.
    _part_bytes = FIRST_PART_BYTES
    _connections: int

    def _each(
        self,
        parts: Sequence[Part],
        call: Callable[[Part], Callable[[Any], T]],
        span: Span,
    ) -> list[T]:
        """Run a call for each part, several at once. Raises the first part's error."""
        raise NotImplementedError

    def _pool_of_results(self) -> Pool:
        raise NotImplementedError

    def _round_trip(self) -> float:
        """Return the seconds of a round trip; 0 if unknown."""
        return 0.0

    def _step_in_parts(
        self,
        optimizer: Optimizer,
        params: Arrays | None,
        grads: Arrays,
        state: State | None,
        options: StepOptions,
        span: Span,
    ) -> StepResult:
        clip = options.get("clip")
        non_finite = options.get("non_finite")
        cached = options.get("cached")
        loss_scale = options.get("loss_scale")
        ledger = options.pop("ledger", None)
        has_receipts = bool(options.pop("receipt", None)) or ledger is not None
        reply = options.get("reply") or {}
        given_slices = options.get("slices")
        groups = options.get("groups")
        inputs = Inputs(params, grads, state)
        if cached is not None:
            parts = cached_parts(cached, params, state)
        elif params is not None:
            slicing = not given_slices and can_slice(optimizer, groups)
            parts = self._pack(inputs, slicing, bool(reply.get("cache")))
        else:
            raise ValueError("params: expected arrays, or cached that names them")
        known: dict[str, TensorInfo] = {}
        for part in parts:
            known.update(part.tensors)
        # The first call takes every gradient and state without a parameter: the server
        # then names them in its error.
        strays = {*grads, *(given_slices or ())} - known.keys()
        parts[0].unmatched += sorted(strays)
        if state is not None:
            parts[0].unmatched += [name for name in state.steps if name not in known]

        if clips_by_norm(optimizer, clip) or non_finite == "skip":
            norms = joined_norms(
                self._norms(parts, inputs, loss_scale, span, keep=True)
            )
            if any(tensor.non_finite for tensor in norms.values()):
                options["others_non_finite"] = True
            if clips_by_norm(optimizer, clip):
                options["clip"] = {**(clip or {}), "total_norm": total_norm(norms)}

        places = {id(part): index for index, part in enumerate(parts)}
        has_state = reply.get("state") != "none"
        joiner = _Joiner(self._pool_of_results())

        def call(part: Part) -> Callable[[Caller], tuple[StepResult, str]]:
            def step(client: Caller) -> tuple[StepResult, str]:
                own_options: StepOptions = {**options, "cached": part.all_cached}
                own_options["slices"] = part.slices_on_wire(part.names, given_slices)
                if has_receipts:
                    place = {"index": places[id(part)], "count": len(parts)}
                    own_options["receipt"] = place if len(parts) > 1 else True
                result = client._step_once(
                    optimizer,
                    inputs.params_of(part),
                    inputs.grads_of(part),
                    inputs.state_of(part),
                    own_options,
                    span.remaining(),
                )
                return joiner.add(part, result, has_state), client.url

            return step

        started = monotonic()
        answers = self._each(parts, call, span)
        self._observe(sum(map(inputs.nbytes, known)), monotonic() - started)
        results = [result for result, _ in answers]
        skipped = any(result.skipped for result in results)
        # A part without gradients warns that there are none. The warning is wrong if
        # other parts have gradients.
        warnings = itertools.chain.from_iterable(
            result.warnings
            for part, result in zip(parts, results, strict=True)
            if not skipped and (not grads or not grads.keys().isdisjoint(part.tensors))
        )
        stepped = dict(joiner.params())
        for result in results:
            stepped.update(result.params)

        def steps(place: int) -> tuple[int, int]:
            tensors = parts[place].tensors
            counts = [tensors[name].step for name in tensors if name in grads]
            return max(counts, default=-1), results[place].step

        # The result's learning rate is that of the tensor with the most steps.
        leader = results[max(range(len(parts)), key=steps)]
        kept = tuple(
            CachedShard(
                url,
                result.cached or Cached(),
                part.stepped(() if skipped else grads),
                part.slices,
            )
            for part, (result, url) in zip(parts, answers, strict=True)
        )
        new_state = NO_STATE
        if has_state:
            states = [result.state for result in results]
            new_state = State.join([*states, joiner.state(states[0])])
        joined = replace(
            leader,
            params={name: stepped[name] for name in params or known if name in stepped},
            state=new_state,
            step=max(result.step for result in results),
            skipped=skipped,
            warnings=tuple(joined_sentences(warnings)),
            cached=Cached(shards=kept) if any(one.cached for one in results) else None,
            # The results of the parts lie in memory that later steps use again.
            receipts=tuple(
                replace(receipt, outputs={})
                for result in results
                for receipt in result.receipts
            ),
        )
        result = joined if has_state else without_state(joined)
        if ledger is not None:
            ledger.append(result)
        return result

    def _norms(
        self,
        parts: Sequence[Part],
        inputs: Inputs,
        loss_scale: float | None,
        span: Span,
        *,
        of_params: bool = False,
        keep: bool = False,
    ) -> list[tuple[Part, NormsResult]]:
        """Return sums by part. With ``keep`` a part's server may keep its gradients."""

        def call(part: Part) -> Callable[[Caller], tuple[Part, NormsResult]]:
            own = inputs.grads_of(part)
            given = inputs.params_of(part) if of_params else part.zeros(own)
            # A parameter's dtype decides the arithmetic. The call therefore sends
            # parameters if any differs from its gradient in being float64.
            if not of_params and not differ_in_arithmetic(given or {}, own):
                given = None

            def norms(client: Caller) -> tuple[Part, NormsResult]:
                result = client.norms(
                    own,
                    given,
                    loss_scale=loss_scale,
                    slices=part.slices_on_wire(own),
                    keep=keep,
                    timeout=span.remaining(),
                )
                # The handles of one part belong to one server.
                if result.cached is not None and part.url in (None, client.url):
                    part.url = client.url
                    part.kept_grads = result.cached.grads
                return part, result

            return norms

        return self._each(parts, call, span)

    def _pack(
        self, inputs: Inputs, slicing: bool = False, is_resident: bool = False
    ) -> list[Part]:
        """Split the tensors, in their order, into at least one call."""
        params = inputs.params or {}
        taken = {} if inputs.state is None else inputs.state.steps
        # Of a result that stays on the server, later steps send only the gradients and
        # receive only the parameters, in the same parts.
        size_of = inputs.resident_bytes if is_resident else inputs.nbytes
        sizes = {name: size_of(name) for name in params}
        limit = self._part_limit(sum(sizes.values()))
        parts = [Part({})]
        # The first part is short, so that connections do not send at the same time and
        # then receive at the same time.
        room = limit if self._request_bytes else limit // 2
        for name, size in sizes.items():
            info = TensorInfo(
                np.shape(params[name]), is_double(params[name]), taken.get(name, 0)
            )
            for cut, own in _cuts(
                info, size, limit, slicing and inputs.can_slice(name)
            ):
                if own > room and parts[-1].tensors:
                    parts.append(Part({}))
                    room = limit
                parts[-1].tensors[name] = info
                if cut is not None:
                    begin, _ = parts[-1].slices.get(name, cut)
                    parts[-1].slices[name] = begin, cut[1]
                room -= own
        return parts

    def _part_limit(self, total: int) -> int:
        if self._request_bytes is not None:
            return self._request_bytes
        # Each connection needs a few parts, for the two directions to overlap.
        most = max(FIRST_PART_BYTES, total // (2 * self._connections))
        return min(self._part_bytes, most)

    def _observe(self, sent: int, seconds: float) -> None:
        """Choose the size of the next step's parts."""
        if seconds > 0:
            duration = _ROUND_TRIPS_PER_PART * self._round_trip() + _SECONDS_PER_PART
            wanted = duration * sent / seconds
            bounded = max(FIRST_PART_BYTES, min(int(wanted), LARGEST_PART_BYTES))
            self._part_bytes = bounded


def _cuts(
    info: TensorInfo, size: int, limit: int, can_slice: bool
) -> list[tuple[Range | None, int]]:
    """Return the shards of a tensor with their bytes, or the whole tensor."""
    count = math.prod(info.shape)
    if not can_slice or size <= limit:
        return [(None, size)]
    begins = range(0, count, SHARD_ELEMENTS)
    ranges = [(begin, min(begin + SHARD_ELEMENTS, count)) for begin in begins]
    return [(cut, (cut[1] - cut[0]) * size // count) for cut in ranges]


def run_each(
    threads: ThreadPoolExecutor, parts: Sequence[Part], run: Callable[[Part], T]
) -> list[T]:
    """Run a call for each part, several at once. Raises the first part's error.

    Errors about non-finite gradients are merged into one error that names all such
    tensors, because a single call also checks gradients last.
    """
    if len(parts) == 1:
        return [run(parts[0])]
    futures: list[Future[T]] = [threads.submit(run, part) for part in parts]
    results: list[T] = []
    refusals: list[NonFiniteGradient] = []
    try:
        for future in futures:
            try:
                results.append(future.result())
            except NonFiniteGradient as error:
                refusals.append(error)
    except BaseException:
        for future in futures:
            future.cancel()
        raise
    if refusals:
        raise joined_refusal(refusals)
    return results


def cached_parts(
    cached: Cached, params: Arrays | None, state: State | None
) -> list[Part]:
    """Return the calls of the result that ``cached`` belongs to.

    Raises ValueError if a blob is neither named nor given.
    """
    if not cached.shards:
        found = "a Client's, which names all tensors together"
        if cached == Cached():
            found = "an empty one"
        raise ValueError(
            f"cached: expected that of a ShardedClient's result, found {found}"
        )
    parts = [
        Part(dict(one.tensors), dict(one.slices), one.cached, one.url)
        for one in cached.shards
    ]
    names = {name for part in parts for name in part.tensors}
    if params is not None and params.keys() != names:
        raise ValueError("params: expected those of the result that cached is of")
    for one in cached.shards:
        if params is None and one.cached.params is None:
            raise ValueError("params: expected arrays, or cached that names them all")
        if state is None and one.cached.state is None:
            raise ValueError("state: expected one, or cached that names all of it")
    return parts


def joined_norms(
    results: Sequence[tuple[Part, NormsResult]],
) -> dict[str, TensorNorms]:
    """Return the sums of whole tensors."""
    tensors: dict[str, TensorNorms] = {}
    slices: dict[str, list[tuple[int, TensorNorms]]] = {}
    for part, result in results:
        for name, tensor in result.tensors.items():
            if name in part.slices:
                slices.setdefault(name, []).append((part.slices[name][0], tensor))
            else:
                tensors[name] = tensor
    for name, own in slices.items():
        ordered = [tensor for _, tensor in sorted(own, key=lambda one: one[0])]
        tensors[name] = TensorNorms(
            grad_squares=_sum(one.grad_shard_squares for one in ordered),
            zeros=sum(one.zeros for one in ordered),
            non_finite=sum(one.non_finite for one in ordered),
            param_squares=None
            if ordered[0].param_squares is None
            else _sum(one.param_shard_squares for one in ordered),
        )
    return tensors


def _sum(slices: Any) -> float:
    """Add up the sums of all shards, one after the other, as the server does."""
    total = 0.0
    for squares in slices:
        for square in squares:
            total += square
    return total
