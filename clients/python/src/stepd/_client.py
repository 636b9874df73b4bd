"""The client of one server."""

from __future__ import annotations

import functools
import os
import ssl
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from . import _calls as calls
from ._calls import Call, Convention, Conversion, Json, NormsResult, StepResult
from ._checks import require_count, require_tls
from ._errors import StepdError, TransportError
from ._http import Transport, address_of
from ._options import Groups, Optimizer, Schedule, StepOptions, step_options
from ._retry import Pauses, Retry, Tries, retry_of
from ._shared import SharedFolder
from ._state import Source, State
from ._tensors import Array, Arrays
from ._timeout import DEFAULT_TIMEOUT, Timeout, timeout_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")


class Client:
    """Calls one server over connections that stay open. Threads may share it.

    ``url`` is http://, https:// or unix:///path/of/socket. ``timeout`` limits one
    attempt with its reply, in seconds, or is a :class:`Timeout`. ``retries`` is how
    often a call is sent again after 408, 429, 502, 503, 504, a lost connection or a
    timeout, or a :class:`Retry`; that is safe, because a step is a pure function.
    Refused connections are tried again for 30 s, and a warning in the log ``stepd``
    says so; not with 0 ``retries``. ``pool_size`` is how many idle connections are
    kept.

    ``shared_dir`` is the folder that a server on this host shares (STEPD_SHARED_DIR;
    where there are tokens, the folder of the token's name in it). Then arrays and
    states of 64 KiB or more do not go over the connection, but lie in files there,
    which the client makes and :meth:`close` removes.

    Raises ValueError for another URL, for one with a user or password in it, and for a
    token that cannot stand in a header; OSError for a folder that is not there or that
    cannot be written. Every method raises :class:`ServerError` for what the server
    refuses, :class:`TransportError` if it was not reached, and OSError if the folder
    has no room.
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
            shared_dir=shared_dir,
        )
        require_count("pool_size", pool_size)
        require_tls(ssl_context)
        self._timeout = timeout_of(timeout)
        self._retry = retry_of(retries)
        self._shared = None if shared_dir is None else SharedFolder(shared_dir)
        self._transport = Transport(address_of(url), token, ssl_context, pool_size)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the idle connections, remove the shared files, free kept memory.

        Results stay as they are.
        """
        self._transport.close()
        if self._shared is not None:
            self._shared.close()

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy has connections and shared files of its own.
        return self._again, ()

    def __repr__(self) -> str:
        return f"<stepd.Client of {self.url}>"

    def _run(self, call: Call[T], timeout: float | Timeout | None = None) -> T:
        limit = self._timeout if timeout is None else timeout_of(timeout)
        end = limit.end()
        tries = Tries(call, Pauses(self._retry, f"stepd at {self.url}", end))
        while True:
            try:
                return self._transport.send(tries.call, limit, end)
            except StepdError as error:
                pause = tries.after(error)
            time.sleep(pause)

    def step(
        self,
        optimizer: Optimizer,
        params: Arrays | None,
        grads: Arrays,
        state: State | None = None,
        *,
        timeout: float | Timeout | None = None,
        **options: Unpack[StepOptions],
    ) -> StepResult:
        """One update: new parameters and new state. The arrays given are untouched.

        ``params`` and ``grads`` are arrays of any shape by name, in float16, bfloat16,
        float32 or float64; a gradient has its parameter's shape. A parameter without
        one is left as it is. ``state`` is the last result's, none at the first step.
        The options are those of optimizer.step on the wire, :class:`StepOptions`.

        ``reply`` says what comes back: ``params`` as they are, in bfloat16 or not at
        all, ``state`` or not, and with ``cache`` whether the server keeps them. With
        ``cached``, that of an earlier result, params and state that it names are not
        sent: the caller says that they are that result's. They may be given all the
        same, and are sent then if the server has them no more. ``params`` is None only
        where ``cached`` names them.

        Raises TypeError for arrays of other dtypes and for other options, ValueError
        where params are missing and :class:`BlobMissing` for what the server has no
        more and was not given.
        """
        call = calls.step(
            optimizer, params, grads, state, step_options(options), self._shared
        )
        return self._run(call, timeout)

    def init(
        self,
        optimizer: Optimizer,
        params: Arrays,
        *,
        groups: Groups | None = None,
        master_weights: bool | None = None,
        timeout: float | Timeout | None = None,
    ) -> State:
        """The state before the first step: starting values, step 0."""
        call = calls.init(optimizer, params, groups, master_weights, self._shared)
        return self._run(call, timeout)

    def norms(
        self,
        grads: Arrays,
        params: Arrays | None = None,
        *,
        loss_scale: float | None = None,
        timeout: float | Timeout | None = None,
    ) -> NormsResult:
        """Sums of squares by tensor: phase one of exact clipping over several calls."""
        call = calls.norms(grads, params, loss_scale, self._shared)
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
        """What a step would cost: bytes in and out, state, memory, how many calls.

        ``tensors`` are arrays, of which only the shapes are sent, or
        ``{"shape": [...], "dtype": "F32"}``.
        """
        return self._run(
            calls.plan(optimizer, tensors, groups, grad_dtype, master_weights), timeout
        )

    def inspect(self, state: State, *, timeout: float | Timeout | None = None) -> Json:
        """What a state holds, by the server's reading."""
        return self._run(calls.inspect(state, self._shared), timeout)

    def convert(
        self,
        state: State | Source,
        *,
        source: Convention | None = None,
        target: Convention | None = None,
        optimizer: str | None = None,
        fill: Sequence[str] | None = None,
        timeout: float | Timeout | None = None,
    ) -> Conversion:
        """A state to or from the formats of torch, qhoptim and optax.

        ``state`` is a State, or the bytes of a safetensors file in the convention
        ``source``: ``{"format": "torch", "optimizer": "adamw", "names": [...]}``.
        ``target`` is what the result shall be in; each is stepd's own if absent. A
        state may go to another ``optimizer`` of its family, and be given the slots of
        ``fill``.
        """
        call = calls.convert(state, source, target, optimizer, fill, self._shared)
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
        """``{"lrs": [...]}`` for ``count`` steps of a schedule from step ``start``.

        0 is the first step. ``momentums`` are there where the schedule cycles them.
        """
        return self._run(calls.evaluate_schedule(schedule, lr, start, count), timeout)

    def optimizers(self, *, timeout: float | Timeout | None = None) -> list[Json]:
        """Name, title and formula of the server's optimizers."""
        return self._run(calls.optimizers(), timeout)

    def describe(self, name: str, *, timeout: float | Timeout | None = None) -> Json:
        """Formula, references, hyperparameters, slots and cost of an optimizer."""
        return self._run(calls.describe(name), timeout)

    def info(self, *, timeout: float | Timeout | None = None) -> Json:
        """Version, limits and kernels of the server."""
        return self._run(calls.info(), timeout)

    def ready(self, *, timeout: float | Timeout | None = None) -> bool:
        """Whether the server takes calls. False also if it is not reached."""
        limit = self._timeout if timeout is None else timeout_of(timeout)
        try:
            return bool(self._transport.send(calls.ready(), limit)["ready"])
        except TransportError:
            return False
