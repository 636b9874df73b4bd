"""A torch optimizer that runs its steps on stepd. Needs the extra ``torch``."""

from __future__ import annotations

import itertools
import threading
import warnings
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple, overload

import numpy as np

try:
    import torch
except ImportError as error:
    raise ImportError('stepd.torch needs torch: pip install "stepd[torch]"') from error
from torch.optim.optimizer import ParamsT

from ._adapter import adapter_options, check, client_of, is_sendable
from ._calls import StepResult
from ._checks import require_count
from ._client import Client
from ._norms import clips_by_norm
from ._optimizer_table import ALL_TENSORS, OWN_SHAPES, WHOLE_TENSORS
from ._options import STEP_OPTIONS, StepOptions, nearest
from ._overlap import Arrivals, Usefulness, buckets
from ._resident import ResidentRun, copied
from ._shards import ShardedClient
from ._state import STEP, State
from ._tensors import Array, Tensor, array_of, scalar, tensor_of
from ._timeout import Timeout
from ._torch_parts import (
    Answer,
    CachedResult,
    Inputs,
    Part,
    all_or_none,
    identity,
    joined,
    same_arrays,
    versions_of,
)
from ._torch_tensors import (
    DTYPES,
    NARROW_DTYPES,
    as_array,
    as_tensor,
    check_tensor,
    gradient_of,
    is_sharded,
    labelled_params,
    like_parameter,
    local_like,
    local_of,
    narrow_tensor,
    require_own_memory,
    require_params,
)

_MASTER = "master_param"

#: The calls of a step that run at once, with ``overlap``.
_CONNECTIONS = 4

MIB = 2**20


#: Guards the arrivals of gradients, which autograd may report from several threads.
_ARRIVALS = threading.Lock()

_NONE_YET: Mapping[torch.Tensor, torch.Tensor] = MappingProxyType({})

_USELESS = (
    "overlap: gradients changed after backward in two steps, so all gradients leave at "
    "step() from now on; clip_grad_norm_ changes them, and so does "
    "DistributedDataParallel without register_comm_hook(optimizer, overlap_hook)"
)

_TWO_SCHEDULES = (
    "schedule: a scheduler of torch changes lr as well, so the step multiplies both; "
    "use one of them, or keep the scheduler's lr constant"
)

#: The stack level of the caller of :meth:`RemoteOptimizer.step`, past two torch
#: wrappers.
_CALLER_STACK_LEVEL = 4


class _Kind(NamedTuple):
    """What the server says of an optimizer."""

    name: str
    revision: int
    #: The hyperparameters with their defaults.
    defaults: Mapping[str, Any]
    slots: frozenset[str]
    scales: frozenset[str]


class RemoteOptimizer(torch.optim.Optimizer):
    """Any optimizer of a stepd server, as a :class:`torch.optim.Optimizer`.

    ``params`` may be whatever a torch optimizer accepts: tensors, pairs of name and
    tensor, or groups, which may have their own hyperparameters. ``client`` is a Client,
    a ShardedClient or a URL. ``name`` is the optimizer; its hyperparameters have the
    names and defaults of ``client.describe(name)``. Learning rate schedulers and
    closures work as with torch's optimizers.

    A group with the key ``optimizer`` has an optimizer of its own, whose defaults its
    absent hyperparameters take: ``{"params": [...], "optimizer": "sgd", "lr": 0.1}``.
    The key may hold what a function of :mod:`stepd.optimizers` returns, too.

    The options of a step (:class:`stepd.StepOptions`: ``clip``, ``stats``,
    ``loss_scale`` and so on) are keyword arguments too. The attribute ``options`` holds
    the options, and may be changed between steps. torch's parameter groups replace
    ``groups``. With ``reply={"cache": True}``, the optimizer sets ``cached`` itself.

    ``state_dict`` is torch's: ``step`` (float32 scalar) and the slots under torch's
    names, so that states of Adam and AdamW load in both directions. Slots of bfloat16
    and float16 parameters are float32. With ``state_dtype="Q8"``, a state dict has the
    codes of ``exp_avg`` as ``exp_avg.code``, so torch's optimizers find no ``exp_avg``
    instead of taking codes for moments. Parameters on other devices are copied to the
    CPU. Sparse gradients are converted to dense gradients.

    ``grad_dtype=torch.bfloat16`` rounds gradients before they are sent.

    With ``resident=True`` parameters and state stay on the server, which needs a cache
    (STEPD_CACHE_MIB): a step sends gradients and receives parameters. Reading ``state``
    or ``state_dict()`` fetches the slots, as every ``fetch_every``-th step does. If the
    server restarts or drops the results, the optimizer repeats the steps since the last
    fetch, with the same bits. For that it holds the gradients of up to ``fetch_every``
    steps, besides a copy of the parameters and the state of the last fetch. With
    ``reply={"params": "bf16"}`` the server keeps unrounded weights, and a fetch brings
    them as the slot ``master_param``. Call :meth:`fetch_state` before the client or the
    server ends.

    With ``overlap=True`` a step is several calls, which leave while backward runs: one
    for each bucket of parameters with ``bucket_cap_mb`` MiB of gradients. :meth:`step`
    waits for them, and the result has the same bits. A bucket leaves when its gradients
    have arrived as often as before the last step, so the first step sends them all, and
    buckets wait for the last backward of an accumulation. If gradients, parameters or
    hyperparameters change after that, the step sends the bucket again. GradScaler
    leaves the division by its scale to the server, and
    ``model.register_comm_hook(optimizer, overlap_hook)`` makes buckets follow the
    averaging of DistributedDataParallel. Options that need all gradients at once are
    refused: ``clip`` by ``max_norm``, LAMB's ``max_grad_norm``, Prodigy, ``stats`` and
    ``non_finite="skip"``.

    Parameters may be DTensors (``fully_shard``, tensor parallel): each process steps
    its local shards, and the slots are DTensors. Optimizers that need whole tensors
    (such as LAMB, Muon and Adafactor), ``caution``, ``stats`` and ``clip`` by
    ``max_norm`` raise ValueError, as ``non_finite="skip"`` does.
    ``stochastic_rounding`` draws random bits by an element's index in the local shard.

    Raises TypeError for a client, parameter or hyperparameter that cannot be used, and
    :class:`stepd.InvalidParams` for a value that the server refuses.
    """

    #: The last step's result, without the parameters, which are in the model. None
    #: before the first step, and if no parameter had a gradient.
    last_result: StepResult | None = None

    #: The scale of GradScaler at the last step, which the next call expects again.
    _scale: float | None = None

    #: The threads of calls that run at once, with ``overlap``.
    _pool: ThreadPoolExecutor | None = None

    #: True once the constructor has ended. add_param_group then checks new groups.
    _is_made = False

    def __init__(
        self,
        params: ParamsT,
        client: Client | ShardedClient | str,
        name: str = "adamw",
        *,
        timeout: float | Timeout | None = None,
        resident: bool = False,
        fetch_every: int = 20,
        overlap: bool = False,
        bucket_cap_mb: float = 25,
        grad_dtype: torch.dtype | None = None,
        **settings: Any,
    ) -> None:
        require_count("fetch_every", fetch_every)
        if not isinstance(bucket_cap_mb, (int, float)) or not bucket_cap_mb > 0:
            expected = "bucket_cap_mb: expected a number > 0"
            raise ValueError(f"{expected}, found {bucket_cap_mb!r:.60}")
        if grad_dtype is not None and grad_dtype not in DTYPES:
            expected = "grad_dtype: expected a floating dtype such as torch.bfloat16"
            raise TypeError(f"{expected}, found {grad_dtype!r:.60}")
        self._grad_dtype = grad_dtype
        self._resident = resident
        self._fetch_every = fetch_every
        self._overlap = overlap
        self._bucket_cap = bucket_cap_mb * MIB
        self._client = client_of(client)
        require_params(params)
        if not isinstance(name, str):
            expected = "name: expected that of an optimizer, such as adamw, found"
            raise TypeError(f"{expected} {name!r:.60}")
        self._kinds: dict[str, _Kind] = {}
        base = self._described(name)
        known = base.defaults
        if "groups" in settings:
            raise TypeError(
                "groups: expected none; give them as params, a list of dicts such as "
                '{"params": [...], "lr": 0.1}'
            )
        hyperparameters: dict[str, Any] = {}
        options: dict[str, Any] = {}
        for key, value in settings.items():
            if key in known:
                hyperparameters[key] = value
            elif key in STEP_OPTIONS:
                options[key] = value
            else:
                hint = nearest(key, [*known, *STEP_OPTIONS])
                expected = ", ".join(known)
                raise TypeError(f"{name} has no hyperparameter {key}{hint}: {expected}")
        self._name = name
        self._timeout = timeout
        #: The options of each step. A change applies from the next step on.
        self.options: StepOptions = adapter_options(options)
        #: The hooks of ``overlap`` by parameter.
        self._hooks: dict[torch.Tensor, Any] = {}
        self._start_over()
        super().__init__(params, {**base.defaults, **hyperparameters})
        self._check()
        self._is_made = True
        self._add_hooks()

    @property
    def skipped(self) -> bool:
        """Return whether ``non_finite="skip"`` skipped the last step."""
        return self.last_result is not None and self.last_result.skipped

    @property
    def state(self) -> defaultdict[torch.Tensor, Any]:
        """The slots by parameter. With ``resident`` the server's are fetched first."""
        self.fetch_state()
        return self._own_state

    @state.setter
    def state(self, state: defaultdict[torch.Tensor, Any]) -> None:
        # torch reads and writes this entry of the dict too.
        self.__dict__["state"] = state

    @property
    def _own_state(self) -> defaultdict[torch.Tensor, Any]:
        """The slots of the last fetch."""
        own: defaultdict[torch.Tensor, Any] = self.__dict__["state"]
        return own

    def fetch_state(self) -> None:
        """With ``resident``, fetch parameters and state of the last step.

        Raises :class:`stepd.StepdError`; a later call may then succeed.
        """
        for part in self._parts:
            part.drop_call()
            self._fetch(part)

    def _fetch(self, part: Part) -> None:
        if part.run is None or not part.run.steps:
            return
        assert part.cached is not None
        params, state = part.run.fetch()
        assert state is not None
        self._take_state(state, part.held)
        for name, param in part.held.items():
            if param.dtype == torch.float32 and self._rounds:
                whole = like_parameter(as_tensor(params[name]).clone(), param)
                self._own_state[param][_MASTER] = whole
        part.cached = CachedResult(part.cached.result, self._own_state, part.held)

    @property
    def _rounds(self) -> bool:
        return (self.options.get("reply") or {}).get("params") == "bf16"

    def _start_over(self) -> None:
        """Make the next step send all parameters and state."""
        self._parts: list[Part] = []
        #: Index of the group, name and identity of each parameter in the buckets.
        self._layout: list[tuple[int, str, int]] = []
        self._part_of: dict[torch.Tensor, Part] = {}
        #: The parameters whose gradients :func:`overlap_hook` reports.
        self._awaited: set[torch.Tensor] = set()
        self._usefulness = Usefulness()

    def _new_part(self) -> Part:
        run = ResidentRun(self._client, self._timeout, self._fetch_every)
        return Part(run if self._resident else None)

    def __getstate__(self) -> dict[str, Any]:
        # torch's own __getstate__ omits the attributes of subclasses.
        own = (
            "_client",
            "_name",
            "_kinds",
            "_timeout",
            "_is_made",
            "_resident",
            "_fetch_every",
            "_overlap",
            "_bucket_cap",
            "_grad_dtype",
        )
        mine = {key: getattr(self, key) for key in (*own, "options")}
        kept: dict[str, Any] = super().__getstate__()
        return {**kept, **mine}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._hooks = vars(self).get("_hooks", {})
        self._start_over()
        self._add_hooks()
        # A state from torch's own optimizers lacks the hyperparameters of stepd.
        for group in self.param_groups:
            kind = self._kind(group)
            own = self.defaults if kind.name == self._name else kind.defaults
            for key, value in own.items():
                group.setdefault(key, value)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with their own hyperparameters, as torch does."""
        if isinstance(param_group, dict):
            if "params" not in param_group:
                found = ", ".join(map(str, param_group)) or "an empty one"
                raise TypeError(f"group: expected a dict with params, found {found}")
            require_params(param_group["params"])
            if "optimizer" in param_group:
                param_group = self._with_defaults(param_group)
        super().add_param_group(param_group)
        try:
            for name, param in labelled_params(self.param_groups[-1]):
                check_tensor(name, param)
            if self._is_made:
                self._check()
        except BaseException:
            self.param_groups.pop()
            raise
        if self._is_made:
            self._add_hooks()

    def _with_defaults(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return a group with its own optimizer's name and hyperparameters."""
        own = given["optimizer"]
        values = dict(own) if isinstance(own, Mapping) else {"name": own}
        name = values.pop("name", None)
        if not isinstance(name, str):
            expected = "optimizer: expected the name of one, such as sgd, or a dict of"
            raise TypeError(f"group: {expected} stepd.optimizers, found {own!r:.60}")
        kind = self._described(name)
        if unknown := next((key for key in values if key not in kind.defaults), None):
            hint = nearest(unknown, list(kind.defaults))
            expected = ", ".join(kind.defaults)
            found = f"{name} has no hyperparameter {unknown}{hint}: {expected}"
            raise TypeError(f"group: {found}")
        return {**kind.defaults, **values, **given, "optimizer": name}

    def _described(self, name: str) -> _Kind:
        """Return what the server says of an optimizer."""
        if name not in self._kinds:
            described = self._client.describe(name)
            properties = dict(described["hyperparameters"]["properties"])
            del properties["name"]
            slots = described["slots"]["all"]
            scales = frozenset(f"{slot}.scale" for slot in slots)
            self._kinds[name] = _Kind(
                name,
                described["revision"],
                {key: value.get("default") for key, value in properties.items()},
                frozenset([*slots, _MASTER, *scales]),
                scales,
            )
        return self._kinds[name]

    def _kind(self, group: Mapping[str, Any]) -> _Kind:
        """Return the optimizer of a group."""
        return self._described(group.get("optimizer", self._name))

    def _kind_of(self) -> dict[torch.Tensor, _Kind]:
        """Return the optimizer of each parameter."""
        return {
            param: kind
            for group in self.param_groups
            for kind in [self._kind(group)]
            for param in group["params"]
        }

    def _check(self) -> None:
        """Raise at once the errors that a step would raise for any gradients."""
        optimizers = [self._hyperparameters(group) for group in self.param_groups]
        if any(is_sharded(param) for param in self._params()):
            self._check_shards(optimizers)
        if self._overlap:
            self._check_overlap(optimizers)
        require_own_memory(self.param_groups)
        optimizer = optimizers[0]
        groups = [
            {"tensors": ["*"], "optimizer": _group_optimizer(optimizer, one)}
            for one in optimizers
        ]
        check(self._client, optimizer, self.options, groups, resident=self._resident)

    def _check_shards(self, optimizers: Sequence[Mapping[str, Any]]) -> None:
        """Raise ValueError if the step needs more of a DTensor than the local shard."""
        options = self.options
        which = None
        whole = next(
            (o["name"] for o in optimizers if WHOLE_TENSORS.get(o["name"]) is True),
            None,
        )
        if whole is not None:
            which = f"{whole} needs whole tensors"
        elif any(_is_narrow(optimizer) for optimizer in optimizers):
            which = "state_dtype rounds by an element's place in the whole tensor"
        elif any(optimizer.get("caution") for optimizer in optimizers):
            which = "caution counts the values of whole tensors"
        elif "max_norm" in (options.get("clip") or {}):
            which = (
                "clip by max_norm needs the norm over all shards, which "
                "torch.nn.utils.clip_grad_norm_ adds up"
            )
        elif options.get("stats") not in (None, "none"):
            which = "stats are those of whole tensors"
        elif options.get("non_finite") == "skip":
            which = 'non_finite="skip" needs all processes to skip together'
        if which:
            raise ValueError(f"DTensors are stepped by local shards, but {which}")

    def _check_overlap(self, optimizers: Sequence[Mapping[str, Any]]) -> None:
        """Raise ValueError if a step needs all gradients at once."""
        options = self.options
        which = None
        if any(clips_by_norm(one, options.get("clip")) for one in optimizers):
            which = "clipping by their norm"
        elif any(one["name"] in ALL_TENSORS for one in optimizers):
            which = next(o["name"] for o in optimizers if o["name"] in ALL_TENSORS)
        elif options.get("stats") not in (None, "none"):
            which = "stats"
        elif options.get("non_finite") == "skip":
            which = 'non_finite="skip"'
        elif options.get("ledger") is not None:
            which = "a ledger"
        if which:
            raise ValueError(
                "overlap: expected options that do not need all gradients at once, "
                f"found {which}"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return torch's state dict; codes of Q8 are under ``<slot>.code``."""
        packed = super().state_dict()
        state = {key: _with_code_names(own) for key, own in packed["state"].items()}
        return {**packed, "state": state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of this optimizer or of torch's, with its hyperparameters.

        Warns if the state's ``state_dtype`` replaces another one of a group. Raises
        ValueError, before anything has changed, if the slots differ.
        """
        if not isinstance(state_dict, Mapping) or not (
            {"state", "param_groups"} <= state_dict.keys()
        ):
            found = f"{list(state_dict)!r:.60}" if state_dict else f"{state_dict!r}"
            expected = "expected what state_dict() of an optimizer gives, found"
            raise ValueError(f"state_dict: {expected} {found}")
        slots = state_dict["state"].items()
        state = {key: _with_slot_names(value) for key, value in slots}
        state_dict = {**state_dict, "state": state}
        saved = list(
            itertools.chain.from_iterable(
                group["params"] for group in state_dict["param_groups"]
            )
        )
        kinds = self._kind_of()
        for key, param in zip(saved, self._params(), strict=False):
            self._check_slots(state_dict["state"].get(key, {}), param, kinds[param])
        # A state of torch's own optimizers does not name those of stepd's groups.
        names = [group.get("optimizer") for group in self.param_groups]
        formats = [group.get("state_dtype") for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, name in zip(self.param_groups, names, strict=True):
            if name is not None and group.setdefault("optimizer", name) == name:
                for key, value in self._described(name).defaults.items():
                    group.setdefault(key, value)
        for group, before in zip(self.param_groups, formats, strict=True):
            if group.get("state_dtype") != before:
                found = f"{group.get('state_dtype')} of the loaded state replaces"
                sentence = f"state_dtype: {found} {before}; state.convert changes it"
                warnings.warn(sentence, RuntimeWarning, stacklevel=2)
        narrow = self._narrow()
        for key, param in zip(saved, self._params(), strict=True):
            # torch has cast every slot but the step to the parameter's dtype.
            wide = torch.float64 if param.dtype == torch.float64 else torch.float32
            for slot, value in state_dict["state"].get(key, {}).items():
                if slot == STEP or not isinstance(value, torch.Tensor):
                    continue
                slots = kinds[param].slots
                dtype = wide if slot in slots else torch.float64
                if param in narrow and value.dtype in NARROW_DTYPES:
                    dtype = value.dtype
                device = param.device if slot in slots else value.device
                own = value.detach().to(device, dtype, copy=True)
                self._own_state[param][slot] = own

    def _check_slots(
        self, state: Mapping[str, Any], param: torch.Tensor, kind: _Kind
    ) -> None:
        for slot, value in state.items():
            if not isinstance(value, torch.Tensor) or slot == STEP:
                continue
            if slot not in kind.slots and value.numel() != 1:
                expected = ", ".join(sorted(kind.slots))
                raise ValueError(
                    f"the state has {slot}, which {kind.name} does not have; "
                    f"its slots are {expected}"
                )
            if slot in kind.scales:
                continue
            # The server checks the shapes of the other slots.
            is_shaped = slot in kind.slots and slot not in OWN_SHAPES
            if is_shaped and value.shape != param.shape:
                found = f"{list(value.shape)} for a parameter of {list(param.shape)}"
                raise ValueError(f"the state has {slot} of shape {found}")

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Step all parameters that have a gradient.

        Warns if no parameter has a gradient, and passes on the server's warnings.

        Raises :class:`stepd.StepdError`; then parameters and state are unchanged.
        """
        loss: float | None = None
        if closure is not None:
            if not callable(closure):
                kind = type(closure).__name__
                raise TypeError(f"closure: expected a function, found {kind}")
            with torch.enable_grad():
                loss = closure()
        if float(getattr(self, "found_inf", 0)) > 0:
            # GradScaler has found an infinity or NaN, so this step changes nothing.
            for part in self._parts:
                part.drop_call()
            self._end_arrivals()
            return loss
        if self.options.get("schedule") is not None and any(
            "initial_lr" in group for group in self.param_groups
        ):
            warnings.warn(
                _TWO_SCHEDULES, RuntimeWarning, stacklevel=_CALLER_STACK_LEVEL
            )
        scale = getattr(self, "grad_scale", None)
        self._scale = None if scale is None else float(scale)
        self.last_result = None
        answers = self._take_step()
        if not answers:
            sentence = "no parameter has a gradient, so step() changed nothing"
            warnings.warn(sentence, stacklevel=_CALLER_STACK_LEVEL)
            return loss
        results = [answer.result for answer in answers]
        self.last_result = joined(results, has_state=not self._resident)
        for sentence in self.last_result.warnings:
            warnings.warn(sentence, RuntimeWarning, stacklevel=_CALLER_STACK_LEVEL)
        return loss

    def _take_step(self) -> list[Answer]:
        """Make the calls of a step, and apply the results if all calls succeed."""
        self._split()
        used = changed = 0
        calls: list[tuple[Part, Callable[[], Answer]]] = []
        try:
            # The other calls leave before the step waits for those under way.
            for part in sorted(self._parts, key=lambda part: part.call is not None):
                if part.run is not None and part.run.is_due:
                    part.drop_call()
                    self._fetch(part)
                inputs = self._inputs(part)
                early = part.take_call()
                if early is not None and inputs is not None:
                    if self._is_current(part, early, inputs):
                        used += 1
                        calls.append((part, partial(identity, early)))
                        continue
                    changed += not same_arrays(early.inputs.grads, inputs.grads)
                if inputs is None:
                    continue
                if self._overlap:
                    part.call = self._threads.submit(self._call, part, inputs)
                    calls.append((part, part.call.result))
                else:
                    calls.append((part, partial(self._call, part, inputs)))
            answers = all_or_none(calls)
        finally:
            self._end_arrivals()
        for part, answer in answers:
            part.call = None
            self._take(part, answer)
        if self._usefulness.end_step(used, changed):
            warnings.warn(_USELESS, RuntimeWarning, stacklevel=_CALLER_STACK_LEVEL + 1)
        return [answer for _, answer in answers]

    def _split(self) -> None:
        """Assign the parameters to calls: to one call, or with overlap to buckets."""
        groups = [
            dict(zip(names, group["params"], strict=True))
            for group, names in zip(self.param_groups, self._names(), strict=True)
        ]
        if not self._overlap:
            self._parts = self._parts or [self._new_part()]
            self._parts[0].groups = dict(enumerate(groups))
            return
        entries = [
            (at, *entry) for at, named in enumerate(groups) for entry in named.items()
        ]
        layout = [(at, name, id(param)) for at, name, param in entries]
        if layout == self._layout:
            return
        self.fetch_state()
        self._start_over()
        sizes = [
            param.numel() * (self._grad_dtype or param.dtype).itemsize
            for _, _, param in entries
        ]
        for places in buckets(sizes, self._bucket_cap):
            part = self._new_part()
            for place in places:
                at, name, param = entries[place]
                part.groups.setdefault(at, {})[name] = param
                self._part_of[param] = part
            part.arrivals = Arrivals(entries[place][2] for place in places)
            self._parts.append(part)
        self._layout = layout

    def _inputs(
        self, part: Part, averaged: Mapping[torch.Tensor, torch.Tensor] = _NONE_YET
    ) -> Inputs | None:
        """Return the inputs of a call, or None if no parameter has a gradient.

        ``averaged`` are gradients that DistributedDataParallel has not yet stored.
        """
        stepped: dict[str, torch.Tensor] = {}
        optimizers: list[dict[str, Any]] = []
        groups: list[dict[str, Any]] = []
        grads: dict[str, Array] = {}
        for at, named in part.groups.items():
            taken: dict[str, torch.Tensor] = {}
            for name, param in named.items():
                gradient = averaged.get(param, param.grad)
                if gradient is not None:
                    gradient = gradient_of(gradient, param)
                    grads[name] = as_array(gradient.to(self._grad_dtype or param.dtype))
                if gradient is not None or part.held.get(name) is param:
                    taken[name] = param
            if taken:
                stepped.update(taken)
                optimizers.append(self._hyperparameters(self.param_groups[at]))
                groups.append({"tensors": list(taken)})
        if not grads:
            return None
        if any(is_sharded(param) for param in stepped.values()):
            self._check_shards(optimizers)
        if self._overlap:
            self._check_overlap(optimizers)
        for entry, own in zip(groups[1:], optimizers[1:], strict=True):
            entry["optimizer"] = _group_optimizer(optimizers[0], own)
        options = adapter_options(self.options)
        # The server applies the first group to every tensor that no later group names.
        options["groups"] = groups[1:] or None
        if self._scale is not None:
            options["loss_scale"] = self._scale * (options.get("loss_scale") or 1)
        return Inputs(
            stepped,
            optimizers[0],
            options,
            {name: as_array(local_of(param)) for name, param in stepped.items()},
            grads,
            versions_of(self._own_state, stepped),
        )

    def _fits(self, part: Part, inputs: Inputs) -> bool:
        """Return whether parameters and state are those that the server has."""
        cached = part.cached
        return cached is not None and cached.fits(
            inputs.params, self._own_state, inputs.stepped
        )

    @torch.no_grad()
    def _call(self, part: Part, inputs: Inputs) -> Answer:
        stepped, params = inputs.stepped, inputs.params
        if part.run is not None:
            if not self._fits(part, inputs):
                self._fetch(part)
                whole = self._unrounded(params, stepped)
                part.run.start(whole, self._state_of(stepped))
                part.held = stepped
            grads = inputs.grads if inputs.owns_grads else copied(inputs.grads)
            attempt = part.run.attempt(inputs.optimizer, grads, inputs.options)
            return Answer(inputs, attempt.result, attempt)
        options = inputs.options
        if part.cached is not None and self._fits(part, inputs):
            options = {**options, "cached": part.cached.result.cached}
        result = self._client.step(
            inputs.optimizer,
            params,
            inputs.grads,
            self._state_of(stepped),
            timeout=self._timeout,
            **options,
        )
        return Answer(inputs, result)

    @torch.no_grad()
    def _call_early(
        self, part: Part, averaged: Mapping[torch.Tensor, torch.Tensor]
    ) -> Answer | None:
        inputs = self._inputs(part, averaged)
        if inputs is None:
            return None
        inputs = inputs.copy(with_params=part.run is None)
        if part.run is not None and not self._fits(part, inputs):
            return None
        return self._call(part, inputs)

    def _is_current(self, part: Part, early: Answer, inputs: Inputs) -> bool:
        """Return whether an early answer is that of a call with these inputs."""
        is_same = early.inputs.equal(inputs)
        return is_same and (part.run is None or self._fits(part, inputs))

    def _take(self, part: Part, answer: Answer) -> None:
        result, stepped = answer.result, answer.inputs.stepped
        part.cached = None
        if answer.attempt is not None:
            assert part.run is not None
            part.run.keep(answer.attempt)
            self._take_params(result, stepped)
            part.cached = CachedResult(result, self._own_state, stepped)
        elif not result.skipped:
            self._take_params(result, stepped)
            self._take_state(result.state, stepped)
            if result.cached is not None:
                part.cached = CachedResult(result, self._own_state, stepped)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """GradScaler then passes its scale instead of dividing the gradients."""
        return self._overlap

    @property
    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_CONNECTIONS, "stepd")
            weakref.finalize(self, self._pool.shutdown, wait=False)
        return self._pool

    def _add_hooks(self) -> None:
        """Have autograd report the gradients of parameters that have no hook yet."""
        if not self._overlap:
            return
        own = weakref.ref(self)

        def report(param: torch.Tensor) -> None:
            optimizer = own()
            if optimizer is not None:
                optimizer._arrive(param)

        for param in self._params():
            if param.requires_grad and param.is_leaf and param not in self._hooks:
                register: Any = param.register_post_accumulate_grad_hook
                self._hooks[param] = register(report)

    def _arrive(
        self, param: torch.Tensor, averaged: torch.Tensor | None = None
    ) -> None:
        """Let the call of a bucket leave with its last gradient."""
        with _ARRIVALS:
            if not self._parts:
                self._split()
            part = self._part_of.get(param)
            if part is None or (averaged is None and param in self._awaited):
                return
            if averaged is not None:
                self._awaited.add(param)
                part.averaged[param] = averaged
            is_complete = part.arrivals.add(param)
            is_due = part.run is not None and part.run.is_due
            if not is_complete or is_due or self._usefulness.is_given_up:
                return
            if part.call is None:
                averages = dict(part.averaged)
                part.call = self._threads.submit(self._call_early, part, averages)

    def _end_arrivals(self) -> None:
        with _ARRIVALS:
            for part in self._parts:
                part.arrivals.end_step()
                part.averaged.clear()
        self._add_hooks()

    def _params(self) -> Iterator[torch.Tensor]:
        for group in self.param_groups:
            yield from group["params"]

    def _names(self) -> Iterable[list[str]]:
        """Return the names by group: the caller's own, or numbers.

        Numbers replace names if there are none, if two groups share a name (torch
        allows it), if a name contains * (a wildcard in groups), or if a file cannot
        hold a name.
        """
        named = [group.get("param_names") for group in self.param_groups]
        everyone = [name for names in named for name in names or ["*"]]
        is_unique = len(set(everyone)) == len(everyone)
        if is_unique and all(
            "*" not in name and is_sendable(name) for name in everyone
        ):
            return [list(names or ()) for names in named]
        numbers = itertools.count()
        return [[str(next(numbers)) for _ in g["params"]] for g in self.param_groups]

    def _hyperparameters(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """Return the optimizer of a group as a call has it."""
        kind = self._kind(group)
        for flag in ("maximize", "decoupled_weight_decay"):
            # torch's Adam with decoupled_weight_decay is AdamW, which has its own name
            # in stepd.
            means_it = flag == "maximize" or kind.name == "adam"
            if group.get(flag) and flag not in kind.defaults and means_it:
                raise ValueError(f"{kind.name} of stepd has no {flag}")
        values = {
            key: value.item() if isinstance(value, torch.Tensor) else value
            for key, value in group.items()
            if key in kind.defaults
        }
        return {"name": kind.name, **values}

    def _narrow(self) -> frozenset[torch.Tensor]:
        """Return the parameters whose moments are in a narrow format."""
        return frozenset(
            param
            for group in self.param_groups
            if "state_dtype" in self._kind(group).defaults and _is_narrow(group)
            for param in group["params"]
        )

    def _state_of(self, params: Mapping[str, torch.Tensor]) -> State | None:
        """Return the state in stepd's form, of views if possible."""
        # A dict costs the garbage collector less than a list with a tuple for each
        # entry.
        entries: dict[str, Tensor] = {}
        # Most parameters have the same step count, so they share one tensor for it.
        counts: dict[int, Tensor] = {}
        narrow = self._narrow()
        kinds = self._kind_of()
        for name, param in params.items():
            kind = kinds[param]
            slots = self._own_state.get(param, {})
            kept = {k: v for k, v in slots.items() if v is not None}
            if param.dtype == torch.float32:
                # The server's own parameters are unrounded.
                kept.pop(_MASTER, None)
            if not kept:
                continue
            # torch's SGD does not count steps; its buffer exists from the first step
            # on.
            steps = int(kept.pop(STEP, 1))
            if steps not in counts:
                counts[steps] = scalar("I64", steps)
            entries[f"{STEP}/{name}"] = counts[steps]
            dtype = torch.float64 if param.dtype == torch.float64 else torch.float32
            for slot, value in kept.items():
                if slot not in kind.slots:
                    entries[f"{slot}/{name}"] = scalar("F64", float(value))
                    continue
                local = value if slot in kind.scales else local_like(slot, value, param)
                if slot == _MASTER and not torch.equal(
                    local.to(param.dtype), local_of(param)
                ):
                    # Other code, such as torch's own AdamW, has changed the weights, so
                    # the server makes a new master copy.
                    continue
                if param in narrow and local.dtype in NARROW_DTYPES:
                    entries[f"{slot}/{name}"] = narrow_tensor(local)
                    continue
                wide = local if local.dtype is dtype else local.to(dtype)
                entries[f"{slot}/{name}"] = tensor_of(slot, as_array(wide))
        if not entries:
            return None
        return State.from_entries(
            self._name,
            self._kinds[self._name].revision,
            entries.items(),
            optimizers={name: kinds[param].name for name, param in params.items()},
            revisions={kind.name: kind.revision for kind in self._kinds.values()},
        )

    def _unrounded(
        self, arrays: Mapping[str, Array], params: Mapping[str, torch.Tensor]
    ) -> dict[str, Array]:
        """Return the parameters, unrounded if ``reply`` has rounded them here."""
        whole = dict(arrays)
        for name, param in params.items():
            master = self._own_state.get(param, {}).get(_MASTER)
            if param.dtype == torch.float32 and master is not None:
                local = local_like(_MASTER, master, param)
                if torch.equal(local.bfloat16().float(), local_of(param).float()):
                    whole[name] = as_array(local)
        return whole

    def _take_params(
        self, result: StepResult, params: Mapping[str, torch.Tensor]
    ) -> None:
        for name, param in params.items():
            local_of(param).copy_(as_tensor(result.params[name]))

    def _take_state(self, state: State, params: Mapping[str, torch.Tensor]) -> None:
        kinds = self._kind_of()
        for slot, name, entry in state.entries():
            param = params[name]
            kind = kinds[param]
            value: torch.Tensor
            if slot == STEP:
                count = int.from_bytes(entry.data, "little")
                value = torch.from_numpy(np.array(count, np.float32))
            elif slot in kind.scales:
                value = as_tensor(array_of(entry)).to(param.device)
            elif slot in kind.slots:
                value = like_parameter(as_tensor(array_of(entry)), param)
            else:
                value = torch.tensor(float(array_of(entry)), dtype=torch.float64)
            self._own_state[param][slot] = value


def overlap_hook(
    optimizer: RemoteOptimizer, bucket: Any
) -> torch.futures.Future[torch.Tensor]:
    """Average a bucket of DistributedDataParallel, and let its gradients leave.

    ``model.register_comm_hook(optimizer, overlap_hook)``, for a RemoteOptimizer with
    ``overlap=True``. The average is that of DistributedDataParallel without a hook,
    over all processes.
    """
    distributed = torch.distributed
    params, gradients = bucket.parameters(), bucket.gradients()
    total = bucket.buffer().mul_(1 / distributed.get_world_size())

    def report(done: torch.futures.Future[list[torch.Tensor]]) -> torch.Tensor:
        [average] = done.value()
        for param, gradient in zip(params, gradients, strict=True):
            optimizer._arrive(param, gradient)
        return average

    work = distributed.all_reduce(total, async_op=True)
    assert work is not None
    averaged: torch.futures.Future[torch.Tensor] = work.get_future().then(report)
    return averaged


# DistributedDataParallel compares annotations with types, and these are strings.
overlap_hook.__annotations__.clear()


def _group_optimizer(
    base: Mapping[str, Any], own: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Return a group's optimizer, without its name if the base has the same."""
    if own["name"] != base["name"]:
        return own
    return {key: value for key, value in own.items() if key != "name"}


def _with_code_names(slots: Mapping[str, Any]) -> dict[str, Any]:
    """Return slots with codes under ``<slot>.code``."""
    return {f"{k}.code" if f"{k}.scale" in slots else k: v for k, v in slots.items()}


def _with_slot_names(slots: Mapping[str, Any]) -> dict[str, Any]:
    """Return slots with codes under the name of the slot."""
    return {key.removesuffix(".code"): value for key, value in slots.items()}


def _is_narrow(group: Mapping[str, Any]) -> bool:
    """Return whether a group keeps its moments in BF16 or Q8."""
    return group.get("state_dtype") not in (None, "F32")
