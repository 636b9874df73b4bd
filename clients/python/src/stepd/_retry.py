"""Decides whether to retry a call, and how long to wait before each retry."""

from __future__ import annotations

import logging
import math
import random
from dataclasses import dataclass, fields
from time import monotonic
from typing import Generic, TypeVar

from ._calls import Call
from ._errors import ConnectError, ServerError, StepdError, TransportError

T = TypeVar("T")

logger = logging.getLogger("stepd")

#: After one of these statuses, the same call may succeed.
RETRYABLE_STATUSES = frozenset({408, 429, 502, 503, 504})

#: While connections are refused, the client waits at most this many seconds.
_LONGEST_REFUSED_PAUSE = 1.0


def is_retryable(error: StepdError) -> bool:
    """Return whether the same server may accept the same call later.

    A retry is always safe, because a step is a pure function.
    """
    if isinstance(error, TransportError):
        return error.status is None or error.status in RETRYABLE_STATUSES
    return isinstance(error, ServerError) and error.status in RETRYABLE_STATUSES


def is_server_fault(error: StepdError) -> bool:
    """Return whether the server is at fault, so that another may accept the call.

    Every reply that is not stepd's, such as another service's 404, is such a fault.
    """
    if isinstance(error, TransportError):
        return True
    return isinstance(error, ServerError) and error.status in RETRYABLE_STATUSES | {500}


def is_refused(error: StepdError) -> bool:
    """Return whether nothing listens at the address, as during a restart."""
    return isinstance(error, ConnectError) and error.refused


@dataclass(frozen=True)
class Retry:
    """The number of retries of a call, and the waits between the attempts.

    The wait doubles from ``first`` to ``longest`` seconds, minus a random part of up to
    a half. The client waits at least the server's Retry-After, but at most
    ``longest_asked`` seconds.

    Refused connections do not count as attempts. For ``refused`` seconds the client
    retries them at least once a second, to bridge a restart of the server.
    """

    attempts: int = 4
    first: float = 0.05
    longest: float = 5.0
    longest_asked: float = 60.0
    refused: float = 30.0

    def __post_init__(self) -> None:
        _require_attempts(self.attempts, "attempts", "")
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not is_number or not value >= 0:
                raise (ValueError if is_number else TypeError)(
                    f"{field.name}: expected seconds from 0 on, found {value!r}"
                )

    def pause(self, attempt: int, error: StepdError) -> float | None:
        """Return the seconds to wait after attempt ``attempt``; None to give up."""
        if attempt >= self.attempts:
            return None
        pause = _exponential(self.first, attempt, self.longest)
        retry_after: float | None = getattr(error, "retry_after", None)
        return (
            pause
            if retry_after is None
            else min(retry_after, self.longest_asked) + pause
        )


def _exponential(first: float, attempt: int, longest: float) -> float:
    return min(first * 2.0 ** min(attempt, 64), longest) * random.uniform(0.5, 1)


def _require_attempts(value: object, name: str, other: str) -> None:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or value < 0:  # type: ignore[operator]
        raise (ValueError if is_whole else TypeError)(
            f"{name}: expected a whole number from 0 on{other}, found {value!r}"
        )


def retry_of(retries: int | Retry) -> Retry:
    """Return a Retry with that many attempts; 0 turns every retry off."""
    if isinstance(retries, Retry):
        return retries
    _require_attempts(retries, "retries", " or a stepd.Retry")
    return Retry(retries) if retries else Retry(0, refused=0)


class Backoff:
    """The waits of one call, which ends at ``end`` on the monotonic clock."""

    def __init__(self, retry: Retry, server: str, end: float = math.inf) -> None:
        self._retry = retry
        self._server = server
        self._end = end
        self._attempt = 0
        self._refusals = 0
        self._refused_until = 0.0

    def delay_after(self, error: StepdError) -> float | None:
        """Return the seconds until the next attempt; None to give up."""
        now = monotonic()
        if is_refused(error):
            pause = self._refused_delay(now)
        else:
            self._refusals = 0
            pause = self._retry.pause(self._attempt, error)
            self._attempt += 1
        return None if pause is None or now + pause >= self._end else pause

    def _refused_delay(self, now: float) -> float | None:
        if self._refusals == 0:
            self._refused_until = now + self._retry.refused
            if self._retry.refused:
                logger.warning(
                    "%s refuses connections; trying again for %g s",
                    self._server,
                    self._retry.refused,
                )
        left = self._refused_until - now
        if left <= 0:
            return None
        first = max(self._retry.first, 0.01)
        pause = _exponential(first, self._refusals, _LONGEST_REFUSED_PAUSE)
        self._refusals += 1
        return min(pause, left)


class Attempts(Generic[T]):
    """The attempts of one call. The call to send may change between attempts."""

    def __init__(self, call: Call[T], backoff: Backoff) -> None:
        #: The call to send next.
        self.call = call
        self._backoff = backoff

    def delay_after(self, error: StepdError) -> float:
        """Return the seconds until the next attempt. Raises the error to give up."""
        replacement = self.call.replacement(error)
        if replacement is not None:
            self.call = replacement
            return 0
        pause = self._backoff.delay_after(error) if is_retryable(error) else None
        if pause is None:
            raise error
        if self.call.with_new_files is not None and isinstance(error, TransportError):
            self.call = self.call.with_new_files()
        return pause
