"""When a call is sent again, and when not."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Generic, TypeVar

from ._calls import Call
from ._errors import ServerError, StepdError, TransportError

T = TypeVar("T")

#: Statuses after which the same call may succeed.
PASSING = frozenset({429, 502, 503, 504})


def is_passing(error: StepdError) -> bool:
    """Whether the same server may take the same call later.

    A step is a pure function, so to send it again is always safe.
    """
    if isinstance(error, TransportError):
        return error.status is None or error.status in PASSING
    return isinstance(error, ServerError) and error.status in PASSING


def is_of_server(error: StepdError) -> bool:
    """Whether another server may take the same call: the call itself is not wrong.

    So it is with all that no stepd said, such as the 404 of another service there.
    """
    if isinstance(error, TransportError):
        return True
    return isinstance(error, ServerError) and error.status in PASSING | {500}


@dataclass(frozen=True)
class Retry:
    """How often a call is sent again, and after which pauses.

    The pause doubles from ``first`` to ``longest`` seconds and is shortened at random
    by up to a half. What the server says (Retry-After) is the least, but no more than
    ``longest_asked`` seconds.
    """

    attempts: int = 4
    first: float = 0.05
    longest: float = 5.0
    longest_asked: float = 60.0

    def pause(self, attempt: int, error: StepdError) -> float | None:
        """Seconds before the attempt after ``attempt`` (from 0); None to give up."""
        if attempt >= self.attempts:
            return None
        pause = min(self.first * 2.0**attempt, self.longest) * random.uniform(0.5, 1)
        asked: float | None = getattr(error, "retry_after", None)
        return pause if asked is None else min(asked, self.longest_asked) + pause


def retry_of(retries: int | Retry) -> Retry:
    return retries if isinstance(retries, Retry) else Retry(attempts=retries)


class Tries(Generic[T]):
    """What is sent for one call until it succeeds or is given up."""

    def __init__(self, call: Call[T], retry: Retry) -> None:
        #: What to send next.
        self.call = call
        self._retry = retry
        self._attempt = 0

    def after(self, error: StepdError) -> float:
        """Seconds until the next is to be sent. Raises the error to give up."""
        instead = self.call.instead(error)
        if instead is not None:
            self.call = instead
            return 0
        pause = self._retry.pause(self._attempt, error)
        if pause is None or not is_passing(error):
            raise error
        self._attempt += 1
        if self.call.again is not None and isinstance(error, TransportError):
            self.call = self.call.again()
        return pause
