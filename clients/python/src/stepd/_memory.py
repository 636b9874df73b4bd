"""Memory that is reused once nothing views it.

New memory costs more than the step itself, because the system clears each page at the
first touch. So a pool keeps returned memory and hands it out again. A region returns
by itself when the last array or memory view of it is gone, because every numpy view
refers to the object that it is a view of.
"""

from __future__ import annotations

import os
import weakref
from time import monotonic

import numpy as np

#: Smaller memory is not pooled: the allocator already reuses it.
POOLED_BYTES = 2**20

#: Seconds after which unused memory is given back to the system.
_POOLED_SECONDS = 60.0

#: How often this process has been forked from another.
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
        #: Whether the pool takes the region back.
        self.is_reusable = True
        #: When the region came back to the pool.
        self.since = 0.0
        self._forks = _forks

    @property
    def is_stale(self) -> bool:
        """Whether the pool should drop the region.

        After a fork another process may have views of it that are unknown here.
        """
        return self._forks != _forks or monotonic() - self.since > _POOLED_SECONDS


class Pool:
    """A pool of memory. Safe to share between threads.

    It keeps at most as much as was in use at once, and only what was used recently.
    """

    def __init__(self) -> None:
        # Without a lock, because a region may return inside any method here, wherever
        # the last view of it ends. Each operation on the list is atomic.
        self._free: list[Region] = []

    def close(self) -> None:
        """Release the free regions, and any that come back later."""
        self._free = []

    def take(self, nbytes: int) -> tuple[memoryview, Region]:
        """Return ``nbytes`` of uninitialized memory, and the region that it starts."""
        region = self._reused(nbytes) or self._make(nbytes)
        # An array, because every numpy view of it refers to it directly, and because it
        # cannot be part of a reference cycle.
        lease = np.frombuffer(region.memory, np.uint8, nbytes)
        finalizer = weakref.finalize(lease, _give_back, region, self._free)
        finalizer.atexit = False
        return lease.data, region

    def _make(self, nbytes: int) -> Region:
        # Not a bytearray, which would be zeroed first.
        return Region(np.empty(nbytes, np.uint8).data)

    def _reused(self, nbytes: int) -> Region | None:
        fits = []
        for region in list(self._free):
            if region.is_stale:
                self._claim(region)
            elif nbytes <= region.memory.nbytes <= 2 * nbytes:
                fits.append(region)
        # The most recently used region is the likeliest to be in the processor's cache.
        fits.sort(key=lambda region: (region.memory.nbytes, -region.since))
        return next(filter(self._claim, fits), None)

    def _claim(self, region: Region) -> bool:
        """Take the region from the free ones; False if another thread was faster."""
        try:
            self._free.remove(region)
        except ValueError:
            return False
        return True


def _give_back(region: Region, free: list[Region]) -> None:
    if region.is_reusable:
        region.since = monotonic()
        free.append(region)
