"""Limits on the duration of a call."""

from __future__ import annotations

import builtins
import math
from dataclasses import dataclass, fields, replace
from time import monotonic


@dataclass(frozen=True)
class Timeout:
    """Time limits in seconds. None means no limit.

    ``connect`` limits the time to connect, ``read`` the wait for the next bytes,
    ``total`` one attempt up to the last byte of its reply, and ``deadline`` the whole
    call with all attempts and the waits between them.
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
        """Return the monotonic time at which a call that starts now must end."""
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
    """Return a Timeout. A number limits each attempt, and each wait within it."""
    if isinstance(timeout, Timeout):
        return timeout
    seconds = _seconds(timeout, "timeout")
    connect = Timeout.connect if seconds is None else min(seconds, Timeout.connect or 0)
    return Timeout(connect, seconds, seconds)


def time_left(end: float) -> float:
    """Return the seconds until ``end``. Raises TimeoutError if ``end`` has passed."""
    left = end - monotonic()
    if left <= 0:
        raise builtins.TimeoutError("the time of the call is over")
    return left


class Span:
    """The clock of a call that makes several requests. It starts at construction."""

    def __init__(self, timeout: Timeout) -> None:
        self._timeout = timeout
        self.end = timeout.end()

    def remaining(self) -> Timeout:
        """Return the limits of a request that starts now."""
        if self.end == math.inf:
            return self._timeout
        # After the end, the deadline is tiny but positive, so that the request raises
        # the TimeoutError.
        return replace(self._timeout, deadline=max(self.end - monotonic(), 1e-9))


class Clock:
    """The clock of one attempt. It starts at construction."""

    def __init__(self, timeout: Timeout, end: float = math.inf) -> None:
        self._timeout = timeout
        total = math.inf if timeout.total is None else timeout.total
        self._end = min(monotonic() + total, end)

    def connecting(self) -> float | None:
        """Return the seconds left for a connection; None without a limit."""
        return self._within(self._timeout.connect)

    def next_bytes(self) -> float | None:
        """Return the seconds left for the next bytes; None without a limit."""
        return self._within(self._timeout.read)

    def whole_attempt(self) -> float | None:
        """Return the seconds left for the whole attempt; None without a limit."""
        return self._within(None)

    def _within(self, limit: float | None) -> float | None:
        if self._end == math.inf:
            return limit
        left = time_left(self._end)
        return left if limit is None else min(left, limit)
