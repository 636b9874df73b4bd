"""A step split into several calls to several replicas. The result has the same bits."""

from __future__ import annotations

import functools
import itertools
import math
import os
import ssl
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from time import monotonic, sleep
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from ._calls import NormsResult, StepResult, require_step
from ._checks import require_arrays, require_count, require_state, require_texts
from ._client import Client
from ._error_table import BlobMissing
from ._errors import StepdError
from ._memory import Pool
from ._norms import total_norm
from ._options import Groups, Optimizer, StepOptions, step_options
from ._parts import (
    LARGEST_PART_BYTES,
    Inputs,
    Part,
    Splitter,
    joined_norms,
    run_each,
    sharing,
)
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
from ._refusals import joined_sentences
from ._retry import Backoff, Retry, is_refused, is_server_fault, retry_of
from ._shared import SharedFolder
from ._state import State
from ._tensors import Array, Arrays
from ._timeout import DEFAULT_TIMEOUT, Span, Timeout, timeout_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")

#: A replica that fails is avoided for this many seconds while other replicas work. The
#: cool-down doubles with each failure in a row.
_FIRST_COOL_DOWN = 1.0
_LONGEST_COOL_DOWN = 60.0


class ShardedClient(Splitter):
    """Splits a step over several servers. The result has the same bits as one call.

    ``urls`` are interchangeable replicas. The client packs the tensors, in their order,
    into calls of about ``request_bytes`` (parameters, gradients and state together), by
    default of 2 MiB or more, as the round trips to the servers require. It cuts larger
    tensors into slices, unless the optimizer needs whole tensors, as LAMB does.
    ``connections`` calls run at once.

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
        request_bytes: int | None = None,
        connections: int = 4,
        timeout: float | Timeout = DEFAULT_TIMEOUT,
        retries: int | Retry = 6,
        ssl_context: ssl.SSLContext | None = None,
        shared_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        require_texts("urls", urls)
        if not urls:
            raise ValueError("urls: expected at least one, found none")
        if request_bytes is not None:
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
                    connections=1,
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
            # Files need no overlap of directions, so that large calls cost the least.
            request_bytes = request_bytes or LARGEST_PART_BYTES
        self._request_bytes = request_bytes
        self._connections = connections
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
        statistics, because the server computes statistics per call. Raises ValueError
        for prodigy, whose step size depends on all tensors.

        ``cached`` is the attribute ``cached`` of an earlier result of a ShardedClient.
        Tensors are packed as for that result, and each call goes first to the server
        that cached its blobs. Any other server receives ``params`` and ``state``.

        The option ``reduce`` takes a round of :meth:`reduce` first.
        """
        span = self._span(timeout)
        options = step_options(options)
        require_step(optimizer, params, grads, state, options)
        shared = sharing(optimizer, options.get("groups"))
        if shared is not None:
            raise ValueError(
                "optimizer: a ShardedClient sends a step as several calls, but "
                f"{shared} needs all tensors in one; a Client sends one"
            )
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
        return self._step_in_parts(optimizer, params, grads, state, options, span)

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

        inputs = Inputs(params, {}, None)

        def call(part: Part) -> Callable[[Client], State]:
            own = inputs.params_of(part) or {}
            return lambda client: client.init(
                optimizer,
                own,
                groups=groups,
                master_weights=master_weights,
                timeout=span.remaining(),
            )

        return State.join(self._each(self._pack(inputs), call, span))

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

        inputs = Inputs(params, {}, state)

        def call(part: Part) -> Callable[[Client], dict[str, Any]]:
            own, own_state = inputs.params_of(part) or {}, state.pick(part.names)
            return lambda client: client.average(
                optimizer, own, own_state, groups=groups, timeout=span.remaining()
            )

        results = self._each(self._pack(inputs), call, span)
        averages = {name: array for one in results for name, array in one.items()}
        return {name: averages[name] for name in params if name in averages}

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
        parts = self._pack(Inputs(grads, params or {}, None))
        results = self._norms(
            parts,
            Inputs(params, grads, None),
            loss_scale,
            self._span(timeout),
            of_params=params is not None,
        )
        tensors = joined_norms(results)
        warnings = itertools.chain.from_iterable(one.warnings for _, one in results)
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
        ) -> Callable[[Part], Callable[[Client], ReduceResult]]:
            def of_shard(shard: Part) -> Callable[[Client], ReduceResult]:
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
            Part({}, unmatched=names) for names in shards.pack(self._reduced_bytes)
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
        earlier: Array | None = None,
        timeout: float | Timeout | None = None,
    ) -> Array:
        """Return the squared distances, as :meth:`Client.distances` does.

        One call adds to the result of the call before, so the calls run in turn.
        """
        span = self._span(timeout)
        shards = Shards(None, updates_of(updates), None)
        total = earlier
        for names in shards.by_name(self._reduced_bytes):
            own = shards.updates_of(names)

            def call(
                client: Client, own: list[Update] = own, before: Array | None = total
            ) -> Array:
                return client.distances(own, earlier=before, timeout=span.remaining())

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

    @property
    def _reduced_bytes(self) -> int:
        return self._request_bytes or LARGEST_PART_BYTES

    def _pool_of_results(self) -> Pool:
        return self._replicas[0].client._pool_of_results()

    def _round_trip(self) -> float:
        return max(replica.client._round_trip() for replica in self._replicas)

    def _each(
        self,
        parts: Sequence[Part],
        call: Callable[[Part], Callable[[Client], T]],
        span: Span,
    ) -> list[T]:
        if self._is_closed:
            raise RuntimeError("this ShardedClient is closed, and makes no more calls")

        def run(part: Part) -> T:
            return self._try_replicas(call(part), span, part.url)

        return run_each(self._threads, parts, run)

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
