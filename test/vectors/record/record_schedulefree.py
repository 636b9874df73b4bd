"""Records vectors of schedulefree."""

from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from recording import ODD, Arrays, Case, Peer, record
from schedulefree import AdamWScheduleFree, SGDScheduleFree
from torch_run import TorchRun

# The peer keeps these values per group, beside the hyperparameters.
_NOT_RECORDED = ("k", "train_mode", "weight_sum", "lr_max", "scheduled_lr")


class ScheduleFreeRun(TorchRun):
    """A run in training mode. The state also has the average x of each tensor."""

    def __init__(
        self, make: type[torch.optim.Optimizer], case: Case, params: Arrays
    ) -> None:
        super().__init__(make, case, params)
        self.hyperparameters = {
            name: value
            for name, value in self.hyperparameters.items()
            if name not in _NOT_RECORDED
        }
        self._optimizer.train()

    def state(self) -> dict[str, dict[str, Any]]:
        training = {name: param.clone() for name, param in self._params.items()}
        self._optimizer.eval()
        averages = self.params()
        self._optimizer.train()
        with torch.no_grad():
            for name, param in self._params.items():
                param.copy_(training[name])
        group = self._optimizer.param_groups[0]
        return {
            name: {
                **slots,
                "x": averages[name],
                "step": group["k"],
                "lr_max": np.array(group["lr_max"], np.float64),
                "weight_sum": np.array(group["weight_sum"], np.float64),
            }
            for name, slots in super().state().items()
        }


def _peer(optimizer: type[torch.optim.Optimizer], cases: list[Case]) -> Peer:
    source = {
        "package": "schedulefree",
        "version": version("schedulefree"),
        "class": optimizer.__name__,
    }
    return Peer(source, partial(ScheduleFreeRun, optimizer), cases)


PEERS = {
    "schedule_free_adamw.schedulefree": _peer(
        AdamWScheduleFree,
        [
            Case("default", 811276001, steps=8),
            Case(
                "warmup-wd",
                811276002,
                {"lr": 0.01, "warmup_steps": 3, "weight_decay": 0.05},
                shapes=ODD,
                steps=6,
            ),
            Case("r", 811276003, {"lr": 0.01, "r": 1.5, "weight_lr_power": 1.0}),
            Case("betas", 811276004, {"betas": (0.98, 0.3), "eps": 1e-6}),
            Case("zeros-first", 811276005, grads="zeros_first"),
            Case("lr-per-step", 811276006, lrs=(0.0, 0.005, 0.001, 0.002, 0.0)),
        ],
    ),
    "schedule_free_sgd.schedulefree": _peer(
        SGDScheduleFree,
        [
            Case("default", 811276011, {"lr": 0.1}, steps=8),
            Case(
                "warmup-wd",
                811276012,
                {"lr": 0.05, "warmup_steps": 3, "weight_decay": 0.05},
                shapes=ODD,
                steps=6,
            ),
            Case("r", 811276013, {"lr": 0.1, "r": 2.0, "weight_lr_power": 0.0}),
            Case("momentum", 811276014, {"lr": 0.1, "momentum": 0.5}),
            Case("zeros-first", 811276015, {"lr": 0.1}, grads="zeros_first"),
        ],
    ),
}

if __name__ == "__main__":
    record(PEERS)
