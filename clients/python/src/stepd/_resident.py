"""A run whose parameters and state stay on the server between its steps."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ._calls import Cached, StepResult
from ._error_table import BlobMissing
from ._options import Optimizer, Reply, StepOptions
from ._state import State
from ._tensors import Array
from ._timeout import Timeout

#: A step is sent this often, if the server keeps losing the results before it.
_ATTEMPTS = 3

#: The server keeps the result, and the reply has neither parameters nor state.
_STAY: Reply = {"params": "none", "state": "none", "cache": True}


@dataclass(frozen=True)
class _Step:
    """The inputs of a step, except for what stays on the server."""

    optimizer: Optimizer
    grads: Mapping[str, Array]
    options: StepOptions
    #: Parameters that replace those on the server.
    params: Mapping[str, Array] | None = None


@dataclass(frozen=True)
class Attempt:
    """A step with its result. The server has both this result and the one before it."""

    step: _Step
    result: StepResult


class ResidentRun:
    """Steps from the server's last result, and repeats steps that the server has lost.

    The run holds the parameters and the state of the last fetch, and the gradients and
    options of each later step. A restarted server gets all of them again, so the run
    continues with the same bits. Steps are pure functions, so repeating them is safe.
    """

    def __init__(
        self, client: Any, timeout: float | Timeout | None, fetch_every: int
    ) -> None:
        self._client = client
        self._timeout = timeout
        self._fetch_every = fetch_every
        self._params: dict[str, Array] = {}
        self._state: State | None = None
        #: The steps since the last fetch.
        self._steps: list[_Step] = []
        #: Whether the server has lost results since the last fetch.
        self._is_lossy = False
        #: The number of those steps whose result the server has, under ``_cached``.
        self._done = 0
        self._cached: Cached | None = None

    @property
    def steps(self) -> int:
        """The number of steps since the last fetch."""
        return len(self._steps)

    @property
    def is_due(self) -> bool:
        """Whether to fetch before the next step.

        After a loss the next one is likely, and a fetch saves repeating the same steps.
        """
        return self.steps >= self._fetch_every or self._is_lossy

    def start(self, params: Mapping[str, Array], state: State | None) -> None:
        """Start from parameters and a state. The run keeps copies of the parameters."""
        self._params = copied(params)
        self._state = state
        self._steps = []
        self._is_lossy = False
        self._done = 0
        self._cached = None

    def step(
        self,
        optimizer: Optimizer,
        grads: Mapping[str, Array],
        options: StepOptions,
        params: Mapping[str, Array] | None = None,
    ) -> StepResult:
        """Take a step. ``params``, if given, replace those of the run.

        Raises StepdError; then the run is unchanged.
        """
        grads = copied(grads)
        params = None if params is None else copied(params)
        attempt = self.attempt(optimizer, grads, options, params)
        self.keep(attempt)
        return attempt.result

    def attempt(
        self,
        optimizer: Optimizer,
        grads: Mapping[str, Array],
        options: StepOptions,
        params: Mapping[str, Array] | None = None,
    ) -> Attempt:
        """Send a step. The run takes it only by :meth:`keep`.

        The arrays must never change. Raises StepdError.
        """
        step = _Step(copy.deepcopy(optimizer), grads, copy.deepcopy(options), params)
        form = (options.get("reply") or {}).get("params", "same")
        return Attempt(step, self._send(step, {**_STAY, "params": form}))

    def keep(self, attempt: Attempt) -> None:
        """Take the step of the last attempt."""
        self._cached = attempt.result.cached
        if not attempt.result.skipped:
            self._steps.append(attempt.step)
            self._done += 1

    def fetch(self) -> tuple[dict[str, Array], State | None]:
        """Return the current parameters and state. Later losses repeat fewer steps."""
        if self._steps:
            last = self._steps[-1]
            options: StepOptions = {
                "groups": last.options.get("groups"),
                "master_weights": last.options.get("master_weights"),
            }
            # A step without gradients returns what the server has, unchanged.
            result = self._send(_Step(last.optimizer, {}, options), {})
            self._params, self._state = result.params, result.state
            self._steps = []
            self._is_lossy = False
            self._done = 0
        return self._params, self._state

    def _send(self, step: _Step, reply: Reply) -> StepResult:
        """Send a step, after the steps before it whose results the server lacks."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                for earlier in self._steps[self._done :]:
                    self._cached = self._call(earlier, _STAY).cached
                    self._done += 1
                return self._call(step, reply)
            except BlobMissing:
                self._cached = None
                self._is_lossy = True
                self._done = 0
                if attempt == _ATTEMPTS:
                    raise
        raise AssertionError

    def _call(self, step: _Step, reply: Reply) -> StepResult:
        cached, params, state = self._cached, step.params, None
        if cached is None:
            state = self._state
            params = self._params if params is None else params
        elif params is not None:
            cached = _state_alone(cached)
        options: StepOptions = {**step.options, "cached": cached, "reply": reply}
        result: StepResult = self._client.step(
            step.optimizer, params, step.grads, state, timeout=self._timeout, **options
        )
        if reply.get("cache") and not _names_all(result.cached):
            raise ValueError(
                "resident: expected a server that keeps parameters and state "
                "(STEPD_CACHE_MIB), found one that has room for the state alone"
            )
        return result


def copied(arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name: array.copy() for name, array in arrays.items()}


def _state_alone(cached: Cached) -> Cached:
    shards = (replace(one, cached=_state_alone(one.cached)) for one in cached.shards)
    return replace(cached, params=None, shards=tuple(shards))


def _names_all(cached: Cached | None) -> bool:
    if cached is None:
        return False
    parts = [one.cached for one in cached.shards] or [cached]
    return all(part.params and part.state for part in parts)
