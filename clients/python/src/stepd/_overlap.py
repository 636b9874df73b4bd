"""When the calls of a step may leave, while backward still runs."""

from __future__ import annotations

from collections.abc import Hashable, Iterable


class Arrivals:
    """Counts the gradients of a bucket, and predicts which one is the last.

    Each gradient is expected as often as before the last step. So a bucket waits for
    the last backward of an accumulation, and not for parameters without gradients.
    Nothing is expected before the first step.
    """

    def __init__(self, keys: Iterable[Hashable]) -> None:
        self._counts = dict.fromkeys(keys, 0)
        self._expected: dict[Hashable, int] = {}
        #: The gradients whose count is not the expected one.
        self._missing = len(self._counts)

    def add(self, key: Hashable) -> bool:
        """Count a gradient. Return whether all have arrived as often as expected."""
        count, expected = self._counts[key], self._expected.get(key)
        self._counts[key] = count + 1
        self._missing += (count == expected) - (count + 1 == expected)
        return self._missing == 0

    def end_step(self) -> None:
        """Expect the same counts before the next step."""
        self._expected = self._counts
        self._counts = dict.fromkeys(self._expected, 0)
        self._missing = sum(count > 0 for count in self._expected.values())


class Usefulness:
    """Ends early calls, if gradients always change after the calls have left."""

    #: Early calls end after this many steps in a row that could use none of them.
    _LIMIT = 2

    def __init__(self) -> None:
        self._useless_steps = 0

    @property
    def is_given_up(self) -> bool:
        return self._useless_steps >= self._LIMIT

    def end_step(self, used: int, changed: int) -> bool:
        """Count a step. Return whether early calls end with it.

        The step could use ``used`` early calls. ``changed`` had other gradients.
        """
        if used:
            self._useless_steps = 0
        elif changed and not self.is_given_up:
            self._useless_steps += 1
            return self.is_given_up
        return False


def buckets(sizes: Iterable[int], capacity: float) -> list[list[int]]:
    """Return places in ``sizes`` by bucket, the last first, as backward reaches them.

    A bucket takes places until it has ``capacity`` or more.
    """
    result: list[list[int]] = []
    room = 0.0
    for place, size in reversed(list(enumerate(sizes))):
        if room <= 0:
            result.append([])
            room = capacity
        result[-1].append(place)
        room -= size
    return [bucket[::-1] for bucket in result]
