"""A torch optimizer whose steps stepd does. Needs the extra ``torch``."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, overload

import numpy as np
import torch
from torch.optim.optimizer import ParamsT

from ._calls import StepResult
from ._client import Client
from ._options import NonFinite
from ._shards import ShardedClient
from ._state import STEP, State
from ._tensors import Array, Tensor, array_of, bfloat16, scalar, tensor_of
from ._timeout import Timeout

_MASTER = "master_param"


class RemoteOptimizer(torch.optim.Optimizer):
    """Any optimizer of a stepd server, as a :class:`torch.optim.Optimizer`.

    ``params`` are what every torch optimizer takes: tensors, pairs of name and
    tensor, or groups, which may have hyperparameters of their own. ``client`` is a
    Client, a ShardedClient or a URL, ``name`` the optimizer, and its hyperparameters
    have the names and defaults of ``client.describe(name)``. Learning rate schedulers
    and closures work as with torch's own.

    ``state_dict`` is torch's: ``step`` (float32 scalar) and the slots in torch's names
    and meaning, so Adam's and AdamW's go either way. Slots of bfloat16 and float16
    parameters are float32. Parameters on other devices are copied over.

    Raises TypeError for a hyperparameter that the optimizer does not have.
    """

    def __init__(
        self,
        params: ParamsT,
        client: Client | ShardedClient | str,
        name: str = "adamw",
        *,
        clip: Mapping[str, float] | None = None,
        non_finite: NonFinite | None = None,
        master_weights: bool | None = None,
        timeout: float | Timeout | None = None,
        **hyperparameters: Any,
    ) -> None:
        self._client = Client(client) if isinstance(client, str) else client
        described = self._client.describe(name)
        schema = described["hyperparameters"]
        known: dict[str, Any] = dict(schema["properties"])
        del known["name"]
        for key in hyperparameters:
            if key not in known:
                expected = ", ".join(known)
                raise TypeError(f"{name} has no hyperparameter {key}, but {expected}")
        self._name = name
        self._revision: int = described["revision"]
        self._slots = frozenset([*described["slots"]["all"], _MASTER])
        self._known = frozenset(known)
        self._settings: dict[str, Any] = {
            "clip": clip,
            "non_finite": non_finite,
            "master_weights": master_weights,
            "timeout": timeout,
        }
        #: Whether the last step was skipped because of ``non_finite="skip"``.
        self.skipped = False
        defaults = {key: value.get("default") for key, value in known.items()}
        super().__init__(params, {**defaults, **hyperparameters})

    def __getstate__(self) -> dict[str, Any]:
        # torch's own knows nothing of a subclass's attributes.
        own = ("_client", "_name", "_revision", "_slots", "_known", "_settings")
        mine = {key: getattr(self, key) for key in (*own, "skipped")}
        kept: dict[str, Any] = super().__getstate__()
        return {**kept, **mine}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # A state of torch's own optimizers lacks what only stepd has.
        for group in self.param_groups:
            for key, value in self.defaults.items():
                group.setdefault(key, value)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load this or torch's optimizer's state: its hyperparameters are taken too."""
        super().load_state_dict(state_dict)
        saved = itertools.chain.from_iterable(
            group["params"] for group in state_dict["param_groups"]
        )
        for key, param in zip(saved, self._params(), strict=True):
            # torch has cast everything but the step to the parameter's dtype.
            wide = torch.float64 if param.dtype == torch.float64 else torch.float32
            for slot, value in state_dict["state"].get(key, {}).items():
                if slot == STEP or not isinstance(value, torch.Tensor):
                    continue
                dtype = wide if slot in self._slots else torch.float64
                device = param.device if slot in self._slots else value.device
                self.state[param][slot] = value.detach().to(device, dtype, copy=True)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of all parameters that have a gradient.

        Raises :class:`stepd.StepdError`; then nothing has changed.
        """
        loss: float | None = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.skipped = False
        stepped: dict[str, torch.Tensor] = {}
        optimizers: list[dict[str, Any]] = []
        groups: list[dict[str, Any]] = []
        for group, names in zip(self.param_groups, self._names(), strict=True):
            with_grad = {
                name: param
                for name, param in zip(names, group["params"], strict=True)
                if param.grad is not None
            }
            if with_grad:
                stepped.update(with_grad)
                optimizers.append(self._hyperparameters(group))
                groups.append({"tensors": list(with_grad)})
        if not stepped:
            return loss
        for entry, optimizer in zip(groups[1:], optimizers[1:], strict=True):
            entry["optimizer"] = optimizer
        result = self._client.step(
            {"name": self._name, **optimizers[0]},
            {name: _array(param) for name, param in stepped.items()},
            {name: _array(_gradient(param)) for name, param in stepped.items()},
            self._state_of(stepped),
            # The first group is what holds for those that no other names.
            groups=groups[1:] or None,
            **self._settings,
        )
        self.skipped = result.skipped
        if not result.skipped:
            self._take(result, stepped)
        return loss

    def _params(self) -> Iterator[torch.Tensor]:
        for group in self.param_groups:
            yield from group["params"]

    def _names(self) -> Iterable[list[str]]:
        """Names by group: the caller's own, or numbers where it gave none.

        Numbers too where two groups have a name in common, which torch allows, and
        where there is a * in one, which stands for any name in a group's tensors.
        """
        named = [group.get("param_names") for group in self.param_groups]
        everyone = [name for names in named for name in names or ["*"]]
        is_unique = len(set(everyone)) == len(everyone)
        if is_unique and not any("*" in name for name in everyone):
            return [list(names or ()) for names in named]
        numbers = itertools.count()
        return [[str(next(numbers)) for _ in g["params"]] for g in self.param_groups]

    def _hyperparameters(self, group: Mapping[str, Any]) -> dict[str, Any]:
        for flag in ("maximize", "decoupled_weight_decay"):
            # torch's Adam is AdamW by a flag, which is a name here.
            means_it = flag == "maximize" or self._name == "adam"
            if group.get(flag) and flag not in self._known and means_it:
                raise ValueError(f"{self._name} of stepd has no {flag}")
        return {
            key: value.item() if isinstance(value, torch.Tensor) else value
            for key, value in group.items()
            if key in self._known
        }

    def _state_of(self, params: Mapping[str, torch.Tensor]) -> State | None:
        """The state in stepd's form, of views where that is possible."""
        entries: list[tuple[str, Tensor]] = []
        for name, param in params.items():
            kept = {k: v for k, v in self.state.get(param, {}).items() if v is not None}
            if not kept:
                continue
            # torch's SGD counts no steps; a buffer is there from the first one on.
            steps = int(kept.pop(STEP, 1))
            entries.append((f"{STEP}/{name}", scalar("I64", steps)))
            dtype = torch.float64 if param.dtype == torch.float64 else torch.float32
            for slot, value in kept.items():
                if slot == _MASTER and not torch.equal(value.to(param.dtype), param):
                    # The weights were set by someone else, such as torch's own AdamW:
                    # the server makes a new copy of them.
                    continue
                if slot in self._slots:
                    entry = tensor_of(slot, _array(value.to(dtype)))
                else:
                    entry = scalar("F64", float(value))
                entries.append((f"{slot}/{name}", entry))
        if not entries:
            return None
        return State.from_entries(self._name, self._revision, entries)

    def _take(self, result: StepResult, params: Mapping[str, torch.Tensor]) -> None:
        for name, param in params.items():
            param.copy_(_tensor(result.params[name]))
        for slot, name, entry in result.state.entries():
            param = params[name]
            value: torch.Tensor
            if slot == STEP:
                value = torch.tensor(float(array_of(entry)), dtype=torch.float32)
            elif slot in self._slots:
                value = _tensor(array_of(entry)).to(param.device)
            else:
                value = torch.tensor(float(array_of(entry)), dtype=torch.float64)
            self.state[param][slot] = value


def _gradient(param: torch.Tensor) -> torch.Tensor:
    gradient = param.grad
    assert gradient is not None
    if gradient.layout != torch.strided:
        raise TypeError(f"expected a dense gradient, found {gradient.layout}")
    return gradient


def _array(tensor: torch.Tensor) -> Array:
    """A view of a tensor in the CPU's memory, else a copy."""
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        # numpy has no bfloat16 of its own, so torch does not convert it.
        return tensor.view(torch.int16).numpy().view(np.uint16).view(bfloat16)
    array: Array = tensor.numpy()
    return array


def _tensor(array: Array) -> torch.Tensor:
    if array.dtype == bfloat16 and array.dtype != np.float16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
