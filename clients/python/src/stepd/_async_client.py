"""The client for asyncio.

aiohttp is the one maintained library that sends memory views, streams replies, keeps
connections and supports Unix sockets. The client copies each received chunk once, into
the memory of its blob.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import functools
import json
import math
import os
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from time import monotonic
from types import SimpleNamespace, TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import aiohttp

from . import _calls as calls
from ._calls import Call, Convention, Conversion, Json, NormsResult, StepResult
from ._checks import require_count, require_tls
from ._errors import (
    ConnectError,
    StepdError,
    TimeoutError,  # noqa: A004
    TransportError,
)
from ._http import (
    NO_REPLY,
    address_of,
    error_of,
    headers_of,
    is_refusal,
    reply_of,
    token_of,
)
from ._memory import Pool
from ._options import Groups, Optimizer, Schedule, Slices, StepOptions, step_options
from ._parts import (
    CONNECTIONS,
    FIRST_PART_BYTES,
    Part,
    Splitter,
    is_split,
    run_each,
)
from ._reduce import AnyUpdate, ReduceOptions, ReduceResult
from ._retry import Attempts, Backoff, Retry, retry_of
from ._shared import SharedFolder
from ._state import Source, State
from ._tensors import Array, Arrays
from ._timeout import DEFAULT_TIMEOUT, Clock, Span, Timeout, timeout_of
from ._wire import MEDIA_TYPE, decode

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

T = TypeVar("T")

#: The client sends a part in pieces, and awaits the socket after each piece. The event
#: loop may copy the bytes that the socket does not accept at once.
_PIECE_BYTES = 2**20

_READ_AHEAD_BYTES = 2**20


class AsyncClient:
    """Calls one server from an event loop. Takes the arguments of :class:`Client`.

    A step in parts is cut and joined in threads, so that the loop goes on. With
    ``shared_dir``, copies to the folder block the loop: about 10 ms for 64 MiB.

    Raises the errors of :class:`Client`.
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
        self._address = address_of(url)
        if connections is None:
            connections = 1 if self._address.is_local else CONNECTIONS
        require_count("connections", connections)
        self._connections = connections
        #: The size of a part that the last steps suggest.
        self._part_bytes = FIRST_PART_BYTES
        #: The shortest time of opening a connection; 0 if unknown.
        self._round_trip = 0.0
        self._token = token_of(token)
        require_count("pool_size", pool_size)
        require_tls(ssl_context)
        self._timeout = timeout_of(timeout)
        self._retry = retry_of(retries)
        self._shared = None if shared_dir is None else SharedFolder(shared_dir)
        self._ssl = ssl_context
        self._pool_size = pool_size
        self._memory = Pool()
        #: A connection works only in the event loop that opened it.
        self._sessions: dict[asyncio.AbstractEventLoop, aiohttp.ClientSession] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close this event loop's connections; remove files as Client.close does."""
        await self._forget_ended_loops()
        session = self._sessions.pop(asyncio.get_running_loop(), None)
        if session is not None:
            await session.close()
        self._memory.close()
        if self._shared is not None:
            self._shared.close()

    async def _forget_ended_loops(self) -> None:
        for loop in [loop for loop in self._sessions if loop.is_closed()]:
            session = self._sessions.pop(loop, None)
            # The loop has ended, so garbage collection closes the sockets.
            with contextlib.suppress(RuntimeError):
                if session is not None:
                    await session.close()

    def __reduce__(self) -> tuple[Any, ...]:
        # A copied or unpickled client opens its own connections and shared files.
        return self._again, ()

    def __repr__(self) -> str:
        return f"<stepd.AsyncClient of {self.url}>"

    async def _open(self) -> aiohttp.ClientSession:
        await self._forget_ended_loops()
        loop = asyncio.get_running_loop()
        if loop not in self._sessions:
            connector: aiohttp.BaseConnector
            if self._address.socket is not None:
                connector = aiohttp.UnixConnector(
                    self._address.socket, limit=self._pool_size
                )
            else:
                connector = aiohttp.TCPConnector(
                    limit=self._pool_size, ssl=self._ssl or True
                )
            self._sessions[loop] = aiohttp.ClientSession(
                connector=connector,
                read_bufsize=_READ_AHEAD_BYTES,
                cookie_jar=aiohttp.DummyCookieJar(),
                trace_configs=[self._trace()],
            )
        return self._sessions[loop]

    def _trace(self) -> aiohttp.TraceConfig:
        """Measure how long the server takes to accept a connection."""

        async def start(_: object, context: SimpleNamespace, __: object) -> None:
            context.connecting_since = monotonic()

        async def end(_: object, context: SimpleNamespace, __: object) -> None:
            took = monotonic() - context.connecting_since
            self._round_trip = min(took, self._round_trip or took)

        trace = aiohttp.TraceConfig()
        trace.on_connection_create_start.append(start)
        # The name is resolved before the client connects.
        trace.on_dns_resolvehost_end.append(start)
        trace.on_connection_create_end.append(end)
        return trace

    async def _run(self, call: Call[T], timeout: float | Timeout | None = None) -> T:
        limit = self._timeout if timeout is None else timeout_of(timeout)
        end = limit.end()
        attempts = Attempts(call, Backoff(self._retry, f"stepd at {self.url}", end))
        while True:
            try:
                return await self._send(attempts.call, limit, end)
            except StepdError as error:
                pause = attempts.delay_after(error)
            await asyncio.sleep(pause)

    async def _send(self, call: Call[T], timeout: Timeout, end: float = math.inf) -> T:
        at = self._address
        base = "http://localhost" if at.socket is not None else at.url.rstrip("/")
        try:
            limits = aiohttp.ClientTimeout(
                total=Clock(timeout, end).whole_attempt(),
                sock_connect=timeout.connect,
                sock_read=timeout.read,
            )
            session = await self._open()
            async with session.request(
                call.verb,
                base + call.path,
                headers=headers_of(call, self._token),
                data=_pieces(call.body) if call.body else None,
                timeout=limits,
                allow_redirects=False,
            ) as response:
                return await _reply(response, call, self._memory)
        except (asyncio.TimeoutError, builtins.TimeoutError) as error:
            raise TimeoutError(f"stepd at {self.url} did not answer in time") from error
        except (aiohttp.ClientError, OSError, EOFError) as error:
            if isinstance(error, StepdError):
                raise
            raise ConnectError(
                f"stepd at {self.url} was not reached: {error!r}",
                refused=isinstance(error, aiohttp.ClientConnectorError)
                and is_refusal(error),
            ) from error

    async def step(
        self,
        optimizer: Optimizer,
        params: Arrays | None,
        grads: Arrays | None,
        state: State | None = None,
        *,
        timeout: float | Timeout | None = None,
        **options: Unpack[StepOptions],
    ) -> StepResult:
        """Run one step, as :meth:`Client.step` does."""
        options = step_options(options)
        connections = self._connections if self._shared is None else 1
        if grads is not None and is_split(
            self.url, connections, optimizer, params, grads, state, options
        ):
            calls.require_step(optimizer, params, grads, state, options)
            limit = self._timeout if timeout is None else timeout_of(timeout)
            parts = _Parts(self, asyncio.get_running_loop())
            return await parts.step(
                optimizer, params, grads, state, options, Span(limit)
            )
        call = calls.step(optimizer, params, grads, state, options, self._shared)
        result = await self._run(call, timeout)
        ledger = options.get("ledger")
        if ledger is not None:
            await asyncio.to_thread(ledger.append, result)
        return result

    async def init(
        self,
        optimizer: Optimizer,
        params: Arrays,
        *,
        groups: Groups | None = None,
        master_weights: bool | None = None,
        slices: Slices | None = None,
        timeout: float | Timeout | None = None,
    ) -> State:
        """Return the state before the first step, as :meth:`Client.init` does."""
        return await self._run(
            calls.init(optimizer, params, groups, master_weights, slices, self._shared),
            timeout,
        )

    async def average(
        self,
        optimizer: Optimizer,
        params: Arrays,
        state: State,
        *,
        groups: Groups | None = None,
        timeout: float | Timeout | None = None,
    ) -> dict[str, Any]:
        """Return the averaged parameters, as :meth:`Client.average` does."""
        call = calls.average(optimizer, params, state, groups, self._shared)
        return await self._run(call, timeout)

    async def norms(
        self,
        grads: Arrays,
        params: Arrays | None = None,
        *,
        loss_scale: float | None = None,
        slices: Slices | None = None,
        keep: bool = False,
        timeout: float | Timeout | None = None,
    ) -> NormsResult:
        """Return the sums of squares of each tensor, as :meth:`Client.norms` does."""
        call = calls.norms(grads, params, loss_scale, slices, self._shared, keep=keep)
        return await self._run(call, timeout)

    async def reduce(
        self,
        updates: Sequence[AnyUpdate],
        params: Arrays | None = None,
        *,
        timeout: float | Timeout | None = None,
        **options: Unpack[ReduceOptions],
    ) -> ReduceResult:
        """Combine the updates of several workers, as :meth:`Client.reduce` does."""
        call = calls.reduce(updates, params, options, self._shared)
        return await self._run(call, timeout)

    async def distances(
        self,
        updates: Sequence[AnyUpdate],
        *,
        earlier: Array | None = None,
        timeout: float | Timeout | None = None,
    ) -> Array:
        """Return the squared distances, as :meth:`Client.distances` does."""
        call = calls.distances(updates, earlier, self._shared)
        return await self._run(call, timeout)

    async def plan(
        self,
        optimizer: Optimizer,
        tensors: Mapping[str, Array | Mapping[str, Any]],
        *,
        groups: Groups | None = None,
        grad_dtype: str | None = None,
        master_weights: bool | None = None,
        timeout: float | Timeout | None = None,
    ) -> Json:
        """Return the cost of a step, as :meth:`Client.plan` does."""
        return await self._run(
            calls.plan(optimizer, tensors, groups, grad_dtype, master_weights), timeout
        )

    async def inspect(
        self, state: State, *, timeout: float | Timeout | None = None
    ) -> Json:
        """Return the contents of a state, as the server reads it."""
        return await self._run(calls.inspect(state, self._shared), timeout)

    async def convert(
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
        """Convert a state to or from other formats, as :meth:`Client.convert` does."""
        return await self._run(
            calls.convert(
                state, source, target, optimizer, fill, state_dtype, self._shared
            ),
            timeout,
        )

    async def evaluate_schedule(
        self,
        schedule: Schedule,
        *,
        lr: float | None = None,
        start: int | None = None,
        count: int | None = None,
        timeout: float | Timeout | None = None,
    ) -> Json:
        """Return a schedule's learning rates: :meth:`Client.evaluate_schedule`."""
        return await self._run(
            calls.evaluate_schedule(schedule, lr, start, count), timeout
        )

    async def optimizers(self, *, timeout: float | Timeout | None = None) -> list[Json]:
        """Return name, title and formula of each optimizer of the server."""
        return await self._run(calls.optimizers(), timeout)

    async def describe(
        self, name: str, *, timeout: float | Timeout | None = None
    ) -> Json:
        """Return an optimizer's formula, papers, hyperparameters, slots and cost."""
        return await self._run(calls.describe(name), timeout)

    async def info(self, *, timeout: float | Timeout | None = None) -> Json:
        """Return the server's version, limits and kernels."""
        return await self._run(calls.info(), timeout)

    async def ready(self, *, timeout: float | Timeout | None = None) -> bool:
        """Return whether the server can be reached and accepts calls."""
        limit = self._timeout if timeout is None else timeout_of(timeout)
        try:
            return bool((await self._send(calls.ready(), limit))["ready"])
        except TransportError:
            return False


class _Parts(Splitter):
    """Takes one step of an AsyncClient in parts, in threads beside its event loop."""

    def __init__(self, client: AsyncClient, loop: asyncio.AbstractEventLoop) -> None:
        self.url = client.url
        self._client = client
        self._loop = loop
        self._connections = client._connections
        self._part_bytes = client._part_bytes
        self._threads = ThreadPoolExecutor(client._connections, "stepd")
        self._lock = threading.Lock()
        self._under_way: set[Future[Any]] = set()
        self._is_cancelled = False

    async def step(self, *given: Any) -> StepResult:
        whole = asyncio.ensure_future(asyncio.to_thread(self._step_in_parts, *given))
        try:
            result = await asyncio.shield(whole)
        except asyncio.CancelledError:
            self._cancel()
            # The threads read the caller's arrays until they end.
            with contextlib.suppress(Exception, asyncio.CancelledError):
                await whole
            raise
        finally:
            # After an error, other parts may be under way.
            self._cancel()
            self._threads.shutdown(wait=False)
        self._client._part_bytes = self._part_bytes
        return result

    def _cancel(self) -> None:
        with self._lock:
            self._is_cancelled = True
            under_way = list(self._under_way)
        for future in under_way:
            future.cancel()

    def _wait(self, call: Coroutine[Any, Any, T]) -> T:
        """Run a call on the event loop, and wait for it in this thread."""
        with self._lock:
            if self._is_cancelled:
                call.close()
                raise CancelledError
            future = asyncio.run_coroutine_threadsafe(call, self._loop)
            self._under_way.add(future)
        try:
            return future.result()
        finally:
            with self._lock:
                self._under_way.discard(future)

    def _step_once(
        self,
        optimizer: Optimizer,
        params: Arrays | None,
        grads: Arrays | None,
        state: State | None,
        options: StepOptions,
        timeout: float | Timeout | None,
    ) -> StepResult:
        call = calls.step(optimizer, params, grads, state, options)
        return self._wait(self._client._run(call, timeout))

    def norms(self, *given: Any, **options: Any) -> NormsResult:
        return self._wait(self._client.norms(*given, **options))

    def _each(
        self,
        parts: Sequence[Part],
        call: Callable[[Part], Callable[[_Parts], T]],
        span: Span,
    ) -> list[T]:
        return run_each(self._threads, parts, lambda part: call(part)(self))

    def _pool_of_results(self) -> Pool:
        return self._client._memory

    def _round_trip(self) -> float:
        return self._client._round_trip


async def _pieces(body: list[memoryview]) -> AsyncIterator[memoryview]:
    for part in body:
        for start in range(0, part.nbytes, _PIECE_BYTES):
            yield part[start : start + _PIECE_BYTES]


async def _reply(response: aiohttp.ClientResponse, call: Call[T], memory: Pool) -> T:
    if response.status != 200:
        after = response.headers.get("Retry-After")
        raise error_of(response.status, await response.read(), after)
    try:
        return reply_of(call, await _decoded(response, memory))
    except NO_REPLY as error:
        raise TransportError(f"the reply is none of stepd: {error}") from error


async def _decoded(response: aiohttp.ClientResponse, memory: Pool) -> Any:
    if response.content_type != MEDIA_TYPE:
        return json.loads(await response.read())
    if response.content_length is None:
        raise ValueError("the reply does not say its length")
    reader = decode(response.content_length, memory)
    try:
        buffer = next(reader)
        while True:
            chunk = await response.content.read(buffer.nbytes)
            buffer[: len(chunk)] = chunk
            buffer = reader.send(len(chunk))
    except StopIteration as end:
        return end.value
