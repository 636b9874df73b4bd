"""How long a call may take."""

from __future__ import annotations

import builtins
import math
from dataclasses import dataclass, fields, replace
from time import monotonic


@dataclass(frozen=True)
class Timeout:
    """Limits in seconds; None is no limit.

    ``connect`` limits the making of a connection, ``read`` a silence of the server, and
    ``total`` one attempt, up to the last byte of its reply. ``deadline`` limits the
    whole call, with all attempts and the pauses between them.
    """

    connect: float | None = 5.0
    read: float | None = 60.0
    total: float | None = 300.0
    deadline: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                object.__setattr__(self, field.name, _seconds(value, field.name))

    def end(self) -> float:
        """When a call that starts now has to end, on the monotonic clock."""
        return math.inf if self.deadline is None else monotonic() + self.deadline


def _seconds(value: float, name: str) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not value > 0:
        expected = "seconds (a number above 0)"
        if name == "timeout":
            expected += " or a stepd.Timeout"
        raise (ValueError if is_number else TypeError)(
            f"{name}: expected {expected}, found {value!r}"
        )
    return None if value == math.inf else float(value)


DEFAULT_TIMEOUT = Timeout()


def timeout_of(timeout: float | Timeout) -> Timeout:
    """Limits of one number: it is that of an attempt, and so of every silence."""
    if isinstance(timeout, Timeout):
        return timeout
    seconds = _seconds(timeout, "timeout")
    connect = Timeout.connect if seconds is None else min(seconds, Timeout.connect or 0)
    return Timeout(connect, seconds, seconds)


def time_left(end: float) -> float:
    """Seconds until then. Raises TimeoutError after it."""
    left = end - monotonic()
    if left <= 0:
        raise builtins.TimeoutError("the time of the call is over")
    return left


class Span:
    """The time of a call that makes several requests. It starts now."""

    def __init__(self, timeout: Timeout) -> None:
        self._timeout = timeout
        self.end = timeout.end()

    def rest(self) -> Timeout:
        """The limits of a request that is made now."""
        if self.end == math.inf:
            return self._timeout
        # What is over is over for the request too, which raises the error.
        return replace(self._timeout, deadline=max(self.end - monotonic(), 1e-9))


class Clock:
    """What is left of the time of one attempt, which starts now."""

    def __init__(self, timeout: Timeout, end: float = math.inf) -> None:
        self._timeout = timeout
        total = math.inf if timeout.total is None else timeout.total
        self._end = min(monotonic() + total, end)

    def connecting(self) -> float | None:
        """Seconds for a connection; None without a limit."""
        return self._within(self._timeout.connect)

    def silence(self) -> float | None:
        """Seconds for the next bytes; None without a limit."""
        return self._within(self._timeout.read)

    def whole(self) -> float | None:
        """Seconds for all of the rest; None without a limit."""
        return self._within(None)

    def _within(self, limit: float | None) -> float | None:
        if self._end == math.inf:
            return limit
        left = time_left(self._end)
        return left if limit is None else min(left, limit)
