"""HTTP over persistent connections. One thread at a time uses a connection.

http.client sends memory views without a copy and reads into a given buffer. A round
trip of 256 MiB takes 1.1 times as long as a bare socket needs; urllib3 takes 1.7 times
and httpx 10 times as long (measured).
"""

from __future__ import annotations

import builtins
import email.utils
import errno
import functools
import http.client
import io
import ipaddress
import json
import math
import os
import re
import select
import socket
import ssl
import threading
from dataclasses import dataclass
from datetime import datetime, timezone
from time import monotonic
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ._calls import Call
from ._errors import (
    ConnectError,
    ServerError,
    StepdError,
    TimeoutError,  # noqa: A004
    TransportError,
    seconds_of,
    server_error,
)
from ._memory import Pool
from ._timeout import Clock, Timeout
from ._version import __version__
from ._wire import MEDIA_TYPE, decode, problem_in

T = TypeVar("T")

#: Exceptions that decoding raises for a reply that is not stepd's.
NO_REPLY = (ValueError, KeyError, TypeError, AttributeError, RecursionError)

PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Address:
    """The address of a server: a host and port, or the path of a Unix socket."""

    url: str
    host: str
    port: int | None
    secure: bool
    prefix: str
    socket: str | None

    @property
    def is_local(self) -> bool:
        """Whether the server is on this host."""
        if self.socket is not None or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def address_of(url: str) -> Address:
    """Parse a URL. Raises ValueError unless it is http://, https:// or unix:///path.

    Raises ValueError also for a user or password: errors and logs would show them.
    """
    if not isinstance(url, str):
        raise TypeError(f"url: expected a str, found {type(url).__name__}")
    # Everything before an @ may be a password, even in a malformed URL.
    shown = re.sub(r"(?s)^([a-z]*://)?.*@", r"\1***@", url)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        # The text of the error would repeat parts of the URL, perhaps a password.
        raise ValueError(f"expected a host and a port, found {shown}") from None
    if parts.scheme == "unix" and parts.path and not parts.netloc:
        return Address(url, "localhost", None, False, "", parts.path)
    if parts.scheme not in PORTS or not host:
        raise ValueError(
            f"expected http://host, https://host or unix:///path, found {shown}"
        )
    if "@" in parts.netloc:
        raise ValueError(
            f"expected a URL without user and password, found {shown}; "
            "a token is an argument of its own"
        )
    prefix = parts.path.rstrip("/")
    return Address(url, host, port, parts.scheme == "https", prefix, None)


def token_of(token: str | None) -> str | None:
    """Check a token. The ValueError for an invalid token does not show the token."""
    if token is not None and not isinstance(token, str):
        raise TypeError(f"token: expected a str, found {type(token).__name__}")
    if token is not None and not re.fullmatch(r"[!-~]+", token):
        raise ValueError(
            "token: expected visible ASCII characters, found "
            + ("another one" if token else "none")
        )
    return token


def headers_of(call: Call[Any], token: str | None) -> dict[str, str]:
    headers = {
        "Accept": f"{MEDIA_TYPE}, application/json;q=0.9",
        "Accept-Encoding": "identity",
        "User-Agent": f"stepd-python/{__version__}",
    }
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    if call.verb == "POST":
        headers["Content-Type"] = MEDIA_TYPE
        headers["Content-Length"] = str(call.nbytes)
    return headers


def error_of(status: int, body: bytes, retry_after: str | None) -> StepdError:
    """Return the error for a reply whose status is not 2xx."""
    seconds = _seconds_until(retry_after or "")
    try:
        error = server_error(problem_in(body))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        # The body comes from a proxy, not from the server.
        text = body[:200].decode(errors="replace")
        message = f"HTTP {status}, which is no reply of stepd: {text}"
        return TransportError(message, status, seconds)
    if error.retry_after is None:
        error.retry_after = seconds
    return error


def _seconds_until(retry_after: str) -> float | None:
    """Return the seconds of a Retry-After: a number or an HTTP date. Otherwise None."""
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", retry_after.strip()):
        return seconds_of(float(retry_after))
    try:
        date = email.utils.parsedate_to_datetime(retry_after)
    except (ValueError, TypeError, OverflowError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=timezone.utc)
    return max(0.0, (date - datetime.now(timezone.utc)).total_seconds())


def reply_of(call: Call[T], reply: Any) -> T:
    """Return a call's result. Raises ValueError if the decoded reply is not a map."""
    if not isinstance(reply, dict):
        raise ValueError(f"expected a map, found {type(reply).__name__}")
    return call.read(reply)


class _Connection(http.client.HTTPConnection):
    """A connection that measures how long the server takes to accept it."""

    def connect(self) -> None:
        started = monotonic()
        super().connect()
        self.connecting_took = monotonic() - started


class _SecureConnection(http.client.HTTPSConnection, _Connection):
    """A TLS connection. Its base class connects, then TLS begins."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class _Timed(io.RawIOBase):
    """The bytes of a connection, as a file. The clock limits each read.

    A timeout of the socket would start anew with every byte that the server sends.
    """

    def __init__(self, sock: socket.socket, clock: Clock) -> None:
        self._sock = sock
        self._clock = clock
        self._bytes = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(self._clock.next_bytes())
        return self._bytes.readinto(buffer)

    def close(self) -> None:
        self._bytes.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, clock: Clock, sock: socket.socket, *given: Any, **more: Any):
        super().__init__(sock, *given, **more)
        self.fp.close()
        self.fp = io.BufferedReader(_Timed(sock, clock))


def _send_all(sock: socket.socket, part: memoryview, clock: Clock) -> None:
    sent = 0
    while sent < part.nbytes:
        sock.settimeout(clock.next_bytes())
        sent += sock.send(part[sent:])


def is_refusal(error: OSError) -> bool:
    """Return whether the connection was refused or a Unix socket's file is missing."""
    return error.errno in (errno.ECONNREFUSED, errno.ENOENT)


class Transport:
    """Sends calls to one server. Each thread uses a connection of its own."""

    def __init__(
        self,
        address: Address,
        token: str | None,
        ssl_context: ssl.SSLContext | None,
        pool_size: int,
    ) -> None:
        self.address = address
        self._token = token_of(token)
        self._ssl = ssl_context
        if address.secure and ssl_context is None:
            self._ssl = ssl.create_default_context()
        self._pool_size = pool_size
        #: The shortest time in which the server accepted a connection; 0 if unknown.
        self.round_trip = 0.0
        self.memory = Pool()
        self._idle: list[http.client.HTTPConnection] = []
        self._is_closed = False
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
            # A part of a failed step may still be under way, and ends after this.
            self._is_closed = True
        for connection in idle:
            connection.close()
        self.memory.close()

    def send(self, call: Call[T], timeout: Timeout, end: float = math.inf) -> T:
        """Make one attempt, which ends by ``end``. Raises StepdError."""
        url = self.address.url
        connection: http.client.HTTPConnection | None = None
        try:
            clock = Clock(timeout, end)
            connection = self._take() or self._connect(clock)
            result = self._exchange(connection, call, clock)
        except builtins.TimeoutError as error:
            self._drop(connection)
            raise TimeoutError(f"stepd at {url} did not answer in time") from error
        except (OSError, EOFError, http.client.HTTPException) as error:
            self._drop(connection)
            raise ConnectError(
                f"stepd at {url} was not reached: {error!r}",
                refused=isinstance(error, OSError) and is_refusal(error),
            ) from error
        except ServerError:
            self._return_idle(connection)
            raise
        except BaseException:
            self._drop(connection)
            raise
        self._return_idle(connection)
        return result

    def _exchange(
        self, connection: http.client.HTTPConnection, call: Call[T], clock: Clock
    ) -> T:
        target = self.address.prefix + call.path
        connection.response_class = functools.partial(_Response, clock)  # type: ignore[assignment]
        connection.sock.settimeout(clock.next_bytes())
        connection.putrequest(call.verb, target, skip_accept_encoding=True)
        for name, value in headers_of(call, self._token).items():
            connection.putheader(name, value)
        try:
            connection.endheaders()
            for part in call.body:
                _send_all(connection.sock, part, clock)
        except (BrokenPipeError, ConnectionResetError):
            # A proxy may refuse before it has read the body; its reply states the
            # reason.
            response = connection.getresponse()
            body = response.read()
            if response.status >= 300:
                connection.close()
                after = response.getheader("Retry-After")
                raise error_of(response.status, body, after) from None
            raise
        return self._reply(connection.getresponse(), call)

    def _reply(self, response: http.client.HTTPResponse, call: Call[T]) -> T:
        if response.status != 200:
            body = response.read()
            after = response.getheader("Retry-After")
            raise error_of(response.status, body, after)
        try:
            return reply_of(call, _decoded(response, self.memory))
        except NO_REPLY as error:
            raise TransportError(f"the reply is none of stepd: {error}") from error

    def _connect(self, clock: Clock) -> http.client.HTTPConnection:
        at = self.address
        self._is_closed = False
        timeout = clock.connecting()
        connection: http.client.HTTPConnection
        if at.socket is not None:
            connection = _UnixConnection(at.socket, timeout)
        elif at.secure:
            connection = _SecureConnection(
                at.host, at.port, timeout=timeout, context=self._ssl
            )
        else:
            connection = _Connection(at.host, at.port, timeout=timeout)
        try:
            connection.connect()
            took = getattr(connection, "connecting_took", 0.0)
            self.round_trip = min(took, self.round_trip or took)
        except BaseException:
            connection.close()
            raise
        return connection

    def _take(self) -> http.client.HTTPConnection | None:
        """Take an idle connection. Skips readable connections, which the server has
        closed.
        """
        while True:
            with self._lock:
                if self._pid != os.getpid():
                    # A forked child must not use its parent's connections.
                    self._idle, self._pid = [], os.getpid()
                if not self._idle:
                    return None
                connection = self._idle.pop()
            if connection.sock is not None and not _is_readable(connection.sock):
                return connection
            connection.close()

    def _return_idle(self, connection: http.client.HTTPConnection | None) -> None:
        """Keep an open connection for the next call, if the pool has room."""
        if connection is None:
            return
        with self._lock:
            has_room = not self._is_closed and len(self._idle) < self._pool_size
            if connection.sock is not None and has_room:
                self._idle.append(connection)
                return
        connection.close()

    def _drop(self, connection: http.client.HTTPConnection | None) -> None:
        if connection is not None:
            connection.close()


def _decoded(response: http.client.HTTPResponse, memory: Pool) -> Any:
    if not response.getheader("Content-Type", "").startswith(MEDIA_TYPE):
        return json.loads(response.read())
    if response.length is None:
        raise ValueError("the reply does not say its length")
    reader = decode(response.length, memory)
    try:
        buffer = next(reader)
        while True:
            buffer = reader.send(response.readinto(buffer))
    except StopIteration as end:
        response.read()  # Reading to the end frees the connection.
        return end.value


def _is_readable(sock: socket.socket) -> bool:
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        return bool(poll.poll(0))
    return bool(select.select([sock], [], [], 0)[0])
