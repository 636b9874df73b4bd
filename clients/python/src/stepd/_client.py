"""The client of one server."""

from __future__ import annotations

import functools
import os
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from . import _calls as calls
from ._calls import Call, Convention, Conversion, Json, NormsResult, StepResult
from ._checks import require_count, require_tls
from ._errors import StepdError, TransportError
from ._http import Transport, address_of
from ._memory import Pool
from ._options import Groups, Optimizer, Schedule, Slices, StepOptions, step_options
from ._parts import CONNECTIONS, Part, Splitter, is_split, run_each
from ._reduce import AnyUpdate, ReduceOptions, ReduceResult
from ._retry import Attempts, Backoff, Retry, retry_of
from ._shared import SharedFolder
from ._state import Source, State
from ._tensors import Array, Arrays
from ._timeout import DEFAULT_TIMEOUT, Span, Timeout, timeout_of

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

T = TypeVar("T")


class Client(Splitter):
    """Calls one server over persistent connections. Safe to share between threads.

    ``url`` is http://, https:// or unix:///path/of/socket. ``timeout`` limits one
    attempt, up to the end of its reply: seconds, or a :class:`Timeout`. ``retries``
    limits the retries after 408, 429, 502, 503, 504, a lost connection or a timeout: a
    number, or a :class:`Retry`. Retries are safe, because a step is a pure function.
    The client retries refused connections for 30 s, with a warning in the log
    ``stepd``, unless ``retries`` is 0. ``pool_size`` limits the idle connections.

    A step of 4 MiB or more is sent in parts over ``connections`` connections, so that
    results arrive while inputs leave. The result has the bits of one call, and an error
    of any part is the step's error. By default there are 2, but 1 to a server on this
    host, which has no link to wait for; with 1 each step is one call. A step with
    ``stats``, ``reduce`` or ``shared_dir`` is one call, too.

    ``shared_dir`` is the folder that a server on this host shares (STEPD_SHARED_DIR;
    with tokens, the subfolder with the token's name). Arrays and states of 64 KiB or
    more then go through files in the folder. The client creates the files;
    :meth:`close` removes them.

    Raises ValueError for any other URL, for a URL with a user or password, and for a
    token that a header cannot hold; OSError for a folder that is missing or not
    writable. Every method raises :class:`ServerError` if the server refuses the call,
    :class:`TransportError` if the server is unreachable, and OSError if the folder is
    full.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        timeout: float | Timeout = DEFAULT_TIMEOUT,
        retries: int | Retry = 4,
        ssl_context: ssl.SSLContext | None = None,
        pool_size: int = 8,
        connections: int | None = None,
        shared_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self.url = url
        self._again = functools.partial(
            type(self),
            url,
            token,
            timeout=timeout,
            retries=retries,
            ssl_context=ssl_context,
            pool_size=pool_size,
            connections=connections,
            shared_dir=shared_dir,
        )
        require_count("pool_size", pool_size)
        require_tls(ssl_context)
        self._timeout = timeout_of(timeout)
        self._retry = retry_of(retries)
        self._shared = None if shared_dir is None else SharedFolder(shared_dir)
        address = address_of(url)
        if connections is None:
            connections = 1 if address.is_local else CONNECTIONS
        require_count("connections", connections)
        self._connections = connections
        self._transport = Transport(address, token, ssl_context, pool_size)
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None
        self._executor_pid = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close idle connections, remove the shared files, and free pooled memory.

        Results stay valid.
        """
        with self._lock:
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=False)
        self._transport.close()
        if self._shared is not None:
            self._shared.close()

    def __reduce__(self) -> tuple[Any, ...]:
        # A copied or unpickled client opens its own connections and shared files.
        return self._again, ()

    def __repr__(self) -> str:
        return f"<stepd.Client of {self.url}>"

    def _run(self, call: Call[T], timeout: float | Timeout | None = None) -> T:
        limit = self._timeout if timeout is None else timeout_of(timeout)
        end = limit.end()
        attempts = Attempts(call, Backoff(self._retry, f"stepd at {self.url}", end))
        while True:
            try:
                return self._transport.send(attempts.call, limit, end)
            except StepdError as error:
                pause = attempts.delay_after(error)
            time.sleep(pause)

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
        """Run one step: return new parameters and state. Does not change its arguments.

        ``params`` and ``grads`` map names to arrays of any shape in float16, bfloat16,
        float32 or float64; a gradient has its parameter's shape. A parameter without a
        gradient does not change. With the option ``reduce``, ``grads`` is None and the
        server combines updates into the gradients. ``state`` is the last result's
        state, or None at the first step. :class:`StepOptions` lists the options, which
        are those of optimizer.step on the wire.

        ``reply`` selects the results: whether ``params`` come unchanged, in bfloat16 or
        not at all, whether the ``state`` comes, and whether the server caches
        (``cache``) both.

        ``cached`` is the attribute ``cached`` of an earlier result: the client does not
        send the params and state that it names. ``params`` and ``state``, if given too,
        must be those of that result: the client sends them if the server has dropped
        its copy. ``params`` may be None only if ``cached`` names them.

        Raises TypeError for other dtypes or options, ValueError if params are missing,
        and :class:`BlobMissing` if the server has dropped a blob that was not given.
        """
        options = step_options(options)
        if grads is not None and self._splits(optimizer, params, grads, state, options):
            calls.require_step(optimizer, params, grads, state, options)
            limit = self._timeout if timeout is None else timeout_of(timeout)
            return self._step_in_parts(
                optimizer, params, grads, state, options, Span(limit)
            )
        result = self._step_once(optimizer, params, grads, state, options, timeout)
        ledger = options.get("ledger")
        if ledger is not None:
            ledger.append(result)
        return result

    def _step_once(
        self,
        optimizer: Optimizer,
        params: Arrays | None,
        grads: Arrays | None,
        state: State | None,
        options: StepOptions,
        timeout: float | Timeout | None,
    ) -> StepResult:
        call = calls.step(optimizer, params, grads, state, options, self._shared)
        return self._run(call, timeout)

    def _splits(
        self,
        optimizer: Optimizer,
        params: Arrays | None,
        grads: Arrays,
        state: State | None,
        options: StepOptions,
    ) -> bool:
        """Return whether to send a step in parts."""
        connections = self._connections if self._shared is None else 1
        return is_split(self.url, connections, optimizer, params, grads, state, options)

    def _each(
        self,
        parts: Sequence[Part],
        call: Callable[[Part], Callable[[Client], T]],
        span: Span,
    ) -> list[T]:
        return run_each(self._threads(), parts, lambda part: call(part)(self))

    def _threads(self) -> ThreadPoolExecutor:
        with self._lock:
            # A forked child has none of its parent's threads.
            if self._executor is None or self._executor_pid != os.getpid():
                self._executor = ThreadPoolExecutor(self._connections, "stepd")
                self._executor_pid = os.getpid()
            return self._executor

    def _pool_of_results(self) -> Pool:
        return self._transport.memory

    def _round_trip(self) -> float:
        return self._transport.round_trip

    def init(
        self,
        optimizer: Optimizer,
        params: Arrays,
        *,
        groups: Groups | None = None,
        master_weights: bool | None = None,
        slices: Slices | None = None,
        timeout: float | Timeout | None = None,
    ) -> State:
        """Return the state before the first step: initial values, step 0."""
        call = calls.init(
            optimizer, params, groups, master_weights, slices, self._shared
        )
        return self._run(call, timeout)

    def average(
        self,
        optimizer: Optimizer,
        params: Arrays,
        state: State,
        *,
        groups: Groups | None = None,
        timeout: float | Timeout | None = None,
    ) -> dict[str, Any]:
        """Return the averaged parameters, with which a model is evaluated.

        Training goes on with ``params``. ``optimizer`` is one that averages them, such
        as ``schedule_free_adamw``.
        """
        call = calls.average(optimizer, params, state, groups, self._shared)
        return self._run(call, timeout)

    def norms(
        self,
        grads: Arrays,
        params: Arrays | None = None,
        *,
        loss_scale: float | None = None,
        slices: Slices | None = None,
        keep: bool = False,
        timeout: float | Timeout | None = None,
    ) -> NormsResult:
        """Return the sums of squares for exact clipping over several calls.

        ``keep=True`` asks the server to keep the gradients, if it has a cache. A step
        with the result's ``cached`` then sends them only if the server has lost them.
        """
        call = calls.norms(grads, params, loss_scale, slices, self._shared, keep=keep)
        return self._run(call, timeout)

    def reduce(
        self,
        updates: Sequence[AnyUpdate],
        params: Arrays | None = None,
        *,
        timeout: float | Timeout | None = None,
        **options: Unpack[ReduceOptions],
    ) -> ReduceResult:
        """Combine the updates of several workers into one pseudo-gradient.

        ``updates`` are :class:`Update` or pairs (arrays, weight), in the order of the
        arithmetic: the same order gives the same bits. ``params`` are the parameters
        that they started from. ``form`` says what the updates are: ``"params"`` (new
        parameters, the default), ``"deltas"`` or ``"gradients"``; only the first needs
        ``params``. ``method`` is ``{"name": "mean"}``, with a ``divisor`` if it is not
        the sum of the weights, ``{"name": "median"}`` or ``{"name": "trimmed_mean",
        "cut": 1}``.

        ``finish=False`` returns an ``accumulator`` instead, for the next call to go on
        from. ``non_finite="drop"`` leaves out updates with NaN or infinity, and
        ``missing="renormalize"`` combines each tensor over the updates that have it.
        """
        call = calls.reduce(updates, params, options, self._shared)
        return self._run(call, timeout)

    def distances(
        self,
        updates: Sequence[AnyUpdate],
        *,
        earlier: Array | None = None,
        timeout: float | Timeout | None = None,
    ) -> Array:
        """Return the matrix of squared distances between updates, in float64.

        Krum and other choices among updates need no more. Updates are deltas or
        gradients. ``earlier`` is the matrix of other tensors of the same updates, to
        which this call adds: calls in the order of names have the bits of one call.
        """
        call = calls.distances(updates, earlier, self._shared)
        return self._run(call, timeout)

    def plan(
        self,
        optimizer: Optimizer,
        tensors: Mapping[str, Array | Mapping[str, Any]],
        *,
        groups: Groups | None = None,
        grad_dtype: str | None = None,
        master_weights: bool | None = None,
        timeout: float | Timeout | None = None,
    ) -> Json:
        """Return the cost of a step: bytes in and out, state, memory, number of calls.

        ``tensors`` maps names to arrays, or to ``{"shape": [...], "dtype": "F32"}``.
        The client sends only an array's shape and dtype.
        """
        return self._run(
            calls.plan(optimizer, tensors, groups, grad_dtype, master_weights), timeout
        )

    def inspect(self, state: State, *, timeout: float | Timeout | None = None) -> Json:
        """Return the contents of a state, as the server reads it."""
        return self._run(calls.inspect(state, self._shared), timeout)

    def convert(
        self,
        state: State | Source,
        *,
        source: Convention | None = None,
        target: Convention | None = None,
        optimizer: str | None = None,
        fill: Sequence[str] | None = None,
        state_dtype: str | None = None,
        timeout: float | Timeout | None = None,
    ) -> Conversion:
        """Convert a state to or from the formats of torch, qhoptim and optax.

        ``state`` is a State, or the bytes of a safetensors file in the convention
        ``source``: ``{"format": "torch", "optimizer": "adamw", "names": [...]}``.
        ``target`` is the result's convention; both default to stepd's own.
        ``optimizer`` may be another optimizer of the same family, and ``fill`` lists
        slots to add. ``state_dtype`` is the format of the result's moments: ``"F32"``,
        ``"BF16"`` or ``"Q8"``.
        """
        call = calls.convert(
            state, source, target, optimizer, fill, state_dtype, self._shared
        )
        return self._run(call, timeout)

    def evaluate_schedule(
        self,
        schedule: Schedule,
        *,
        lr: float | None = None,
        start: int | None = None,
        count: int | None = None,
        timeout: float | Timeout | None = None,
    ) -> Json:
        """Return ``{"lrs": [...]}`` for ``count`` steps of a schedule from ``start``.

        Step 0 is the first. A schedule that cycles momentum also returns ``momentums``.
        """
        return self._run(calls.evaluate_schedule(schedule, lr, start, count), timeout)

    def optimizers(self, *, timeout: float | Timeout | None = None) -> list[Json]:
        """Return name, title and formula of each optimizer of the server."""
        return self._run(calls.optimizers(), timeout)

    def describe(self, name: str, *, timeout: float | Timeout | None = None) -> Json:
        """Return an optimizer's formula, papers, hyperparameters, slots and cost."""
        return self._run(calls.describe(name), timeout)

    def info(self, *, timeout: float | Timeout | None = None) -> Json:
        """Return the server's version, limits and kernels."""
        return self._run(calls.info(), timeout)

    def ready(self, *, timeout: float | Timeout | None = None) -> bool:
        """Return whether the server can be reached and accepts calls."""
        limit = self._timeout if timeout is None else timeout_of(timeout)
        try:
            return bool(self._transport.send(calls.ready(), limit)["ready"])
        except TransportError:
            return False
