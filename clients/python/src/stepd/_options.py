"""The options of a step, defined once for every client and adapter.

A new option of optimizer.step on the wire is a new field of :class:`StepOptions`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast

if TYPE_CHECKING:
    from ._calls import Cached
    from ._ledger import Ledger
    from ._reduce import Reduce

Optimizer = Mapping[str, Any]
Groups = Sequence[Mapping[str, Any]]
Schedule = Mapping[str, Any]
NonFinite = Literal["error", "skip", "propagate"]


class Reply(TypedDict, total=False):
    """The contents of a step's reply. A missing field means its default."""

    #: ``"same"`` returns the new parameters unchanged. ``"bf16"`` rounds all but
    #: float64 to bfloat16 (to nearest even). ``"none"`` omits them.
    params: Literal["same", "bf16", "none"]
    #: ``"none"`` omits the new state: only the server has it. Requires ``cache``.
    state: Literal["same", "none"]
    #: True asks the server to cache the new parameters and state, if it has a cache.
    cache: bool


class Slice(TypedDict):
    """A part of a larger tensor."""

    #: The index of the first element: a multiple of 65,536.
    offset: int


Slices = Mapping[str, Slice]


class StepOptions(TypedDict, total=False):
    """The options of a step. None means the default."""

    #: Hyperparameters of some tensors: ``[{"tensors": ["*.bias"], "optimizer": {}}]``.
    groups: Groups | None
    #: ``{"w": {"offset": 65536}}`` says that the call has a flat slice of the larger
    #: tensor ``w``, from that element on. The client itself slices large tensors.
    slices: Slices | None
    #: A learning-rate schedule, evaluated at each tensor's own step count.
    schedule: Schedule | None
    #: ``{"max_norm": 1.0}`` or ``{"max_value": 0.5}``, applied after the loss scale. A
    #: call that holds only some of the gradients passes the norm over all as
    #: ``total_norm``.
    clip: Mapping[str, float] | None
    #: The server divides the gradients by this number.
    loss_scale: float | None
    #: How the server treats a NaN or an infinity in a gradient.
    non_finite: NonFinite | None
    #: True if the gradients of another call of the same step contain NaN or infinity.
    others_non_finite: bool | None
    #: Statistics in the result. ``"global"`` covers all tensors together, and
    #: ``"tensor"`` adds the statistics of each tensor.
    stats: Literal["none", "global", "tensor"] | None
    #: True keeps a float32 copy of each bfloat16 and float16 parameter in the state.
    master_weights: bool | None
    #: ``{"seed": 1}`` rounds bfloat16 parameters stochastically.
    stochastic_rounding: Mapping[str, int] | None
    #: True adds a receipt to the result. ``{"index": 0, "count": 2}`` says which part
    #: of a step the call is.
    receipt: bool | Mapping[str, int] | None
    #: Receives the receipts of the step before the step returns.
    ledger: Ledger | None
    #: The contents of the reply.
    reply: Reply | None
    #: ``cached`` of an earlier result; the client does not send the blobs that it
    #: names.
    cached: Cached | None
    #: The arguments of :meth:`Client.reduce`. The server combines these updates into
    #: the gradients, and the argument ``grads`` is None.
    reduce: Reduce | None


STEP_OPTIONS = sorted(StepOptions.__optional_keys__)


def step_options(given: Mapping[str, Any]) -> StepOptions:
    """Return the options. Raises TypeError for an unknown name."""
    for name in given:
        if name not in STEP_OPTIONS:
            expected = ", ".join(STEP_OPTIONS)
            hint = nearest(name, STEP_OPTIONS)
            raise TypeError(f"a step has no option {name}{hint} (it has {expected})")
    return cast("StepOptions", dict(given))


def nearest(name: str, known: Sequence[str]) -> str:
    """Return a hint with the nearest known name, for an error about an unknown name."""
    near = difflib.get_close_matches(name, known, 1)
    return f"; the nearest is {near[0]}" if near else ""
