"""Memory that is used again once nothing views it.

New memory costs more than a step does with it: its pages are cleared by the system at
the first touch. So a pool keeps what came back, and gives it out again. What is given
out comes back by itself, when the last array or memory view of it is gone, however far
that one is from the first: numpy's views hold on to what they are views of.
"""

from __future__ import annotations

import os
import weakref
from time import monotonic

import numpy as np

#: Below this, memory is not worth keeping: the allocator does that by itself.
KEPT_BYTES = 2**20

#: Seconds after which what nobody needed is given back to the system.
_KEPT_SECONDS = 60.0

#: How often this process has forked.
_forks = 0


def _count_fork() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_count_fork)


class Region:
    """Memory that has one owner at a time."""

    def __init__(self, memory: memoryview) -> None:
        self.memory = memory
        #: Whether the pool takes it back.
        self.is_reusable = True
        #: When it came back to the pool.
        self.since = 0.0
        self._forks = _forks

    @property
    def is_stale(self) -> bool:
        """Whether it is time to let it go.

        After a fork another process may view it, and its views are not known here.
        """
        return self._forks != _forks or monotonic() - self.since > _KEPT_SECONDS


class Pool:
    """Gives out memory, and again what came back. Threads may share it.

    It holds no more than was in use at once, and of that what was used of late.
    """

    def __init__(self) -> None:
        # There is no lock, because regions come back wherever the last view happens to
        # end, and that may be in the middle of any method here. Each step is atomic.
        self._free: list[Region] = []

    def close(self) -> None:
        """Give back what is free, and what comes back later."""
        self._free = []

    def take(self, nbytes: int) -> tuple[memoryview, Region]:
        """Some bytes, of any content, and the region that they are the start of."""
        region = self._reused(nbytes) or self._make(nbytes)
        # An array, for numpy does not look for an owner beyond the first array that is
        # no view of another one; and such a one cannot be collected as part of a cycle.
        lease = np.frombuffer(region.memory, np.uint8, nbytes)
        finalizer = weakref.finalize(lease, _give_back, region, self._free)
        finalizer.atexit = False
        return lease.data, region

    def _make(self, nbytes: int) -> Region:
        # Not a bytearray, which would be filled with zeros first.
        return Region(np.empty(nbytes, np.uint8).data)

    def _reused(self, nbytes: int) -> Region | None:
        fits = []
        for region in list(self._free):
            if region.is_stale:
                self._claim(region)
            elif nbytes <= region.memory.nbytes <= 2 * nbytes:
                fits.append(region)
        # What was used last is likeliest to be in the processor's cache.
        fits.sort(key=lambda region: (region.memory.nbytes, -region.since))
        return next(filter(self._claim, fits), None)

    def _claim(self, region: Region) -> bool:
        """Take it off the free ones, unless another thread was faster."""
        try:
            self._free.remove(region)
        except ValueError:
            return False
        return True


def _give_back(region: Region, free: list[Region]) -> None:
    if region.is_reusable:
        region.since = monotonic()
        free.append(region)
