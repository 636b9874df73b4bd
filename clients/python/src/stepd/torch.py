"""A torch optimizer that runs its steps on stepd. Needs the extra ``torch``."""

from __future__ import annotations

import itertools
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, overload

import numpy as np

try:
    import torch
except ImportError as error:
    raise ImportError('stepd.torch needs torch: pip install "stepd[torch]"') from error
from torch.optim.optimizer import ParamsT

from ._adapter import adapter_options, check, client_of, is_sendable
from ._calls import NO_STATE, StepResult, without_state
from ._checks import require_count
from ._client import Client
from ._options import STEP_OPTIONS, StepOptions, nearest
from ._resident import ResidentRun
from ._shards import ShardedClient
from ._state import STEP, State
from ._tensors import Array, Tensor, array_of, bfloat16, scalar, tensor_of
from ._timeout import Timeout

_MASTER = "master_param"

#: The dtypes of moments in a narrow format, by safetensors name.
_NARROW_DTYPES = {torch.bfloat16: "BF16", torch.int8: "I8", torch.uint8: "U8"}

_DTYPES = frozenset([torch.float16, torch.bfloat16, torch.float32, torch.float64])

_PLAIN = frozenset([torch.Tensor, torch.nn.Parameter])

#: The step of these optimizers depends on the norm of a whole tensor.
_NEEDS_WHOLE_TENSORS = frozenset(["lamb", "lars"])

#: The stack level of the caller of :meth:`RemoteOptimizer.step`, past two torch
#: wrappers.
_CALLER_STACK_LEVEL = 4


class RemoteOptimizer(torch.optim.Optimizer):
    """Any optimizer of a stepd server, as a :class:`torch.optim.Optimizer`.

    ``params`` may be whatever a torch optimizer accepts: tensors, pairs of name and
    tensor, or groups, which may have their own hyperparameters. ``client`` is a Client,
    a ShardedClient or a URL. ``name`` is the optimizer; its hyperparameters have the
    names and defaults of ``client.describe(name)``. Learning rate schedulers and
    closures work as with torch's optimizers.

    The options of a step (:class:`stepd.StepOptions`: ``clip``, ``stats``,
    ``loss_scale`` and so on) are keyword arguments too. The attribute ``options`` holds
    the options, and may be changed between steps. torch's parameter groups replace
    ``groups``. With ``reply={"cache": True}``, the optimizer sets ``cached`` itself.

    ``state_dict`` is torch's: ``step`` (float32 scalar) and the slots under torch's
    names, so that states of Adam and AdamW load in both directions. Slots of bfloat16
    and float16 parameters are float32. Parameters on other devices are copied to the
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

    Parameters may be DTensors (``fully_shard``, tensor parallel): each process steps
    its local shards, and the slots are DTensors. LAMB, LARS, ``caution``, ``stats`` and
    ``clip`` by ``max_norm`` need norms over all shards, and raise ValueError, as
    ``non_finite="skip"`` does. ``stochastic_rounding`` draws random bits by an
    element's index in the local shard.

    Raises TypeError for a client, parameter or hyperparameter that cannot be used, and
    :class:`stepd.InvalidParams` for a value that the server refuses.
    """

    #: The last step's result, without the parameters, which are in the model. None
    #: before the first step, and if no parameter had a gradient.
    last_result: StepResult | None = None

    #: The steps on the server, if ``resident``.
    _run: ResidentRun | None = None

    #: The parameters of that run by name.
    _held: Mapping[str, torch.Tensor] = MappingProxyType({})

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
        grad_dtype: torch.dtype | None = None,
        **settings: Any,
    ) -> None:
        require_count("fetch_every", fetch_every)
        if grad_dtype is not None and grad_dtype not in _DTYPES:
            expected = "grad_dtype: expected a floating dtype such as torch.bfloat16"
            raise TypeError(f"{expected}, found {grad_dtype!r:.60}")
        self._grad_dtype = grad_dtype
        self._resident = resident
        self._fetch_every = fetch_every
        self._client = client_of(client)
        _require_params(params)
        if not isinstance(name, str):
            expected = "name: expected that of an optimizer, such as adamw, found"
            raise TypeError(f"{expected} {name!r:.60}")
        described = self._client.describe(name)
        schema = described["hyperparameters"]
        known: dict[str, Any] = dict(schema["properties"])
        del known["name"]
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
        self._revision: int = described["revision"]
        slots = described["slots"]["all"]
        self._scales = frozenset(f"{slot}.scale" for slot in slots)
        self._slots = frozenset([*slots, _MASTER, *self._scales])
        self._known = frozenset(known)
        self._timeout = timeout
        #: The options of each step. A change applies from the next step on.
        self.options: StepOptions = adapter_options(options)
        self._cached: _CachedResult | None = None
        self._make_run()
        defaults = {key: value.get("default") for key, value in known.items()}
        super().__init__(params, {**defaults, **hyperparameters})
        self._check()
        self._is_made = True

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
        if self._run is None or not self._run.steps:
            return
        assert self._cached is not None
        params, state = self._run.fetch()
        assert state is not None
        self._take_state(state, self._held)
        for name, param in self._held.items():
            if param.dtype == torch.float32 and self._rounds:
                whole = _like_parameter(_tensor(params[name]).clone(), param)
                self._own_state[param][_MASTER] = whole
        self._cached = _CachedResult(self._cached.result, self._own_state, self._held)

    @property
    def _rounds(self) -> bool:
        return (self.options.get("reply") or {}).get("params") == "bf16"

    def _make_run(self) -> None:
        """Make the next step send all parameters and state."""
        run = ResidentRun(self._client, self._timeout, self._fetch_every)
        self._run = run if self._resident else None
        self._held = {}
        self._cached = None

    def __getstate__(self) -> dict[str, Any]:
        # torch's own __getstate__ omits the attributes of subclasses.
        own = (
            "_client",
            "_name",
            "_revision",
            "_slots",
            "_scales",
            "_known",
            "_timeout",
            "_is_made",
            "_resident",
            "_fetch_every",
            "_grad_dtype",
        )
        mine = {key: getattr(self, key) for key in (*own, "options")}
        kept: dict[str, Any] = super().__getstate__()
        return {**kept, **mine}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._make_run()
        # A state from torch's own optimizers lacks the hyperparameters of stepd.
        for group in self.param_groups:
            for key, value in self.defaults.items():
                group.setdefault(key, value)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with their own hyperparameters, as torch does."""
        if isinstance(param_group, dict):
            if "params" not in param_group:
                found = ", ".join(map(str, param_group)) or "an empty one"
                raise TypeError(f"group: expected a dict with params, found {found}")
            _require_params(param_group["params"])
        super().add_param_group(param_group)
        try:
            for name, param in _labelled(self.param_groups[-1]):
                _check_tensor(name, param)
            if self._is_made:
                self._check()
        except BaseException:
            self.param_groups.pop()
            raise

    def _check(self) -> None:
        """Raise at once the errors that a step would raise for any gradients."""
        optimizers = [self._hyperparameters(group) for group in self.param_groups]
        if any(_is_sharded(param) for param in self._params()):
            self._check_shards(optimizers)
        _require_own_memory(self.param_groups)
        groups = [{"tensors": ["*"], "optimizer": one} for one in optimizers]
        optimizer = {"name": self._name, **optimizers[0]}
        check(self._client, optimizer, self.options, groups, resident=self._resident)

    def _check_shards(self, optimizers: Sequence[Mapping[str, Any]]) -> None:
        """Raise ValueError if the step needs more of a DTensor than the local shard."""
        options = self.options
        which = None
        if self._name in _NEEDS_WHOLE_TENSORS:
            which = f"{self._name} needs the norm of whole tensors"
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

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of this optimizer or of torch's, with its hyperparameters.

        Raises ValueError, before anything has changed, if the slots differ.
        """
        if not isinstance(state_dict, Mapping) or not (
            {"state", "param_groups"} <= state_dict.keys()
        ):
            found = f"{list(state_dict)!r:.60}" if state_dict else f"{state_dict!r}"
            expected = "expected what state_dict() of an optimizer gives, found"
            raise ValueError(f"state_dict: {expected} {found}")
        saved = list(
            itertools.chain.from_iterable(
                group["params"] for group in state_dict["param_groups"]
            )
        )
        for key, param in zip(saved, self._params(), strict=False):
            self._check_slots(state_dict["state"].get(key, {}), param)
        super().load_state_dict(state_dict)
        narrow = self._narrow()
        for key, param in zip(saved, self._params(), strict=True):
            # torch has cast every slot but the step to the parameter's dtype.
            wide = torch.float64 if param.dtype == torch.float64 else torch.float32
            for slot, value in state_dict["state"].get(key, {}).items():
                if slot == STEP or not isinstance(value, torch.Tensor):
                    continue
                dtype = wide if slot in self._slots else torch.float64
                if param in narrow and value.dtype in _NARROW_DTYPES:
                    dtype = value.dtype
                device = param.device if slot in self._slots else value.device
                own = value.detach().to(device, dtype, copy=True)
                self._own_state[param][slot] = own

    def _check_slots(self, state: Mapping[str, Any], param: torch.Tensor) -> None:
        for slot, value in state.items():
            if not isinstance(value, torch.Tensor) or slot == STEP:
                continue
            if slot not in self._slots and value.numel() != 1:
                expected = ", ".join(sorted(self._slots))
                raise ValueError(
                    f"the state has {slot}, which {self._name} does not have; "
                    f"its slots are {expected}"
                )
            if slot in self._scales:
                continue
            if slot in self._slots and value.shape != param.shape:
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
        self.last_result = None
        if self._run is not None and self._run.is_due:
            self.fetch_state()
        stepped: dict[str, torch.Tensor] = {}
        optimizers: list[dict[str, Any]] = []
        groups: list[dict[str, Any]] = []
        for group, names in zip(self.param_groups, self._names(), strict=True):
            taken = {
                name: param
                for name, param in zip(names, group["params"], strict=True)
                if param.grad is not None or self._held.get(name) is param
            }
            if taken:
                stepped.update(taken)
                optimizers.append(self._hyperparameters(group))
                groups.append({"tensors": list(taken)})
        if all(param.grad is None for param in stepped.values()):
            sentence = "no parameter has a gradient, so step() changed nothing"
            warnings.warn(sentence, stacklevel=_CALLER_STACK_LEVEL)
            return loss
        if any(_is_sharded(param) for param in stepped.values()):
            self._check_shards(optimizers)
        for entry, optimizer in zip(groups[1:], optimizers[1:], strict=True):
            entry["optimizer"] = optimizer
        options = adapter_options(self.options)
        # The server applies the first group to every tensor that no later group names.
        options["groups"] = groups[1:] or None
        params = {name: _array(_local(param)) for name, param in stepped.items()}
        grads = {
            name: _array(_gradient(param).to(self._grad_dtype or param.dtype))
            for name, param in stepped.items()
            if param.grad is not None
        }
        optimizer = {"name": self._name, **optimizers[0]}
        fits = self._cached is not None and self._cached.fits(
            params, self._own_state, stepped
        )
        if self._run is not None:
            if not fits:
                self.fetch_state()
                whole = self._unrounded(params, stepped)
                self._run.start(whole, self._state_of(stepped))
                self._held = stepped
            result = self._run.step(optimizer, grads, options)
            self._take_params(result, stepped)
            self._cached = _CachedResult(result, self._own_state, stepped)
            bare = replace(result, params={}, state=NO_STATE)
            self.last_result = without_state(bare)
        else:
            if fits and self._cached is not None:
                options["cached"] = self._cached.result.cached
            state = self._state_of(stepped)
            result = self._client.step(
                optimizer, params, grads, state, timeout=self._timeout, **options
            )
            self._cached = None
            if not result.skipped:
                self._take_params(result, stepped)
                self._take_state(result.state, stepped)
                if result.cached is not None:
                    self._cached = _CachedResult(result, self._own_state, stepped)
            self.last_result = replace(result, params={})
        for sentence in result.warnings:
            warnings.warn(sentence, RuntimeWarning, stacklevel=_CALLER_STACK_LEVEL)
        return loss

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
        for flag in ("maximize", "decoupled_weight_decay"):
            # torch's Adam with decoupled_weight_decay is AdamW, which has its own name
            # in stepd.
            means_it = flag == "maximize" or self._name == "adam"
            if group.get(flag) and flag not in self._known and means_it:
                raise ValueError(f"{self._name} of stepd has no {flag}")
        return {
            key: value.item() if isinstance(value, torch.Tensor) else value
            for key, value in group.items()
            if key in self._known
        }

    def _narrow(self) -> frozenset[torch.Tensor]:
        """Return the parameters whose moments are in a narrow format."""
        return frozenset(
            param
            for group in self.param_groups
            if _is_narrow(group)
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
        for name, param in params.items():
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
                if slot not in self._slots:
                    entries[f"{slot}/{name}"] = scalar("F64", float(value))
                    continue
                local = (
                    value if slot in self._scales else _local_like(slot, value, param)
                )
                if slot == _MASTER and not torch.equal(
                    local.to(param.dtype), _local(param)
                ):
                    # Other code, such as torch's own AdamW, has changed the weights, so
                    # the server makes a new master copy.
                    continue
                if param in narrow and local.dtype in _NARROW_DTYPES:
                    entries[f"{slot}/{name}"] = _narrow_tensor(local)
                    continue
                wide = local if local.dtype is dtype else local.to(dtype)
                entries[f"{slot}/{name}"] = tensor_of(slot, _array(wide))
        if not entries:
            return None
        return State.from_entries(self._name, self._revision, entries.items())

    def _unrounded(
        self, arrays: Mapping[str, Array], params: Mapping[str, torch.Tensor]
    ) -> dict[str, Array]:
        """Return the parameters, unrounded if ``reply`` has rounded them here."""
        whole = dict(arrays)
        for name, param in params.items():
            master = self._own_state.get(param, {}).get(_MASTER)
            if param.dtype == torch.float32 and master is not None:
                local = _local_like(_MASTER, master, param)
                if torch.equal(local.bfloat16().float(), _local(param).float()):
                    whole[name] = _array(local)
        return whole

    def _take_params(
        self, result: StepResult, params: Mapping[str, torch.Tensor]
    ) -> None:
        for name, param in params.items():
            _local(param).copy_(_tensor(result.params[name]))

    def _take_state(self, state: State, params: Mapping[str, torch.Tensor]) -> None:
        for slot, name, entry in state.entries():
            param = params[name]
            value: torch.Tensor
            if slot == STEP:
                count = int.from_bytes(entry.data, "little")
                value = torch.from_numpy(np.array(count, np.float32))
            elif slot in self._scales:
                value = _tensor(array_of(entry)).to(param.device)
            elif slot in self._slots:
                value = _like_parameter(_tensor(array_of(entry)), param)
            else:
                value = torch.tensor(float(array_of(entry)), dtype=torch.float64)
            self._own_state[param][slot] = value


class _CachedResult:
    """A result that the server has cached, which the next step may use."""

    def __init__(
        self,
        result: StepResult,
        state: Mapping[torch.Tensor, Mapping[str, Any]],
        params: Mapping[str, torch.Tensor],
    ) -> None:
        self.result = result
        self._versions = _versions(state, params)

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
        now = _versions(state, params)
        return (
            kept.keys() == arrays.keys()
            and len(now) == len(self._versions)
            and all(
                value is before and version == version_before
                for (value, version), (before, version_before) in zip(
                    now, self._versions, strict=True
                )
            )
            and all(
                np.array_equal(
                    _bits(_array(_tensor(kept[name]).to(params[name].dtype))),
                    _bits(array),
                )
                for name, array in arrays.items()
            )
        )


def _versions(
    state: Mapping[torch.Tensor, Mapping[str, Any]], params: Mapping[str, torch.Tensor]
) -> list[tuple[torch.Tensor, int]]:
    return [
        (value, value._version)
        for param in params.values()
        for value in state.get(param, {}).values()
    ]


def _is_narrow(group: Mapping[str, Any]) -> bool:
    """Return whether a group keeps its moments in BF16 or Q8."""
    return group.get("state_dtype") not in (None, "F32")


def _narrow_tensor(value: torch.Tensor) -> Tensor:
    """Return a moment in bfloat16, its 8-bit codes or their scales, unchanged."""
    array = np.ascontiguousarray(_array(value))
    data = array.reshape(-1).view(np.uint8).data
    return Tensor(_NARROW_DTYPES[value.dtype], tuple(value.shape), data)


def _bits(array: Array) -> Array:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _labelled(group: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Iterate over a group's parameters, each with a label for errors."""
    names = group.get("param_names") or map(str, range(len(group["params"])))
    for name, param in zip(names, group["params"], strict=True):
        yield f"parameter {name}", param


def _require_params(params: object) -> None:
    if isinstance(params, torch.nn.Module) or not isinstance(params, Iterable):
        found = "None" if params is None else type(params).__name__
        expected = "params: expected parameters, as parameters() of a module gives"
        raise TypeError(f"{expected} them, found {found}")


def _require_own_memory(groups: Iterable[Mapping[str, Any]]) -> None:
    """Raise ValueError for two parameters that overlap in memory.

    A step would read both with the same old values, and the second result would
    overwrite the first.
    """
    places: list[tuple[int, int, str, torch.Tensor]] = []
    labelled = [
        (f"{label} of group {index}", param)
        for index, group in enumerate(groups)
        for label, param in _labelled(group)
    ]
    for label, param in labelled:
        local = _local(param).detach()
        if local.is_meta or not local.numel() or not local.data_ptr():
            continue
        # The bounds reach from the first byte to the end of the last element, because
        # torch strides are >= 0.
        steps = zip(local.shape, local.stride(), strict=True)
        last = sum((size - 1) * stride for size, stride in steps)
        start = local.data_ptr()
        places.append((start, start + (last + 1) * local.element_size(), label, local))
    places.sort(key=lambda place: place[:2])
    for (_, end, one, a), (start, _, other, b) in itertools.pairwise(places):
        if start < end and a.device == b.device and _overlap(a, b):
            raise ValueError(
                f"{other}: expected memory of its own, found that of {one}, and one "
                "update would be lost; give a shared tensor as one parameter"
            )


def _overlap(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether tensors with overlapping bounds have an element in common."""
    if one.is_contiguous() and other.is_contiguous():
        return True
    try:
        work: Any = 10**5
        return np.shares_memory(_array(one), _array(other), max_work=work)
    except RuntimeError:
        # The search takes too long, so it counts as no overlap.
        return False


def _check_tensor(name: str, param: torch.Tensor) -> None:
    """Raise TypeError for a parameter that no step accepts."""
    if param.dtype.is_complex:
        raise TypeError(
            f"{name}: expected real numbers, found {param.dtype}; "
            "torch.view_as_real(parameter) has them"
        )
    if param.dtype not in _DTYPES:
        expected = "float16, bfloat16, float32 or float64"
        raise TypeError(f"{name}: expected {expected}, found {param.dtype}")
    if param.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, found {param.layout}")
    if hasattr(param, "__tensor_flatten__") and not _is_dtensor(param):
        kind = type(param).__name__
        raise TypeError(f"{name}: expected a plain tensor or a DTensor, found {kind}")


def _is_dtensor(tensor: Any) -> bool:
    if type(tensor) in _PLAIN:
        return False
    # Looking for a loaded module avoids a slow import: no DTensor exists without it.
    for module in ("torch.distributed.tensor", "torch.distributed._tensor"):
        kind = getattr(sys.modules.get(module), "DTensor", None)
        if kind is not None:
            return isinstance(tensor, kind)
    return False


def _is_sharded(tensor: Any) -> bool:
    """Return whether this process holds only a part of the tensor."""
    if not _is_dtensor(tensor):
        return False
    return any(
        not placement.is_replicate() and tensor.device_mesh.size(dim) > 1
        for dim, placement in enumerate(tensor.placements)
    )


def _local(tensor: Any) -> torch.Tensor:
    """Return this process's shard of a DTensor; any other tensor unchanged."""
    if not _is_dtensor(tensor):
        return tensor  # type: ignore[no-any-return]
    local = tensor.to_local()
    # Wait for a collective operation that may still be running.
    return local.wait() if hasattr(local, "wait") else local  # type: ignore[no-any-return]


def _local_like(name: str, tensor: Any, param: Any) -> torch.Tensor:
    """Return the part of a gradient or slot that belongs to the parameter's shard.

    Raises ValueError if only one of the two is a DTensor.
    """
    if _is_dtensor(tensor) != _is_dtensor(param):
        kinds = ("a DTensor", "a plain tensor")
        expected, found = kinds if _is_dtensor(param) else kinds[::-1]
        raise ValueError(f"{name}: expected {expected} as its parameter, found {found}")
    if _is_dtensor(param) and tensor.placements != param.placements:
        tensor = tensor.redistribute(param.device_mesh, param.placements)
    return _local(tensor)


def _like_parameter(value: torch.Tensor, param: Any) -> torch.Tensor:
    """Return a slot on its parameter's device, distributed as the parameter is."""
    if not _is_dtensor(param):
        return value if param.is_cpu else value.to(param.device)
    placed: torch.Tensor = type(param).from_local(
        value.to(_local(param).device),
        param.device_mesh,
        param.placements,
        run_check=False,
        shape=param.shape,
        stride=param.stride(),
    )
    return placed


def _gradient(param: torch.Tensor) -> torch.Tensor:
    gradient = param.grad
    assert gradient is not None
    if gradient.layout != torch.strided:
        # Conversion to dense adds up duplicate rows.
        gradient = gradient.to_dense()
    return _local_like("gradient", gradient, param)


def _array(tensor: torch.Tensor) -> Array:
    """Return a tensor as numpy: a view in the CPU's memory, otherwise a copy."""
    if tensor.is_meta:
        raise ValueError("expected parameters with values, found some on device meta")
    if tensor.requires_grad:
        tensor = tensor.detach()
    if not tensor.is_cpu:
        tensor = tensor.cpu()
    if tensor.dtype == torch.bfloat16:
        # numpy has no bfloat16, so torch cannot convert such a tensor.
        return tensor.view(torch.int16).numpy().view(np.uint16).view(bfloat16)
    array: Array = tensor.numpy()
    return array


def _tensor(array: Array) -> torch.Tensor:
    if array.dtype == bfloat16 and array.dtype != np.float16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
