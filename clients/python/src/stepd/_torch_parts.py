"""The calls of a torch optimizer's step: their inputs, answers and results."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import torch

from ._calls import NO_STATE, StepResult, without_state
from ._error_table import NonFiniteGradient
from ._options import StepOptions
from ._overlap import Arrivals
from ._refusals import joined_refusal, joined_sentences
from ._resident import Attempt, ResidentRun, copied
from ._state import State
from ._tensors import Array
from ._torch_tensors import as_tensor, same_bits


@dataclass(frozen=True)
class Inputs:
    """The inputs of a call, with arrays that may be views of tensors."""

    stepped: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, Any]
    options: StepOptions
    params: Mapping[str, Array]
    grads: Mapping[str, Array]
    #: The tensors of the state, with their versions.
    versions: Sequence[tuple[torch.Tensor, int]]
    #: Whether the gradients are copies.
    owns_grads: bool = False

    def copy(self, *, with_params: bool) -> Inputs:
        """Return inputs that later changes leave as they are. The state has views."""
        return replace(
            self,
            optimizer=copy.deepcopy(self.optimizer),
            options=copy.deepcopy(self.options),
            params=copied(self.params) if with_params else self.params,
            grads=copied(self.grads),
            owns_grads=True,
        )

    def equal(self, other: Inputs) -> bool:
        """Return whether a call with the other inputs has the same result."""
        return (
            self.optimizer == other.optimizer
            and self.options == other.options
            and same_tensors(self.versions, other.versions)
            and same_arrays(self.grads, other.grads)
            and same_arrays(self.params, other.params)
        )


@dataclass(frozen=True)
class Answer:
    """The result of a call, and its inputs."""

    inputs: Inputs
    result: StepResult
    #: The step, if ``resident``.
    attempt: Attempt | None = None


class Part:
    """The parameters of one call: all of them, or with ``overlap`` a bucket."""

    def __init__(self, run: ResidentRun | None) -> None:
        #: The steps on the server, if ``resident``.
        self.run = run
        #: The parameters by index of their group and by name.
        self.groups: dict[int, dict[str, torch.Tensor]] = {}
        #: The parameters of the run by name.
        self.held: Mapping[str, torch.Tensor] = {}
        self.cached: CachedResult | None = None
        self.arrivals = Arrivals([])
        #: Gradients that DistributedDataParallel has averaged and not yet stored.
        self.averaged: dict[torch.Tensor, torch.Tensor] = {}
        #: The call under way.
        self.call: Future[Any] | None = None

    def take_call(self) -> Answer | None:
        """Wait for the call under way, and return its answer.

        A failed call has none: the step makes the call again, and raises its error.
        """
        if self.call is None:
            return None
        error = self.call.exception()
        answer: Answer | None = None if error else self.call.result()
        self.call = None
        return answer

    def drop_call(self) -> None:
        """Wait for the call under way, and forget its answer."""
        self.take_call()


def identity(answer: Answer) -> Answer:
    return answer


def all_or_none(
    calls: Iterable[tuple[Part, Callable[[], Answer]]],
) -> list[tuple[Part, Answer]]:
    """Return the answers of all calls. Raises the first error after the last call."""
    answers: list[tuple[Part, Answer]] = []
    errors: list[Exception] = []
    for part, call in calls:
        try:
            answers.append((part, call()))
        except Exception as error:
            errors.append(error)
    refusals = [error for error in errors if isinstance(error, NonFiniteGradient)]
    others = [error for error in errors if not isinstance(error, NonFiniteGradient)]
    if others:
        raise others[0]
    if refusals:
        raise refusals[0] if len(refusals) == 1 else joined_refusal(refusals)
    return answers


def joined(results: Sequence[StepResult], *, has_state: bool) -> StepResult:
    """Return the result of a step without parameters, which are in the model."""
    leader = max(results, key=lambda result: result.step)
    state, cached = NO_STATE, None
    if len(results) == 1:
        cached = leader.cached
    if has_state:
        states = [result.state for result in results]
        state = states[0] if len(states) == 1 else State.join(states)
    sentences = itertools.chain.from_iterable(one.warnings for one in results)
    joined = replace(
        leader,
        params={},
        state=state,
        warnings=tuple(joined_sentences(sentences)),
        cached=cached,
    )
    return joined if has_state else without_state(joined)


class CachedResult:
    """A result that the server has cached, which the next step may use."""

    def __init__(
        self,
        result: StepResult,
        state: Mapping[torch.Tensor, Mapping[str, Any]],
        params: Mapping[str, torch.Tensor],
    ) -> None:
        self.result = result
        self._versions = versions_of(state, params)

    def fits(
        self,
        arrays: Mapping[str, Array],
        state: Mapping[torch.Tensor, Mapping[str, Any]],
        params: Mapping[str, torch.Tensor],
    ) -> bool:
        """Return whether parameters and state have the same bits as the result.

        A slot that was changed in place has another version. Parameters are compared by
        value, because changes through ``param.data`` do not change the version.
        """
        kept = self.result.params
        return (
            kept.keys() == arrays.keys()
            and same_tensors(versions_of(state, params), self._versions)
            and all(
                same_bits(
                    as_tensor(kept[name]).to(params[name].dtype), as_tensor(array)
                )
                for name, array in arrays.items()
            )
        )


def versions_of(
    state: Mapping[torch.Tensor, Mapping[str, Any]], params: Mapping[str, torch.Tensor]
) -> list[tuple[torch.Tensor, int]]:
    return [
        (value, value._version)
        for param in params.values()
        for value in state.get(param, {}).values()
    ]


def same_tensors(
    ones: Sequence[tuple[torch.Tensor, int]], others: Sequence[tuple[torch.Tensor, int]]
) -> bool:
    """Return whether tensors are the same objects, with the same versions."""
    return len(ones) == len(others) and all(
        one is other and version == other_version
        for (one, version), (other, other_version) in zip(ones, others, strict=True)
    )


def same_arrays(ones: Mapping[str, Array], others: Mapping[str, Array]) -> bool:
    return ones.keys() == others.keys() and all(
        one.dtype == others[name].dtype
        and same_bits(as_tensor(one), as_tensor(others[name]))
        for name, one in ones.items()
    )
