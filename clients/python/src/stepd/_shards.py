"""A step over several calls, connections and replicas, whose result is that of one."""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
import re
import ssl
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from time import monotonic, sleep
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from ._calls import (
    Groups,
    NonFinite,
    NormsResult,
    Optimizer,
    Schedule,
    StepResult,
    TensorNorms,
)
from ._client import Client
from ._error_table import NonFiniteGradient
from ._errors import StepdError
from ._http import Timeout
from ._retry import Retry, is_of_server, retry_of
from ._shared import SharedFolder
from ._state import State
from ._tensors import Array, Arrays

T = TypeVar("T")

MIB = 2**20

#: Seconds that a replica is left alone after a failure, while there are others:
#: doubled with each failure in a row.
_FIRST_REST = 1.0
_LONGEST_REST = 60.0

#: Tensors that a server names in an error or a warning.
_NAMED_TENSORS = 8

#: A parameter that is added to a call where its gradients alone would not make it
#: skip, or not give the norm that those of all calls together have, which is no number
#: that could be sent. No parameter of a caller has such a name.
_POISON = "\0stepd.poison"

#: The square of this is infinite, but it is not.
_HUGE = 1e200


class ShardedClient:
    """Steps a model over several servers as if one had done it, bit for bit.

    ``urls`` are replicas: any serves any call. Tensors are packed in their order into
    calls of about ``request_bytes`` (parameters, gradients and state together; a
    larger tensor goes alone), and ``connections`` calls are under way at once.

    A call that a replica fails, and not because the call is wrong, goes to another one
    at once. When all have failed there is a pause; ``retries`` counts the rounds after
    the first. A replica that failed is left alone while there are others: for 1 s, and
    twice as long after each further failure, up to 60 s. The other arguments are those
    of :class:`Client`. Threads may share it.
    """

    def __init__(
        self,
        urls: Sequence[str],
        token: str | None = None,
        *,
        request_bytes: int = 64 * MIB,
        connections: int = 4,
        timeout: float | Timeout = 60.0,
        retries: int | Retry = 6,
        ssl_context: ssl.SSLContext | None = None,
        shared_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        if isinstance(urls, str) or not urls:
            raise ValueError("expected a list of at least one URL")
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
            # One for all: what came from one replica may go to another.
            shared = SharedFolder(shared_dir)
            for replica in self._replicas:
                replica.client._shared = shared
        self._request_bytes = request_bytes
        self._retry = retry_of(retries)
        self._lock = threading.Lock()
        self._turns = itertools.count(1)
        self._threads = ThreadPoolExecutor(connections, "stepd")

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
        # A copy has connections and threads of its own.
        return self._again, ()

    def close(self) -> None:
        """Close the idle connections and end the threads."""
        self._threads.shutdown(cancel_futures=True)
        for replica in self._replicas:
            replica.client.close()

    def step(
        self,
        optimizer: Optimizer,
        params: Arrays,
        grads: Arrays,
        state: State | None = None,
        *,
        groups: Groups | None = None,
        schedule: Schedule | None = None,
        clip: Mapping[str, float] | None = None,
        loss_scale: float | None = None,
        non_finite: NonFinite | None = None,
        master_weights: bool | None = None,
        stochastic_rounding: Mapping[str, int] | None = None,
        timeout: float | Timeout | None = None,
    ) -> StepResult:
        """One update: the result of :meth:`Client.step`, and its errors.

        Clipping by the norm over all gradients, LAMB's ``max_grad_norm`` and
        ``non_finite="skip"`` take a round of ``norms`` first. Statistics are those of
        single calls, so there are none here.
        """
        settings: dict[str, Any] = {
            "groups": groups,
            "schedule": schedule,
            "loss_scale": loss_scale,
            "non_finite": non_finite,
            "master_weights": master_weights,
            "stochastic_rounding": stochastic_rounding,
            "timeout": timeout,
        }
        stray = sorted(grads.keys() - params.keys())
        shards = self._pack(params, grads, state)
        # What belongs to no parameter goes with the first call, whose server says so.
        shards[0].extend(stray)
        if state is not None:
            known = frozenset(params)
            shards[0].extend(name for name in state.steps if name not in known)

        clips = _clips_by_norm(optimizer, clip)
        poison: float | None = None
        if clips or non_finite == "skip":
            norms = self._norms(shards, grads, params, loss_scale, timeout)
            total = _total_norm(norms)
            broken = {name for name, tensor in norms.items() if tensor.non_finite}
            if broken and non_finite == "skip":
                poison = math.nan
            elif broken and non_finite != "propagate":
                # No norm is sent: the calls that have the gradients refuse them.
                pass
            elif clips and not math.isfinite(total):
                # What the server divides by the loss scale must come to that again.
                huge = min(_HUGE * (loss_scale or 1.0), sys.float_info.max)
                poison = math.nan if math.isnan(total) else huge
            elif clips:
                clip = {**(clip or {}), "total_norm": total}

        def call(names: list[str]) -> Callable[[Client], StepResult]:
            own = _only(params, names)
            own_grads = _only(grads, names)
            if poison is not None:
                own[_POISON] = np.zeros(1)
                own_grads[_POISON] = np.array([poison])
            own_state = None if state is None else state.pick(names)
            return lambda client: client.step(
                optimizer, own, own_grads, own_state, clip=clip, **settings
            )

        results = self._each(shards, call)
        warnings = itertools.chain.from_iterable(part.warnings for part in results)
        stepped: dict[str, Array] = {}
        for result in results:
            stepped.update(result.params)
        states = [result.state for result in results]
        if poison is not None:
            states = [
                part.pick(names) for part, names in zip(states, shards, strict=True)
            ]
        taken = {} if state is None else state.steps

        def steps(place: int) -> tuple[int, int]:
            counts = [taken.get(name, 0) for name in shards[place] if name in grads]
            return max(counts, default=-1), results[place].step

        return replace(
            # The learning rate is that of the tensor with the most steps.
            results[max(range(len(shards)), key=steps)],
            params={name: stepped[name] for name in params},
            state=State.join(states),
            step=max(result.step for result in results),
            warnings=tuple(_joined(warnings)),
        )

    def init(
        self,
        optimizer: Optimizer,
        params: Arrays,
        *,
        groups: Groups | None = None,
        master_weights: bool | None = None,
        timeout: float | Timeout | None = None,
    ) -> State:
        """The state before the first step, as :meth:`Client.init`."""
        settings: dict[str, Any] = {
            "groups": groups,
            "master_weights": master_weights,
            "timeout": timeout,
        }

        def call(names: list[str]) -> Callable[[Client], State]:
            own = _only(params, names)
            return lambda client: client.init(optimizer, own, **settings)

        return State.join(self._each(self._pack(params, {}, None), call))

    def norms(
        self,
        grads: Arrays,
        params: Arrays | None = None,
        *,
        loss_scale: float | None = None,
        timeout: float | Timeout | None = None,
    ) -> NormsResult:
        """Sums of squares by tensor and the norm over all, as :meth:`Client.norms`."""
        shards = self._pack(grads, params or {}, None)
        tensors = self._norms(
            shards, grads, params, loss_scale, timeout, of_params=params is not None
        )
        return NormsResult(tensors, _total_norm(tensors))

    def describe(self, name: str) -> dict[str, Any]:
        """Formula, references, hyperparameters, slots and cost of an optimizer."""
        return self._anywhere(lambda client: client.describe(name))

    def _norms(
        self,
        shards: Sequence[list[str]],
        grads: Arrays,
        params: Arrays | None,
        loss_scale: float | None,
        timeout: float | Timeout | None,
        *,
        of_params: bool = False,
    ) -> dict[str, TensorNorms]:
        def call(names: list[str]) -> Callable[[Client], NormsResult]:
            own = _only(grads, names)
            given: dict[str, Array] | None = _only(params or {}, list(own))
            # The parameter's dtype decides in which the gradient is squared, so it has
            # to be there where it would be another. Else its bytes can stay here.
            if not of_params and not _differ_in_arithmetic(given or {}, own):
                given = None
            return lambda client: client.norms(
                own, given, loss_scale=loss_scale, timeout=timeout
            )

        tensors: dict[str, TensorNorms] = {}
        for result in self._each(shards, call):
            tensors.update(result.tensors)
        return tensors

    def _pack(
        self, params: Arrays, grads: Arrays, state: State | None
    ) -> list[list[str]]:
        """Names by call, in their order. There is at least one call."""
        sizes = {name: np.asarray(array).nbytes for name, array in params.items()}
        for name in sizes:
            if name in grads:
                sizes[name] += np.asarray(grads[name]).nbytes
        if state is not None:
            for _, name, tensor in state.entries():
                if name in sizes:
                    sizes[name] += tensor.data.nbytes
        shards: list[list[str]] = [[]]
        room = self._request_bytes
        for name, size in sizes.items():
            if size > room and shards[-1]:
                shards.append([])
                room = self._request_bytes
            shards[-1].append(name)
            room -= size
        return shards

    def _each(
        self,
        shards: Sequence[list[str]],
        call: Callable[[list[str]], Callable[[Client], T]],
    ) -> list[T]:
        """Make a call for each shard, some at once. Raises the first one's error.

        But for gradients that are not finite, which is for one call the last thing to
        be wrong, and of which it names those of all tensors.
        """
        if len(shards) == 1:
            return [self._anywhere(call(shards[0]))]

        def run(names: list[str]) -> T:
            return self._anywhere(call(names))

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
            raise _refusal(refusals)
        return results

    def _anywhere(self, call: Callable[[Client], T]) -> T:
        """Try the replicas until one answers. What is wrong with the call is raised."""
        attempt = 0
        while True:
            failures: list[StepdError] = []
            tried: list[_Replica] = []
            while len(tried) < len(self._replicas):
                with self._lock:
                    left = [one for one in self._replicas if one not in tried]
                    replica = min(left, key=_Replica.burden)
                    replica.calls += 1
                    replica.turn = next(self._turns)
                    failed_before = replica.failures
                tried.append(replica)
                try:
                    result = call(replica.client)
                except StepdError as error:
                    if not is_of_server(error):
                        raise
                    failures.append(error)
                    with self._lock:
                        replica.rest(failed_before + 1)
                else:
                    with self._lock:
                        replica.failures = 0
                        replica.rests_until = 0.0
                    return result
                finally:
                    with self._lock:
                        replica.calls -= 1
            # The first to take calls again is worth waiting for.
            pause = self._retry.pause(attempt, min(failures, key=_asked))
            if pause is None:
                raise failures[-1]
            sleep(pause)
            attempt += 1


class _Replica:
    def __init__(self, client: Client) -> None:
        self.client = client
        self.calls = 0
        self.turn = 0
        #: In a row.
        self.failures = 0
        self.rests_until = 0.0

    def burden(self) -> tuple[float, int, int]:
        """Least for the next to call: not resting, fewest calls, longest ago."""
        rest = self.rests_until if self.rests_until > monotonic() else 0.0
        return rest, self.calls, self.turn

    def rest(self, failures: int) -> None:
        """Leave it alone. Calls that were under way together have failed once."""
        self.failures = max(self.failures, failures)
        rest = math.ldexp(_FIRST_REST, min(self.failures - 1, 10))
        self.rests_until = monotonic() + min(rest, _LONGEST_REST)


def _asked(error: StepdError) -> float:
    """Seconds that a server asked to wait; those that did not ask come last."""
    asked: float | None = getattr(error, "retry_after", None)
    return math.inf if asked is None else asked


def _only(arrays: Mapping[str, Array], names: Sequence[str]) -> dict[str, Array]:
    return {name: arrays[name] for name in names if name in arrays}


def _differ_in_arithmetic(params: Arrays, grads: Arrays) -> bool:
    """Whether a float64 tensor belongs to one that is none."""

    def is_wide(array: Array) -> bool:
        return np.asarray(array).itemsize == np.dtype(np.float64).itemsize

    return any(is_wide(param) != is_wide(grads[name]) for name, param in params.items())


def _clips_by_norm(optimizer: Optimizer, clip: Mapping[str, float] | None) -> bool:
    """Whether the step needs the norm over all gradients, and does not have it."""
    given = clip or {}
    needs = "max_norm" in given or optimizer.get("max_grad_norm") is not None
    return needs and "total_norm" not in given


def _total_norm(norms: Mapping[str, TensorNorms]) -> float:
    """The norm over all gradients, added in the order in which a server adds."""
    total = 0.0
    for name in sorted(norms, key=str.encode):
        total += norms[name].grad_squares
    return math.sqrt(total)


#: Tensors as a server lists them in a sentence: "a" (1 value), "b" (2 values) and 3
#: more tensors. Names are JSON.
_LISTED = r'"(?:[^"\\]|\\.)*" \(\d+ values?\)'
_LISTING = re.compile(
    rf"(?P<head>.*?)(?P<list>{_LISTED}(?:, {_LISTED})*)"
    r"(?: and (?P<more>\d+) more tensors)?(?P<tail>.*)",
    re.DOTALL,
)


def _joined(sentences: Iterable[str]) -> list[str]:
    """Sentences without repetition: those that differ in the tensors only become one.

    That is the sentence of one call: it lists the first tensors of all.
    """
    listings: dict[tuple[str, str], list[str]] = {}
    more: dict[tuple[str, str], int] = {}
    for sentence in sentences:
        found = _LISTING.fullmatch(sentence)
        kind = (found["head"], found["tail"]) if found else (sentence, "")
        listed = listings.setdefault(kind, [])
        if found:
            listed += re.findall(_LISTED, found["list"])
            more[kind] = more.get(kind, 0) + int(found["more"] or 0)
    joined = []
    for (head, tail), listed in listings.items():
        listed.sort(key=lambda entry: _name_in(entry).encode())
        rest = more.get((head, tail), 0) + len(listed) - _NAMED_TENSORS
        text = ", ".join(listed[:_NAMED_TENSORS])
        joined.append(
            f"{head}{text}{f' and {rest} more tensors' if rest > 0 else ''}{tail}"
        )
    return joined


def _name_in(entry: str) -> str:
    name: str = json.JSONDecoder().raw_decode(entry)[0]
    return name


def _refusal(refusals: Sequence[NonFiniteGradient]) -> NonFiniteGradient:
    """The error of one call with all tensors that several calls have refused."""
    first = refusals[0]
    tensors = itertools.chain.from_iterable(error.tensors for error in refusals)
    texts = {
        "detail": [str(error) for error in refusals],
        "found": [error.found or "" for error in refusals],
    }
    return NonFiniteGradient(
        {
            **first.problem(),
            "tensors": sorted(tensors, key=str.encode)[:_NAMED_TENSORS],
            # Where a text was cut for its length, that of the first call has to do.
            **{member: _joined(each)[0] for member, each in texts.items()},
        }
    )
