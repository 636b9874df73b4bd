"""Records vectors of prodigyopt."""

import math
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from prodigyopt import Prodigy
from recording import ODD, Arrays, Case, Peer, record
from torch_run import TorchRun

# The peer keeps these values per group, beside the hyperparameters.
_ESTIMATES = ("d", "d_max", "d_numerator", "k")
_NOT_RECORDED = (*_ESTIMATES, "fsdp_in_use", "slice_p")


class ProdigyRun(TorchRun):
    def __init__(
        self, make: type[torch.optim.Optimizer], case: Case, params: Arrays
    ) -> None:
        super().__init__(make, case, params)
        self.hyperparameters = {
            name: None if value == math.inf else value
            for name, value in self.hyperparameters.items()
            if name not in _NOT_RECORDED
        }

    def state(self) -> dict[str, dict[str, Any]]:
        group = self._optimizer.param_groups[0]
        estimates = {
            name: np.array(float(group[name]), np.float64) for name in _ESTIMATES
        }
        return {
            name: {slot: self._shaped(name, value) for slot, value in slots.items()}
            | (estimates if slots else {})
            for name, slots in super().state().items()
        }

    def _shaped(self, name: str, value: Any) -> Any:
        """Give s and p0 the parameter's shape. A p0 of zeros is one number there."""
        if not isinstance(value, np.ndarray):
            return value
        shape = tuple(self._params[name].shape)
        return (
            np.broadcast_to(value, shape).copy()
            if value.ndim == 0
            else value.reshape(shape)
        )


def _peer(cases: list[Case]) -> Peer:
    source = {
        "package": "prodigyopt",
        "version": version("prodigyopt"),
        "class": "Prodigy",
    }
    return Peer(source, partial(ProdigyRun, Prodigy), cases)


PEERS = {
    "prodigy.prodigyopt": _peer(
        [
            Case("default", 640228301, steps=8),
            Case("d0", 640228858, {"d0": 0.01, "d_coef": 6.0}, steps=8),
            Case(
                "wd-corrected",
                640228903,
                {
                    "lr": 0.5,
                    "d0": 0.01,
                    "weight_decay": 0.1,
                    "use_bias_correction": True,
                    "d_coef": 8.0,
                },
                shapes=ODD,
                steps=6,
            ),
            Case(
                "coupled",
                640228704,
                {
                    "d0": 0.01,
                    "weight_decay": 0.1,
                    "decouple": False,
                    "growth_rate": 1.02,
                    "d_coef": 8.0,
                    "betas": (0.8, 0.99),
                    "beta3": 0.9,
                },
                steps=6,
            ),
            Case(
                "beta1-0",
                640228805,
                {"d0": 0.01, "betas": (0.0, 0.99), "eps": 1e-6, "d_coef": 4.0},
                steps=6,
            ),
            Case(
                "safeguard",
                640228606,
                {"d0": 0.01, "safeguard_warmup": True, "d_coef": 4.0},
                lrs=(0.2, 0.4, 0.6, 0.8, 1.0),
            ),
            Case("zeros-first", 640228307, {"d0": 0.01}, grads="zeros_first"),
            Case("missing", 640228708, {"d0": 0.01, "d_coef": 8.0}, grads="missing"),
            Case("zero-params", 640229109, {"d0": 0.01}, grads="zero_params"),
            Case(
                "lr-per-step",
                640228310,
                {"d0": 0.01, "weight_decay": 0.1, "d_coef": 8.0},
                lrs=(0.0, 0.5, 1.0, 0.0, 0.3),
            ),
        ],
    ),
}

if __name__ == "__main__":
    record(PEERS)
