# DO NOT EDIT: written by `npm run generate`.
# ruff: noqa: E501
"""The learning-rate schedules of the server with their arguments, as the mappings that calls take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

__all__ = [
    "chained",
    "constant",
    "cosine",
    "cosine_warm_restarts",
    "cyclic",
    "exponential",
    "inverse_sqrt",
    "linear",
    "multistep",
    "one_cycle",
    "polynomial",
    "sequence",
    "step",
    "table",
    "warmup_cosine",
    "warmup_stable_decay",
]


def chained(
    *,
    schedules: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """ChainedSchedule.

    lr_t = lr times the factors of all schedules at step t; a factor is the schedule's
    rate divided by lr.

    schedules: Schedules that multiply the base rate: all but one_cycle and cyclic,
        which set it.
    """
    return {
        "name": "chained",
        "schedules": schedules,
    }


def constant(
    *,
    factor: float = 0.3333333333333333,
    total_iters: int | None = 5,
) -> dict[str, Any]:
    """ConstantSchedule.

    lr_t = lr * factor for t < total_iters, or always if it is null, then lr.

    factor: Factor of the base rate before step total_iters.
    total_iters: Number of steps with the factor; null is all steps.
    """
    return {
        "name": "constant",
        "factor": factor,
        "total_iters": total_iters,
    }


def cosine(
    *,
    T_max: int,
    eta_min: float = 0,
) -> dict[str, Any]:
    """CosineSchedule.

    lr_t = eta_min + (lr - eta_min) * (1 + cos(pi * t / T_max)) / 2.

    T_max: Steps from the base rate to eta_min.
    eta_min: The lowest rate.
    """
    return {
        "name": "cosine",
        "T_max": T_max,
        "eta_min": eta_min,
    }


def cosine_warm_restarts(
    *,
    T_0: int,
    T_mult: int = 1,
    eta_min: float = 0,
) -> dict[str, Any]:
    """CosineWarmRestartsSchedule.

    lr_t = eta_min + (lr - eta_min) * (1 + cos(pi * T_cur / T_i)) / 2, T_cur steps after
    the last restart, T_i = T_0 * T_mult^i.

    T_0: Steps until the first restart.
    T_mult: Factor from the length of one period to the next.
    eta_min: The lowest rate.
    """
    return {
        "name": "cosine_warm_restarts",
        "T_0": T_0,
        "T_mult": T_mult,
        "eta_min": eta_min,
    }


def cyclic(
    *,
    base_lr: float,
    max_lr: float,
    step_size_up: int = 2000,
    step_size_down: int | None = None,
    mode: Literal["triangular", "triangular2", "exp_range"] = "triangular",
    gamma: float = 1,
    cycle_momentum: bool = True,
    base_momentum: float = 0.8,
    max_momentum: float = 0.9,
) -> dict[str, Any]:
    """CyclicSchedule.

    lr_t = base_lr + (max_lr - base_lr) * height * scale; height goes 0 -> 1 in
    step_size_up steps and back in step_size_down; scale is 1, 1/2^(completed cycles) or
    gamma^t by mode.

    base_lr: The lowest rate.
    max_lr: The highest rate.
    step_size_up: Steps in which the rate rises.
    step_size_down: Steps in which the rate falls; null means step_size_up.
    mode: Change of the height from cycle to cycle.
    gamma: Factor of the height per step in exp_range.
    cycle_momentum: Cycle the momentum, or the first of betas, inversely to the
        rate.
    base_momentum: The lowest momentum, at the highest rate.
    max_momentum: The highest momentum, at base_lr.
    """
    return {
        "name": "cyclic",
        "base_lr": base_lr,
        "max_lr": max_lr,
        "step_size_up": step_size_up,
        "step_size_down": step_size_down,
        "mode": mode,
        "gamma": gamma,
        "cycle_momentum": cycle_momentum,
        "base_momentum": base_momentum,
        "max_momentum": max_momentum,
    }


def exponential(
    *,
    gamma: float,
) -> dict[str, Any]:
    """ExponentialSchedule.

    lr_t = lr * gamma^t.

    gamma: Factor of the rate per step.
    """
    return {
        "name": "exponential",
        "gamma": gamma,
    }


def inverse_sqrt(
    *,
    warmup_steps: int = 0,
    timescale: int | None = None,
) -> dict[str, Any]:
    """InverseSqrtSchedule.

    lr_t = lr * t / warmup_steps for t < warmup_steps, then lr / sqrt((t - warmup_steps
    + timescale) / timescale).

    warmup_steps: Steps from 0 to the base rate.
    timescale: Steps that divide the rate by the root of 2, after the warm-up; null
        is warmup_steps, or 10,000 without a warm-up.
    """
    return {
        "name": "inverse_sqrt",
        "warmup_steps": warmup_steps,
        "timescale": timescale,
    }


def linear(
    *,
    start_factor: float = 0.3333333333333333,
    end_factor: float = 1,
    total_iters: int = 5,
) -> dict[str, Any]:
    """LinearSchedule.

    lr_t = lr * (start_factor + (end_factor - start_factor) * min(t, total_iters) /
    total_iters).

    start_factor: Factor of the base rate at the first step.
    end_factor: Factor of the base rate from step total_iters on.
    total_iters: Steps from start_factor to end_factor.
    """
    return {
        "name": "linear",
        "start_factor": start_factor,
        "end_factor": end_factor,
        "total_iters": total_iters,
    }


def multistep(
    *,
    milestones: Sequence[int],
    gamma: float = 0.1,
) -> dict[str, Any]:
    """MultistepSchedule.

    lr_t = lr * gamma^(number of milestones <= t).

    milestones: Steps at which the rate decays, in ascending order; one that is
        listed twice decays twice.
    gamma: Factor of the rate per decay.
    """
    return {
        "name": "multistep",
        "milestones": milestones,
        "gamma": gamma,
    }


def one_cycle(
    *,
    max_lr: float,
    total_steps: int,
    pct_start: float = 0.3,
    anneal_strategy: Literal["cos", "linear"] = "cos",
    cycle_momentum: bool = True,
    base_momentum: float = 0.85,
    max_momentum: float = 0.95,
    div_factor: float = 25,
    final_div_factor: float = 10000,
    three_phase: bool = False,
) -> dict[str, Any]:
    """OneCycleSchedule.

    max_lr/div_factor -> max_lr at t = pct_start*total_steps - 1 ->
    max_lr/div_factor/final_div_factor at t = total_steps - 1; three_phase goes back to
    max_lr/div_factor at t = 2*pct_start*total_steps - 2 before; no steps after.

    max_lr: The highest rate.
    total_steps: Steps of the whole cycle.
    pct_start: Fraction of the cycle in which the rate rises.
    anneal_strategy: Shape of the curve between two rates.
    cycle_momentum: Cycle the momentum, or the first of betas, inversely to the
        rate.
    base_momentum: The lowest momentum, where the rate is highest.
    max_momentum: The highest momentum.
    div_factor: Ratio of max_lr to the first rate.
    final_div_factor: Ratio of the first rate to the last.
    three_phase: Fall to the first rate in as many steps as the rise, then to the
        last rate.
    """
    return {
        "name": "one_cycle",
        "max_lr": max_lr,
        "total_steps": total_steps,
        "pct_start": pct_start,
        "anneal_strategy": anneal_strategy,
        "cycle_momentum": cycle_momentum,
        "base_momentum": base_momentum,
        "max_momentum": max_momentum,
        "div_factor": div_factor,
        "final_div_factor": final_div_factor,
        "three_phase": three_phase,
    }


def polynomial(
    *,
    total_iters: int = 5,
    power: float = 1,
) -> dict[str, Any]:
    """PolynomialSchedule.

    lr_t = lr * (1 - min(t, total_iters) / total_iters)^power.

    total_iters: Steps until the rate is 0.
    power: Exponent: any number of at least 0, not only integers.
    """
    return {
        "name": "polynomial",
        "total_iters": total_iters,
        "power": power,
    }


def sequence(
    *,
    schedules: Sequence[Mapping[str, Any]],
    milestones: Sequence[int],
) -> dict[str, Any]:
    """SequenceSchedule.

    lr_t = schedules[i] at step t - milestones[i-1] with the same base rate, i = number
    of milestones <= t.

    schedules: One schedule more than milestones; a schedule may be a sequence
        itself.
    milestones: Steps at which the next schedule begins, in ascending order.
    """
    return {
        "name": "sequence",
        "schedules": schedules,
        "milestones": milestones,
    }


def step(
    *,
    step_size: int,
    gamma: float = 0.1,
) -> dict[str, Any]:
    """StepSchedule.

    lr_t = lr * gamma^floor(t / step_size).

    step_size: Steps between two decays.
    gamma: Factor of the rate per decay.
    """
    return {
        "name": "step",
        "step_size": step_size,
        "gamma": gamma,
    }


def table(
    *,
    lrs: Sequence[float],
) -> dict[str, Any]:
    """TableSchedule.

    lr_t = lrs[min(t, length - 1)].

    lrs: The rates of the steps, from the first one; later steps have the last rate.
    """
    return {
        "name": "table",
        "lrs": lrs,
    }


def warmup_cosine(
    *,
    warmup_steps: int,
    total_steps: int,
    start_factor: float = 0,
    eta_min: float = 0,
) -> dict[str, Any]:
    """WarmupCosineSchedule.

    lr_t = lr times a line from start_factor to 1 in warmup_steps steps, then eta_min +
    (lr - eta_min) * (1 + cos(pi * (t - warmup_steps) / (total_steps - warmup_steps))) /
    2 up to total_steps, then eta_min.

    warmup_steps: Steps up to the base rate.
    total_steps: Steps up to eta_min, the warm-up included.
    start_factor: Factor of the base rate in the first step.
    eta_min: The lowest rate.
    """
    return {
        "name": "warmup_cosine",
        "warmup_steps": warmup_steps,
        "total_steps": total_steps,
        "start_factor": start_factor,
        "eta_min": eta_min,
    }


def warmup_stable_decay(
    *,
    warmup_steps: int,
    stable_steps: int,
    decay_steps: int,
    decay_type: Literal["linear", "cosine", "1-sqrt"] = "cosine",
    min_lr_ratio: float = 0,
) -> dict[str, Any]:
    """WarmupStableDecaySchedule.

    lr_t = lr times a line from min_lr_ratio to 1 in warmup_steps steps, then lr for
    stable_steps, then down to lr * min_lr_ratio in decay_steps by 1 - x, (1 + cos(pi *
    x)) / 2 or 1 - sqrt(x).

    warmup_steps: Steps up to the base rate.
    stable_steps: Steps at the base rate.
    decay_steps: Steps down to the last rate.
    decay_type: Shape of the fall.
    min_lr_ratio: Ratio of the first and the last rate to the base rate.
    """
    return {
        "name": "warmup_stable_decay",
        "warmup_steps": warmup_steps,
        "stable_steps": stable_steps,
        "decay_steps": decay_steps,
        "decay_type": decay_type,
        "min_lr_ratio": min_lr_ratio,
    }
