"""A pool that reuses memory as soon as no array views it.

The system clears each page of new memory at the first touch, which costs more than the
step itself. A numpy view keeps a reference to its base array, so a region returns to
the pool when the last array or memory view of the region is gone.
"""

from __future__ import annotations

import os
import weakref
from time import monotonic

import numpy as np

#: The allocator itself reuses memory below this size, so the pool does not.
POOLED_BYTES = 2**20

#: The pool frees memory that has been unused for this many seconds.
_POOLED_SECONDS = 60.0

#: The number of forks between the first process and this one.
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
        #: The pool takes the region back only if this is true.
        self.is_reusable = True
        #: The monotonic time at which the region returned to the pool.
        self.since = 0.0
        self._forks = _forks

    @property
    def is_stale(self) -> bool:
        """Return whether the pool should drop the region.

        After a fork, the other process may have views of the region.
        """
        return self._forks != _forks or monotonic() - self.since > _POOLED_SECONDS


class Pool:
    """A pool of memory. Safe to share between threads.

    The pool keeps at most as much memory as was in use at once, for at most 60 s.
    """

    def __init__(self) -> None:
        # The list needs no lock: each operation on it is atomic. A lock could deadlock,
        # because garbage collection may return a region inside any method here.
        self._free: list[Region] = []

    def close(self) -> None:
        """Release the free regions now, and the regions in use when they return."""
        self._free = []

    def take(self, nbytes: int) -> tuple[memoryview, Region]:
        """Return ``nbytes`` of uninitialized memory, and the region that holds them."""
        region = self._reused(nbytes) or self._make(nbytes)
        # A numpy array, unlike a memory view, is the direct base of every numpy view of
        # it, and is never part of a reference cycle.
        lease = np.frombuffer(region.memory, np.uint8, nbytes)
        finalizer = weakref.finalize(lease, _give_back, region, self._free)
        finalizer.atexit = False
        return lease.data, region

    def _make(self, nbytes: int) -> Region:
        # np.empty, unlike bytearray, does not write zeros first.
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
        """Remove a region from the free list. False if another thread took it."""
        try:
            self._free.remove(region)
        except ValueError:
            return False
        return True


def _give_back(region: Region, free: list[Region]) -> None:
    if region.is_reusable:
        region.since = monotonic()
        free.append(region)
