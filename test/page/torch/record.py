"""Writes the files of torch.save beside this script, for the tests of the doctor.

clients/python/.venv/bin/python test/page/torch/record.py
"""

import os
from pathlib import Path

import torch

folder = Path(__file__).parent


def model() -> torch.nn.Module:
    torch.manual_seed(3)
    return torch.nn.Linear(3, 2)


def trained(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.Optimizer:
    torch.manual_seed(5)
    for _ in range(steps):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    return optimizer


def save(name: str, value: object, **options: object) -> None:
    torch.save(value, folder / f"{name}.pt", **options)


def adamw(names: bool = False, steps: int = 7, lr: float = 1e-2) -> dict:
    layer = model()
    parameters = layer.named_parameters() if names else layer.parameters()
    return trained(torch.optim.AdamW(parameters, lr=lr), steps).state_dict()


class Harmful:
    def __reduce__(self) -> tuple:
        return os.system, ("touch harmed",)


save("adamw", adamw())
save("adamw-names", adamw(names=True))
save("adamw-later", adamw(names=True, steps=9, lr=5e-3))
sgd = torch.optim.SGD(model().parameters(), lr=0.1, momentum=0.9)
save(
    "sgd",
    {
        "epoch": 2,
        "model": model().state_dict(),
        "optimizer": trained(sgd, 4).state_dict(),
    },
)
save("weights", model().state_dict())
save("whole", trained(torch.optim.SGD(model().parameters(), lr=0.1), 1))
save("radam", trained(torch.optim.RAdam(model().parameters()), 2).state_dict())
save("harmful", {"optimizer": adamw(), "callback": Harmful()})
save("old", adamw(), _use_new_zipfile_serialization=False)

# These slots are BF16, and one slot is a view with other strides.
state = adamw()
for slots in state["state"].values():
    slots["exp_avg"] = slots["exp_avg"].bfloat16()
state["state"][0]["exp_avg"] = state["state"][0]["exp_avg"].t().contiguous().t()
save("adamw-bf16", {"optimizer_states": [state]})
