"""The options of a step, defined once for every client and adapter.

A new option of optimizer.step on the wire is a new field of :class:`StepOptions`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast

if TYPE_CHECKING:
    from ._calls import Cached

Optimizer = Mapping[str, Any]
Groups = Sequence[Mapping[str, Any]]
Schedule = Mapping[str, Any]
NonFinite = Literal["error", "skip", "propagate"]


class Reply(TypedDict, total=False):
    """The parts of a step's reply, if they differ from the default."""

    #: As they are, rounded to bfloat16 (to nearest even; not from float64), or nothing.
    params: Literal["same", "bf16", "none"]
    #: As it is, or nothing: then it stays on the server only, and needs ``cache``.
    state: Literal["same", "none"]
    #: Whether the server shall keep the new parameters and the new state, if it can.
    cache: bool


class StepOptions(TypedDict, total=False):
    """The options of a step. Each may be None, which means its default."""

    #: Hyperparameters of some tensors: ``[{"tensors": ["*.bias"], "optimizer": {}}]``.
    groups: Groups | None
    #: A learning-rate schedule, by each tensor's own count of steps.
    schedule: Schedule | None
    #: ``{"max_norm": 1.0}`` or ``{"max_value": 0.5}``, after the loss scale; beside
    #: ``max_norm`` the ``total_norm`` over all gradients, of which the call has some.
    clip: Mapping[str, float] | None
    #: The divisor of the gradients.
    loss_scale: float | None
    #: The reaction to a NaN or an infinity in a gradient.
    non_finite: NonFinite | None
    #: Whether a gradient of the step that another call has holds NaN or infinity.
    others_non_finite: bool | None
    #: The statistics of the result: none, over all tensors, or of each as well.
    stats: Literal["none", "global", "tensor"] | None
    #: Whether the state has a float32 copy of each bfloat16 and float16 parameter.
    master_weights: bool | None
    #: ``{"seed": 1}`` rounds bfloat16 parameters up or down at random.
    stochastic_rounding: Mapping[str, int] | None
    #: The parts of the reply.
    reply: Reply | None
    #: ``cached`` of an earlier result, for what the server still has.
    cached: Cached | None


#: Their names.
STEP_OPTIONS = sorted(StepOptions.__optional_keys__)


def step_options(given: Mapping[str, Any]) -> StepOptions:
    """The options, by names that a step has. Raises TypeError for any other name."""
    for name in given:
        if name not in STEP_OPTIONS:
            expected = ", ".join(STEP_OPTIONS)
            hint = nearest(name, STEP_OPTIONS)
            raise TypeError(f"a step has no option {name}{hint} (it has {expected})")
    return cast("StepOptions", dict(given))


def nearest(name: str, known: Sequence[str]) -> str:
    """The end of a sentence about an unknown name."""
    near = difflib.get_close_matches(name, known, 1)
    return f"; the nearest is {near[0]}" if near else ""
