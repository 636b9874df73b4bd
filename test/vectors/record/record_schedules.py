"""Records learning rates of torch's and optax's schedules, in float64."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import optax
import torch
from recording import write
from torch.optim import lr_scheduler

STEPS = 200

Schedule = tuple[str, dict[str, Any], float]

TORCH: list[Schedule] = [
    ("StepLR", {"step_size": 30, "gamma": 0.1}, 0.1),
    ("StepLR", {"step_size": 7, "gamma": 0.5}, 0.001),
    ("MultiStepLR", {"milestones": [30, 80, 80, 150], "gamma": 0.1}, 0.1),
    ("ConstantLR", {"factor": 1 / 3, "total_iters": 5}, 0.1),
    ("LinearLR", {"start_factor": 1 / 3, "end_factor": 1.0, "total_iters": 5}, 0.1),
    ("LinearLR", {"start_factor": 1e-4, "end_factor": 1.0, "total_iters": 100}, 0.1),
    ("ExponentialLR", {"gamma": 0.97}, 0.1),
    ("PolynomialLR", {"total_iters": 100, "power": 1.0}, 0.1),
    ("PolynomialLR", {"total_iters": 150, "power": 2.0}, 0.1),
    ("CosineAnnealingLR", {"T_max": 200, "eta_min": 0.0}, 0.1),
    ("CosineAnnealingLR", {"T_max": 50, "eta_min": 0.001}, 0.1),
    ("CosineAnnealingWarmRestarts", {"T_0": 10, "T_mult": 1}, 0.1),
    ("CosineAnnealingWarmRestarts", {"T_0": 10, "T_mult": 2, "eta_min": 1e-4}, 0.1),
    ("OneCycleLR", {"max_lr": 0.5, "total_steps": 200}, 0.1),
    (
        "OneCycleLR",
        {
            "max_lr": 0.5,
            "total_steps": 200,
            "pct_start": 0.1,
            "anneal_strategy": "linear",
            "div_factor": 10.0,
            "final_div_factor": 100.0,
            "three_phase": True,
        },
        0.1,
    ),
    (
        "CyclicLR",
        {
            "base_lr": 0.01,
            "max_lr": 0.1,
            "step_size_up": 20,
            "mode": "triangular2",
            "cycle_momentum": False,
        },
        0.01,
    ),
    (
        "SequentialLR",
        {
            "schedulers": [
                {
                    "scheduler": "LinearLR",
                    "args": {"start_factor": 0.01, "total_iters": 10},
                },
                {"scheduler": "CosineAnnealingLR", "args": {"T_max": 190}},
            ],
            "milestones": [10],
            "tag": "warmup+cosine",
        },
        0.1,
    ),
    (
        "SequentialLR",
        {
            "schedulers": [
                {
                    "scheduler": "LinearLR",
                    "args": {"start_factor": 0.1, "total_iters": 20},
                },
                {"scheduler": "StepLR", "args": {"step_size": 60, "gamma": 0.1}},
            ],
            "milestones": [20],
            "tag": "warmup+step",
        },
        0.1,
    ),
]

CHAINED: list[Schedule] = [
    (
        "ChainedScheduler",
        {
            "schedulers": [
                {
                    "scheduler": "ConstantLR",
                    "args": {"factor": 0.1, "total_iters": 20},
                },
                {"scheduler": "ExponentialLR", "args": {"gamma": 0.97}},
            ]
        },
        0.1,
    ),
    (
        "ChainedScheduler",
        {
            "schedulers": [
                {
                    "scheduler": "LinearLR",
                    "args": {"start_factor": 0.25, "total_iters": 30},
                },
                {"scheduler": "CosineAnnealingLR", "args": {"T_max": 250}},
                {"scheduler": "StepLR", "args": {"step_size": 60, "gamma": 0.5}},
            ]
        },
        0.3,
    ),
]

#: Schedules of transformers are LambdaLR of torch with these factors.
TRANSFORMERS: list[tuple[str, dict[str, Any]]] = [
    ("get_inverse_sqrt_schedule", {"num_warmup_steps": 25, "timescale": None}),
    ("get_inverse_sqrt_schedule", {"num_warmup_steps": 0, "timescale": None}),
    ("get_inverse_sqrt_schedule", {"num_warmup_steps": 10, "timescale": 40}),
    (
        "get_cosine_schedule_with_warmup",
        {"num_warmup_steps": 20, "num_training_steps": 150},
    ),
    *(
        (
            "get_wsd_schedule",
            {
                "num_warmup_steps": 20,
                "num_stable_steps": 90,
                "num_decay_steps": 60,
                "decay_type": decay_type,
                "min_lr_ratio": 0.05,
            },
        )
        for decay_type in ("linear", "cosine", "1-sqrt")
    ),
]

TABLE = [1.0, 0.5, 0.75, 0.1, 0.0, 0.3]

PLATEAU = {
    "mode": "min",
    "factor": 0.5,
    "patience": 5,
    "threshold": 1e-4,
    "threshold_mode": "rel",
    "cooldown": 2,
    "min_lr": 1e-4,
    "eps": 1e-8,
}
PLATEAU_SEED = 5

GOYAL = {
    "note": "Goyal et al. 1706.02677: lr grows linearly, every iteration, "
    "from base (0.1) to k*base (3.2, k=32) during warm-up, then steps by 0.1",
    "base": 0.1,
    "k": 32,
    "warmup_iters": 50,
    "milestones": [100, 150],
    "gamma": 0.1,
}

OPTAX: list[tuple[str, dict[str, Any]]] = [
    (
        "warmup_cosine_decay_schedule",
        {
            "init_value": 0.0,
            "peak_value": 0.1,
            "warmup_steps": 20,
            "decay_steps": 180,
            "end_value": 0.001,
        },
    ),
    (
        "linear_schedule",
        {"init_value": 0.1, "end_value": 0.01, "transition_steps": 100},
    ),
    (
        "polynomial_schedule",
        {"init_value": 0.1, "end_value": 0.0, "power": 2.0, "transition_steps": 120},
    ),
    (
        "exponential_decay",
        {"init_value": 0.1, "transition_steps": 10, "decay_rate": 0.9},
    ),
]

TORCH_SOURCE = {
    "package": "torch",
    "version": f"{torch.__version__.partition('+')[0]}+cpu",
}
OPTAX_SOURCE = {"package": "optax", "version": f"{optax.__version__} (x64)"}


def _optimizer(lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr, momentum=0.9)


def _inverse_sqrt(step: int, num_warmup_steps: int, timescale: int | None) -> float:
    if step < num_warmup_steps:
        return step / max(1, num_warmup_steps)
    scale = timescale or num_warmup_steps or 10_000
    return 1 / math.sqrt((step + scale - num_warmup_steps) / scale)


def _warmup_cosine(step: int, num_warmup_steps: int, num_training_steps: int) -> float:
    if step < num_warmup_steps:
        return step / max(1, num_warmup_steps)
    progress = (step - num_warmup_steps) / max(1, num_training_steps - num_warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1)))


def _warmup_stable_decay(
    step: int,
    num_warmup_steps: int,
    num_stable_steps: int,
    num_decay_steps: int,
    decay_type: str,
    min_lr_ratio: float,
) -> float:
    if step < num_warmup_steps:
        factor = step / max(1, num_warmup_steps)
    elif step < num_warmup_steps + num_stable_steps:
        factor = 1.0
    elif step < num_warmup_steps + num_stable_steps + num_decay_steps:
        progress = (step - num_warmup_steps - num_stable_steps) / num_decay_steps
        factor = {
            "linear": 1 - progress,
            "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
            "1-sqrt": 1 - math.sqrt(progress),
        }[decay_type]
    else:
        factor = 0.0
    return factor * (1 - min_lr_ratio) + min_lr_ratio


FACTORS: Mapping[str, Callable[..., float]] = {
    "get_inverse_sqrt_schedule": _inverse_sqrt,
    "get_cosine_schedule_with_warmup": _warmup_cosine,
    "get_wsd_schedule": _warmup_stable_decay,
}


def _scheduler(
    name: str, args: Mapping[str, Any], optimizer: torch.optim.Optimizer
) -> Any:
    if name == "SequentialLR":
        parts = [
            _scheduler(part["scheduler"], part["args"], optimizer)
            for part in args["schedulers"]
        ]
        return lr_scheduler.SequentialLR(optimizer, parts, args["milestones"])
    if name == "ChainedScheduler":
        return lr_scheduler.ChainedScheduler(
            [
                _scheduler(part["scheduler"], part["args"], optimizer)
                for part in args["schedulers"]
            ],
            optimizer,
        )
    if name == "LambdaLR":
        factors = args["factors"]
        return lr_scheduler.LambdaLR(
            optimizer, lambda step: factors[min(step, len(factors) - 1)]
        )
    if name.startswith("transformers."):
        factor = FACTORS[name.removeprefix("transformers.")]
        return lr_scheduler.LambdaLR(optimizer, lambda step: factor(step, **args))
    return getattr(lr_scheduler, name)(optimizer, **args)


def _torch(
    name: str, args: Mapping[str, Any], lr: float, metrics: list[float] | None = None
) -> dict[str, Any]:
    optimizer = _optimizer(lr)
    scheduler = _scheduler(name, args, optimizer)
    group = optimizer.param_groups[0]
    lrs, momentums = [], []
    for step in range(STEPS):
        lrs.append(group["lr"])
        momentums.append(group["momentum"])
        optimizer.step()
        # OneCycleLR allows at most this many steps.
        if step < STEPS - 1:
            scheduler.step(*([metrics[step]] if metrics else []))
    return {
        "scheduler": name,
        "args": args,
        "base_lr": lr,
        "source": TORCH_SOURCE,
        "lrs": lrs,
        **({"momentums": momentums} if name == "OneCycleLR" else {}),
        **({"metrics": metrics} if metrics else {}),
    }


def _goyal() -> dict[str, Any]:
    """The warm-up of Goyal et al., made of torch schedules that count separately."""
    warmup = GOYAL["warmup_iters"]
    parts = [
        {
            "scheduler": "LinearLR",
            "args": {"start_factor": 1 / GOYAL["k"], "total_iters": warmup},
        },
        {
            "scheduler": "MultiStepLR",
            "args": {
                "milestones": [at - warmup for at in GOYAL["milestones"]],
                "gamma": GOYAL["gamma"],
            },
        },
    ]
    recorded = _torch(
        "SequentialLR",
        {"schedulers": parts, "milestones": [warmup]},
        GOYAL["base"] * GOYAL["k"],
    )
    return {**recorded, "scheduler": "GoyalGradualWarmup", "args": GOYAL}


def _optax(name: str, args: Mapping[str, Any]) -> dict[str, Any]:
    with jax.enable_x64(True):
        schedule = getattr(optax, name)(**args)
        lrs = [float(schedule(step)) for step in range(STEPS)]
    return {
        "scheduler": f"optax.{name}",
        "args": args,
        "base_lr": None,
        "source": OPTAX_SOURCE,
        "lrs": lrs,
    }


def _cases() -> Iterator[dict[str, Any]]:
    for name, args, lr in TORCH:
        yield _torch(name, args, lr)
    yield _goyal()
    draws = np.random.default_rng(PLATEAU_SEED).random(STEPS)
    metrics = [
        round(2 / (1 + step / 20) + 0.3 * float(draws[step]), 4)
        for step in range(STEPS)
    ]
    yield _torch("ReduceLROnPlateau", PLATEAU, 0.1, metrics)
    for name, args in OPTAX:
        yield _optax(name, args)
    for name, args, lr in CHAINED:
        yield _torch(name, args, lr)
    for name, args in TRANSFORMERS:
        yield _torch(f"transformers.{name}", args, 0.1)
    yield _torch("LambdaLR", {"factors": TABLE}, 0.1)


if __name__ == "__main__":
    write(
        {
            "schedules/lr_schedules.json": lambda: {
                "format": "stepd-oracle-schedules/1",
                "cases": list(_cases()),
            }
        }
    )
