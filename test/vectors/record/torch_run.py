"""Runs optimizers derived from torch.optim.Optimizer."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from recording import Arrays, Case, Peer, Run

# These arguments select an implementation, or hold state. They are not hyperparameters.
_NOT_RECORDED = (
    "foreach",
    "fused",
    "capturable",
    "differentiable",
    "max_lr_snapshot",
)

# One thread fixes the order of sums.
torch.set_num_threads(1)


def _array(value: Any) -> Any:
    """Convert a slot. Steps become integers; qhoptim's weights are Python floats."""
    if isinstance(value, torch.Tensor):
        return value.detach().numpy().copy()
    return np.array(value, np.float64) if isinstance(value, float) else value


class TorchRun(Run):
    def __init__(
        self, make: Callable[..., torch.optim.Optimizer], case: Case, params: Arrays
    ) -> None:
        self._params = {
            name: torch.nn.Parameter(torch.from_numpy(value.copy()))
            for name, value in params.items()
        }
        # Slots of one number, such as NAdam's mu_product, have torch's default dtype.
        self._dtype = next(iter(self._params.values())).dtype
        groups = [
            {
                "params": [self._params[name] for name in group["tensors"]],
                **group["hyperparameters"],
            }
            for group in case.groups
        ]
        self._optimizer = make(groups or list(self._params.values()), **case.given)
        # Only timm's Lion would use foreach, whose operations on lists of tensors give
        # other last bits.
        for group in self._optimizer.param_groups:
            if "foreach" in group:
                group["foreach"] = False
        self.hyperparameters = {
            name: value
            for name, value in self._optimizer.defaults.items()
            if name not in _NOT_RECORDED
        }

    def step(self, grads: Arrays, lr: float | None) -> None:
        for name, param in self._params.items():
            # Some peers write into the gradient, so they get a copy.
            param.grad = torch.from_numpy(grads[name].copy()) if name in grads else None
        torch.set_default_dtype(self._dtype)
        if lr is not None:
            for group in self._optimizer.param_groups:
                group["lr"] = lr
        self._optimizer.step()

    def params(self) -> Arrays:
        return {name: _array(param) for name, param in self._params.items()}

    def state(self) -> dict[str, dict[str, Any]]:
        # timm's Lamb keeps one step per group.
        steps = {
            id(param): int(group["step"])
            for group in self._optimizer.param_groups
            if "step" in group
            for param in group["params"]
        }
        return {
            name: self._slots(param)
            | ({"step": steps[id(param)]} if id(param) in steps else {})
            for name, param in self._params.items()
        }

    def _slots(self, param: torch.nn.Parameter) -> dict[str, Any]:
        slots = self._optimizer.state.get(param, {})
        return {
            slot: int(value) if slot == "step" else _array(value)
            for slot, value in slots.items()
            # pytorch_optimizer's AdaBelief has slots of other options, which are None.
            if value is not None
        }


def torch_run(
    make: Callable[..., torch.optim.Optimizer],
) -> Callable[[Case, Arrays], Run]:
    return lambda case, params: TorchRun(make, case, params)


def torch_peer(
    package: str,
    version: str,
    optimizer: type[torch.optim.Optimizer],
    cases: list[Case],
) -> Peer:
    """Return the peer for an optimizer class of a package."""
    source = {"package": package, "version": version, "class": optimizer.__name__}
    return Peer(source, torch_run(optimizer), cases)
