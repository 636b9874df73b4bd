"""A step split into several calls to several replicas. The result has the same bits."""

from __future__ import annotations

import functools
import itertools
import math
import os
import ssl
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from time import monotonic, sleep
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ._calls import (
    NO_STATE,
    Cached,
    CachedShard,
    NormsResult,
    StepResult,
    TensorInfo,
    TensorNorms,
    require_step,
    without_state,
)
from ._checks import require_arrays, require_count, require_state, require_texts
from ._client import Client
from ._error_table import BlobMissing, NonFiniteGradient
from ._errors import StepdError
from ._norms import (
    clips_by_norm,
    differ_in_arithmetic,
    is_double,
    total_norm,
    zeros_of,
)
from ._options import Groups, Optimizer, StepOptions, step_options
from ._reduce import (
    AnyUpdate,
    ReduceOptions,
    ReduceResult,
    Reduction,
    Shards,
    Update,
    accumulator_of,
    join,
    updates_of,
)
from ._refusals import joined_refusal, joined_sentences
from ._retry import Backoff, Retry, is_refused, is_server_fault, retry_of
from ._shared import SharedFolder
from ._state import State
from ._tensors import Array, Arrays
from ._timeout import DEFAULT_TIMEOUT, Span, Timeout, timeout_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")

MIB = 2**20

#: A replica that fails is avoided for this many seconds while other replicas work. The
#: cool-down doubles with each failure in a row.
_FIRST_COOL_DOWN = 1.0
_LONGEST_COOL_DOWN = 60.0


class ShardedClient:
    """Splits a step over several servers. The result has the same bits as one call.

    ``urls`` are interchangeable replicas. The client packs the tensors, in their order,
    into calls of about ``request_bytes`` (parameters, gradients and state together; a
    larger tensor gets its own call). ``connections`` calls run at once.

    A call that fails goes to another replica at once, unless the call itself is wrong.
    When all replicas have failed, the client waits. ``retries`` limits the rounds after
    the first, not counting rounds in which every replica refused the connection. The
    client avoids a failed replica for a cool-down of 1 s, doubled with each failure in
    a row, up to 60 s. The other arguments are those of :class:`Client`. Safe to share
    between threads.
    """

    def __init__(
        self,
        urls: Sequence[str],
        token: str | None = None,
        *,
        request_bytes: int = 64 * MIB,
        connections: int = 4,
        timeout: float | Timeout = DEFAULT_TIMEOUT,
        retries: int | Retry = 6,
        ssl_context: ssl.SSLContext | None = None,
        shared_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        require_texts("urls", urls)
        if not urls:
            raise ValueError("urls: expected at least one, found none")
        require_count("request_bytes", request_bytes)
        require_count("connections", connections)
        self._again = functools.partial(
            type(self),
            list(urls),
            token,
            request_bytes=request_bytes,
            connections=connections,
            timeout=timeout,
            retries=retries,
            ssl_context=ssl_context,
            shared_dir=shared_dir,
        )
        self._replicas = [
            _Replica(
                Client(
                    url,
                    token,
                    timeout=timeout,
                    retries=0,
                    ssl_context=ssl_context,
                    pool_size=connections,
                )
            )
            for url in urls
        ]
        if shared_dir is not None:
            # All replicas share one folder, so that the result of one can go to
            # another.
            shared = SharedFolder(shared_dir)
            for replica in self._replicas:
                replica.client._shared = shared
        self._request_bytes = request_bytes
        self._timeout = timeout_of(timeout)
        self._retry = retry_of(retries)
        self._lock = threading.Lock()
        self._turns = itertools.count(1)
        self._threads = ThreadPoolExecutor(connections, "stepd")
        self._is_closed = False

    def __enter__(self) -> ShardedClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        # A copied or unpickled client opens its own connections and threads.
        return self._again, ()

    def close(self) -> None:
        """Close connections and end the threads. Later calls raise RuntimeError."""
        self._is_closed = True
        self._threads.shutdown(cancel_futures=True)
        for replica in self._replicas:
            replica.client.close()

    def step(
        self,
        optimizer: Optimizer,
        params: Arrays | None,
        grads: Arrays | None,
        state: State | None = None,
        *,
        timeout: float | Timeout | None = None,
        **options: Unpack[StepOptions],
    ) -> StepResult:
        """Run one step, with the result and the errors of :meth:`Client.step`.

        Clipping by the norm over all gradients, LAMB's ``max_grad_norm`` and
        ``non_finite="skip"`` take a round of ``norms`` first. The result has no
        statistics, because the server computes statistics per call.

        ``cached`` is the attribute ``cached`` of an earlier result of a ShardedClient.
        Tensors are packed as for that result, and each call goes first to the server
        that cached its blobs. Any other server receives ``params`` and ``state``.

        The option ``reduce`` takes a round of :meth:`reduce` first.
        """
        span = self._span(timeout)
        options = step_options(options)
        require_step(optimizer, params, grads, state, options)
        reduction = options.pop("reduce", None)
        if reduction is not None:
            reduced = self._reduce(dict(reduction), params, span)
            result = self.step(
                optimizer, params, reduced.grads, state, timeout=timeout, **options
            )
            report = Reduction(
                reduced.count, reduced.weight, reduced.dropped, reduced.skipped
            )
            skipped = result.skipped or reduced.skipped
            said = () if reduced.skipped else result.warnings
            return replace(result, skipped=skipped, warnings=said, reduce=report)
        assert grads is not None
        stats = options.get("stats")
        if stats not in (None, "none"):
            raise ValueError(
                "stats: a ShardedClient has none, because statistics are those of "
                f"single calls; found {stats!r}"
            )
        clip = options.get("clip")
        non_finite = options.get("non_finite")
        cached = options.get("cached")
        loss_scale = options.get("loss_scale")
        reply = options.get("reply") or {}
        slices = options.get("slices")
        if cached is not None:
            shards = _cached_shards(cached, params, state)
        elif params is not None:
            shards = self._pack(params, grads, state)
        else:
            raise ValueError("params: expected arrays, or cached that names them")
        known: dict[str, TensorInfo] = {}
        for shard in shards:
            known.update(shard.tensors)
        # The first call takes every gradient and state without a parameter: the server
        # then names them in its error.
        strays = {*grads, *(slices or ())} - known.keys()
        shards[0].unmatched += sorted(strays)
        if state is not None:
            shards[0].unmatched += [name for name in state.steps if name not in known]

        if clips_by_norm(optimizer, clip) or non_finite == "skip":
            zeros = {name: zeros_of(tensor) for name, tensor in known.items()}
            norms = _tensors_of(self._norms(shards, grads, zeros, loss_scale, span))
            if any(tensor.non_finite for tensor in norms.values()):
                options["others_non_finite"] = True
            if clips_by_norm(optimizer, clip):
                options["clip"] = {**(clip or {}), "total_norm": total_norm(norms)}

        def call(shard: _Shard) -> Callable[[Client], tuple[StepResult, str]]:
            names = shard.names
            own = None if params is None else _only(params, names)
            own_grads = _only(grads, names)
            own_state = None if state is None else state.pick(names)
            own_options: StepOptions = {**options, "cached": shard.cached}
            if slices is not None:
                own_options["slices"] = {
                    name: slices[name] for name in names if name in slices
                }

            def step(client: Client) -> tuple[StepResult, str]:
                result = client.step(
                    optimizer,
                    own,
                    own_grads,
                    own_state,
                    timeout=span.remaining(),
                    **own_options,
                )
                return result, client.url

            return step

        answers = self._each(shards, call, span)
        results = [result for result, _ in answers]
        skipped = any(result.skipped for result in results)
        # A shard without gradients warns that there are none. The warning is wrong if
        # other shards have gradients.
        warnings = itertools.chain.from_iterable(
            result.warnings
            for shard, result in zip(shards, results, strict=True)
            if not skipped and (not grads or not grads.keys().isdisjoint(shard.tensors))
        )
        stepped: dict[str, Array] = {}
        for result in results:
            stepped.update(result.params)

        def steps(place: int) -> tuple[int, int]:
            tensors = shards[place].tensors
            counts = [tensors[name].step for name in tensors if name in grads]
            return max(counts, default=-1), results[place].step

        # The result's learning rate is that of the tensor with the most steps.
        leader = results[max(range(len(shards)), key=steps)]
        kept = tuple(
            CachedShard(
                url, result.cached or Cached(), shard.stepped(() if skipped else grads)
            )
            for shard, (result, url) in zip(shards, answers, strict=True)
        )
        has_state = reply.get("state") != "none"
        joined = replace(
            leader,
            params={name: stepped[name] for name in params or known if name in stepped},
            state=State.join(one.state for one in results) if has_state else NO_STATE,
            step=max(result.step for result in results),
            skipped=skipped,
            warnings=tuple(joined_sentences(warnings)),
            cached=Cached(shards=kept) if any(one.cached for one in results) else None,
        )
        return joined if has_state else without_state(joined)

    def init(
        self,
        optimizer: Optimizer,
        params: Arrays,
        *,
        groups: Groups | None = None,
        master_weights: bool | None = None,
        timeout: float | Timeout | None = None,
    ) -> State:
        """Return the state before the first step, as :meth:`Client.init` does."""
        span = self._span(timeout)
        require_arrays("params", params)

        def call(shard: _Shard) -> Callable[[Client], State]:
            own = _only(params, shard.names)
            return lambda client: client.init(
                optimizer,
                own,
                groups=groups,
                master_weights=master_weights,
                timeout=span.remaining(),
            )

        return State.join(self._each(self._pack(params, {}, None), call, span))

    def average(
        self,
        optimizer: Optimizer,
        params: Arrays,
        state: State,
        *,
        groups: Groups | None = None,
        timeout: float | Timeout | None = None,
    ) -> dict[str, Any]:
        """Return the averaged parameters, as :meth:`Client.average` does."""
        span = self._span(timeout)
        require_arrays("params", params)
        require_state(state)

        def call(shard: _Shard) -> Callable[[Client], dict[str, Any]]:
            own, own_state = _only(params, shard.names), state.pick(shard.names)
            return lambda client: client.average(
                optimizer, own, own_state, groups=groups, timeout=span.remaining()
            )

        parts = self._each(self._pack(params, {}, state), call, span)
        averages = {name: array for part in parts for name, array in part.items()}
        return _only(averages, list(params))

    def norms(
        self,
        grads: Arrays,
        params: Arrays | None = None,
        *,
        loss_scale: float | None = None,
        timeout: float | Timeout | None = None,
    ) -> NormsResult:
        """Return the sums of squares and the norm over all: :meth:`Client.norms`."""
        require_arrays("grads", grads)
        if params is not None:
            require_arrays("params", params)
        shards = self._pack(grads, params or {}, None)
        results = self._norms(
            shards,
            grads,
            params,
            loss_scale,
            self._span(timeout),
            of_params=params is not None,
        )
        tensors = _tensors_of(results)
        warnings = itertools.chain.from_iterable(one.warnings for one in results)
        said = tuple(joined_sentences(warnings))
        return NormsResult(tensors, total_norm(tensors), said)

    def reduce(
        self,
        updates: Sequence[AnyUpdate],
        params: Arrays | None = None,
        *,
        timeout: float | Timeout | None = None,
        **options: Unpack[ReduceOptions],
    ) -> ReduceResult:
        """Combine the updates of several workers, as :meth:`Client.reduce` does.

        Calls hold some of the tensors each. If calls drop different updates, those that
        kept an update which another dropped run again.
        """
        return self._reduce(
            {"updates": updates, **options}, params, self._span(timeout)
        )

    def _reduce(
        self,
        reduction: dict[str, Any],
        params: Arrays | None,
        span: Span,
    ) -> ReduceResult:
        updates = updates_of(reduction.pop("updates", None))
        accumulator = reduction.pop("accumulator", None)
        if params is not None:
            require_arrays("params", params)
        own_sum = None if accumulator is None else accumulator_of(accumulator)
        shards = Shards(params, updates, own_sum)

        def call(
            dropped: Collection[int],
        ) -> Callable[[_Shard], Callable[[Client], ReduceResult]]:
            def of_shard(shard: _Shard) -> Callable[[Client], ReduceResult]:
                names = shard.unmatched
                return lambda client: client.reduce(
                    shards.updates_of(names, dropped),
                    shards.params_of(names),
                    accumulator=shards.accumulator_of(names),
                    timeout=span.remaining(),
                    **reduction,
                )

            return of_shard

        parts = [
            _Shard({}, unmatched=names) for names in shards.pack(self._request_bytes)
        ]
        results = self._each(parts, call(()), span)
        dropped = {index for one in results for index in one.dropped}
        again = [at for at, one in enumerate(results) if set(one.dropped) != dropped]
        if again:
            whole = self._each([parts[at] for at in again], call(dropped), span)
            for at, result in zip(again, whole, strict=True):
                results[at] = result
        return join(results, dropped, params)

    def distances(
        self,
        updates: Sequence[AnyUpdate],
        *,
        timeout: float | Timeout | None = None,
    ) -> Array:
        """Return the squared distances, as :meth:`Client.distances` does.

        One call adds to the result of the call before, so the calls run in turn.
        """
        span = self._span(timeout)
        shards = Shards(None, updates_of(updates), None)
        total: Array | None = None
        for names in shards.by_name(self._request_bytes):
            own = shards.updates_of(names)

            def call(
                client: Client, own: list[Update] = own, earlier: Array | None = total
            ) -> Array:
                return client.distances(own, earlier=earlier, timeout=span.remaining())

            total = self._try_replicas(call, span)
        assert total is not None
        return total

    def describe(self, name: str) -> dict[str, Any]:
        """Return an optimizer's formula, papers, hyperparameters, slots and cost."""
        span = self._span(None)
        return self._try_replicas(
            lambda client: client.describe(name, timeout=span.remaining()), span
        )

    def _span(self, timeout: float | Timeout | None) -> Span:
        return Span(self._timeout if timeout is None else timeout_of(timeout))

    def _norms(
        self,
        shards: Sequence[_Shard],
        grads: Arrays,
        params: Arrays | None,
        loss_scale: float | None,
        span: Span,
        *,
        of_params: bool = False,
    ) -> list[NormsResult]:
        def call(shard: _Shard) -> Callable[[Client], NormsResult]:
            own = _only(grads, shard.names)
            given: dict[str, Array] | None = _only(params or {}, list(own))
            # A parameter's dtype decides the arithmetic. The call therefore sends
            # parameters if any differs from its gradient in being float64.
            if not of_params and not differ_in_arithmetic(given or {}, own):
                given = None
            return lambda client: client.norms(
                own, given, loss_scale=loss_scale, timeout=span.remaining()
            )

        return self._each(shards, call, span)

    def _pack(self, params: Arrays, grads: Arrays, state: State | None) -> list[_Shard]:
        """Split the tensors, in their order, into at least one call."""
        sizes = {name: np.asarray(array).nbytes for name, array in params.items()}
        for name in sizes:
            if name in grads:
                sizes[name] += np.asarray(grads[name]).nbytes
        if state is not None:
            for _, name, tensor in state.entries():
                if name in sizes:
                    sizes[name] += tensor.data.nbytes
        taken = {} if state is None else state.steps
        shards = [_Shard({})]
        room = self._request_bytes
        for name, size in sizes.items():
            if size > room and shards[-1].tensors:
                shards.append(_Shard({}))
                room = self._request_bytes
            shards[-1].tensors[name] = TensorInfo(
                np.shape(params[name]), is_double(params[name]), taken.get(name, 0)
            )
            room -= size
        return shards

    def _each(
        self,
        shards: Sequence[_Shard],
        call: Callable[[_Shard], Callable[[Client], T]],
        span: Span,
    ) -> list[T]:
        """Run a call for each shard, several at once. Raises the first shard's error.

        Errors about non-finite gradients are merged into one error that names all such
        tensors, because a single call also checks gradients last.
        """

        if self._is_closed:
            raise RuntimeError("this ShardedClient is closed, and makes no more calls")

        def run(shard: _Shard) -> T:
            return self._try_replicas(call(shard), span, shard.url)

        if len(shards) == 1:
            return [run(shards[0])]
        futures: list[Future[T]] = [self._threads.submit(run, part) for part in shards]
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

    def _try_replicas(
        self, call: Callable[[Client], T], span: Span, home: str | None = None
    ) -> T:
        """Try the replicas until one answers. Raises at once if the call is wrong.

        ``home`` comes first unless it is cooling down. After BlobMissing, the next
        replica is tried, because it may have the blob.
        """
        backoff = Backoff(self._retry, "every stepd replica", span.end)
        while True:
            failures: list[StepdError] = []
            tried: list[_Replica] = []
            while len(tried) < len(self._replicas):
                with self._lock:
                    left = [one for one in self._replicas if one not in tried]
                    replica = min(left, key=lambda one: one.sort_key(home))
                    replica.calls += 1
                    replica.turn = next(self._turns)
                    failed_before = replica.failures
                tried.append(replica)
                try:
                    result = call(replica.client)
                except StepdError as error:
                    failures.append(error)
                    with self._lock:
                        if is_server_fault(error):
                            replica.start_cool_down(failed_before + 1)
                        else:
                            # A replica that refuses a call is working.
                            replica.recover()
                    if not is_server_fault(error) and not isinstance(
                        error, BlobMissing
                    ):
                        raise
                else:
                    with self._lock:
                        replica.recover()
                    return result
                finally:
                    with self._lock:
                        replica.calls -= 1
            missing = [one for one in failures if isinstance(one, BlobMissing)]
            # Wait for the replica that will be ready first.
            not_refused = [one for one in failures if not is_refused(one)]
            pause = backoff.delay_after(min(not_refused or failures, key=_retry_after))
            if pause is None or len(missing) == len(failures):
                raise (missing or failures)[-1]
            sleep(pause)


@dataclass
class _Shard:
    """One of the calls that make up a step."""

    #: The parameters of this call, in the order of the call.
    tensors: dict[str, TensorInfo]
    #: Handles of the parameters and state that the server at ``url`` has cached.
    cached: Cached | None = None
    url: str | None = None
    #: Gradients, and entries of the state, that belong to no parameter.
    unmatched: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return [*self.tensors, *self.unmatched]

    def stepped(self, names: Collection[str]) -> dict[str, TensorInfo]:
        """Return the parameters, with one more step for those in ``names``."""
        return {
            name: tensor._replace(step=tensor.step + (name in names))
            for name, tensor in self.tensors.items()
        }


def _cached_shards(
    cached: Cached, params: Arrays | None, state: State | None
) -> list[_Shard]:
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
    shards = [_Shard(dict(one.tensors), one.cached, one.url) for one in cached.shards]
    names = {name for shard in shards for name in shard.tensors}
    if params is not None and params.keys() != names:
        raise ValueError("params: expected those of the result that cached is of")
    for one in cached.shards:
        if params is None and one.cached.params is None:
            raise ValueError("params: expected arrays, or cached that names them all")
        if state is None and one.cached.state is None:
            raise ValueError("state: expected one, or cached that names all of it")
    return shards


class _Replica:
    def __init__(self, client: Client) -> None:
        self.client = client
        self.calls = 0
        self.turn = 0
        #: The number of failures in a row.
        self.failures = 0
        self.cool_down_until = 0.0

    def sort_key(self, home: str | None) -> tuple[float, bool, int, int]:
        """Return the sort key, least first: cool-down, not home, calls, turn."""
        cool_down = self.cool_down_until if self.cool_down_until > monotonic() else 0.0
        return cool_down, self.client.url != home, self.calls, self.turn

    def start_cool_down(self, failures: int) -> None:
        """Start a cool-down. Calls that fail together count as one failure."""
        self.failures = max(self.failures, failures)
        seconds = math.ldexp(_FIRST_COOL_DOWN, min(self.failures - 1, 10))
        self.cool_down_until = monotonic() + min(seconds, _LONGEST_COOL_DOWN)

    def recover(self) -> None:
        self.failures = 0
        self.cool_down_until = 0.0


def _retry_after(error: StepdError) -> float:
    """Return the server's Retry-After in seconds; infinity if the error has none."""
    retry_after: float | None = getattr(error, "retry_after", None)
    return math.inf if retry_after is None else retry_after


def _tensors_of(results: Sequence[NormsResult]) -> dict[str, TensorNorms]:
    tensors: dict[str, TensorNorms] = {}
    for result in results:
        tensors.update(result.tensors)
    return tensors


def _only(arrays: Mapping[str, Array], names: Sequence[str]) -> dict[str, Array]:
    return {name: arrays[name] for name in names if name in arrays}
