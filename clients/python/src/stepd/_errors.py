"""The tree of errors.

    StepdError
      TransportError      the server was not reached, or the reply is not stepd's
        ConnectError      the connection failed or broke
        TimeoutError      no connection or no bytes in time
      ServerError         the server reported an error; subclasses in _error_table.py

After any error, params and state are unchanged.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Mapping
from typing import Any, ClassVar


class StepdError(Exception):
    """Base class of all errors of stepd's clients."""


class TransportError(StepdError):
    """The server did not answer.

    If a proxy answered in its place, ``status`` and ``retry_after`` (seconds) are set.
    """

    def __init__(
        self,
        message: str,
        status: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class ConnectError(TransportError, ConnectionError):
    """The connection failed or broke.

    ``refused`` is true if nothing listens at the address.
    """

    def __init__(
        self,
        message: str,
        status: int | None = None,
        retry_after: float | None = None,
        *,
        refused: bool = False,
    ) -> None:
        super().__init__(message, status, retry_after)
        self.refused = refused


class TimeoutError(TransportError, builtins.TimeoutError):  # noqa: A001
    """The connection, or the next bytes of the reply, took too long."""


class ServerError(StepdError):
    """An error that the server reported.

    On the wire:
    {"type": "urn:stepd:error:INVALID_PARAMS", "title": "...", "status": 400,
     "detail": "/optimizer/lr: expected ...", "code": -32602, "name": "INVALID_PARAMS",
     "field": "/optimizer/lr", "expected": "...", "found": "...", "request_id": "..."}
    """

    #: The error's name in the server's table of errors, such as INVALID_PARAMS.
    name: str = "UNKNOWN"
    #: The error's JSON-RPC code.
    code: int = 0
    #: The error's HTTP status.
    status: int = 0

    #: All error classes by name.
    by_name: ClassVar[dict[str, type[ServerError]]] = {}

    def __init_subclass__(cls) -> None:
        ServerError.by_name[cls.name] = cls

    def __init__(self, problem: Mapping[str, Any]) -> None:
        super().__init__(problem.get("detail") or problem.get("title") or self.name)
        self.name = problem["name"]
        self.code = problem.get("code", self.code)
        self.status = problem.get("status", self.status)
        #: JSON pointer to the invalid field of the request.
        self.field: str | None = problem.get("field")
        self.expected: str | None = problem.get("expected")
        self.found: str | None = problem.get("found")
        #: The first few of the tensors concerned.
        self.tensors: tuple[str, ...] = tuple(problem.get("tensors", ()))
        #: Seconds to wait before a retry.
        self.retry_after: float | None = seconds_of(problem.get("retry_after"))
        #: The request's id in the server's log.
        self.request_id: str | None = problem.get("request_id")

    def problem(self) -> dict[str, Any]:
        """Return the problem details from which the error was made."""
        fields = ("name", "code", "status", "field", "expected", "found")
        more = ("tensors", "retry_after", "request_id")
        return {
            "detail": str(self),
            **{key: getattr(self, key) for key in fields + more},
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problem(),)


def server_error(problem: Any) -> ServerError:
    """Return the error for problem details. An unknown name gives a plain ServerError.

    Raises ValueError, KeyError or TypeError unless the problem details are stepd's.
    """
    name = problem["name"]
    if problem["type"] != f"urn:stepd:error:{name}":
        raise ValueError(f"expected a problem of stepd, found {problem['type']!r}")
    return ServerError.by_name.get(name, ServerError)(problem)


def seconds_of(value: Any) -> float | None:
    """Return the value if it is a finite number of seconds from 0 on, else None."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number and math.isfinite(value) and value >= 0 else None
