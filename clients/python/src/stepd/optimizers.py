# DO NOT EDIT: written by `npm run generate`.
# ruff: noqa: E501
"""The optimizers of the server with their hyperparameters, as the mappings that calls take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

__all__ = [
    "adabelief",
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "adamw",
    "adan",
    "ademamix",
    "adopt",
    "asgd",
    "lamb",
    "lars",
    "lion",
    "muon",
    "nadam",
    "prodigy",
    "qhadam",
    "qhadamw",
    "qhm",
    "radam",
    "rmsprop",
    "rprop",
    "schedule_free_adamw",
    "schedule_free_sgd",
    "sgd",
    "signum",
    "yogi",
]


def adabelief(
    *,
    lr: float = 0.001,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-16,
    eps_root: float = 1e-16,
    weight_decay: float = 0,
    decoupled_weight_decay: bool = True,
    rectify: bool = False,
    maximize: bool = False,
    state_dtype: Literal["F32", "BF16", "Q8"] = "F32",
    ema: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """AdaBelief.

    m = lerp(m, g, 1-beta1); s = lerp(s, (g - m)^2, 1-beta2) + eps_root; p -= lr *
    m/(1-beta1^t) / (sqrt(s/(1-beta2^t)) + eps).

    lr: Learning rate; with a schedule, its base rate.
    betas: Decay rates of exp_avg and exp_avg_sq.
    eps: Added to the root of exp_avg_var.
    eps_root: Added to exp_avg_var at every step.
    weight_decay: Weight decay; decoupled_weight_decay selects its form.
    decoupled_weight_decay: Subtract lr*weight_decay times the parameter from it,
        instead of adding weight_decay times the parameter to the gradient.
    rectify: Rectify the step as in radam.
    maximize: Go up the gradient instead of down.
    state_dtype: Format of the moments: F32; BF16, with half of the bytes; or Q8,
        with 8 bits per element and one scale per 64 elements. Under Q8, tensors below
        4,096 elements keep their moments in F32. Parameters in F64 allow only F32.
    ema: Average of the parameters over the steps, in the slot ema: {decay}, as
        torch's AveragedModel computes it; null keeps no average.
    """
    return {
        "name": "adabelief",
        "lr": lr,
        "betas": betas,
        "eps": eps,
        "eps_root": eps_root,
        "weight_decay": weight_decay,
        "decoupled_weight_decay": decoupled_weight_decay,
        "rectify": rectify,
        "maximize": maximize,
        "state_dtype": state_dtype,
        "ema": ema,
    }


def adadelta(
    *,
    lr: float = 1,
    rho: float = 0.9,
    eps: float = 0.000001,
    weight_decay: float = 0,
    maximize: bool = False,
    state_dtype: Literal["F32", "BF16", "Q8"] = "F32",
    ema: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Adadelta.

    g += weight_decay*p; s = lerp(s, g^2, 1-rho); d = sqrt(acc + eps)/sqrt(s + eps) * g;
    acc = lerp(acc, d^2, 1-rho); p -= lr*d.

    lr: Learning rate; with a schedule, its base rate.
    rho: Decay rate of square_avg and acc_delta.
    eps: Added under both roots.
    weight_decay: Weight decay (L2): weight_decay times the parameter is added to
        the gradient.
    maximize: Go up the gradient instead of down.
    state_dtype: Format of the moments: F32; BF16, with half of the bytes; or Q8,
        with 8 bits per element and one scale per 64 elements. Under Q8, tensors below
        4,096 elements keep their moments in F32. Parameters in F64 allow only F32.
    ema: Average of the parameters over the steps, in the slot ema: {decay}, as
        torch's AveragedModel computes it; null keeps no average.
    """
    return {
        "name": "adadelta",
        "lr": lr,
        "rho": rho,
        "eps": eps,
        "weight_decay": weight_decay,
        "maximize": maximize,
        "state_dtype": state_dtype,
        "ema": ema,
    }


def adafactor(
    *,
    lr: float = 0.01,
    beta2_decay: float = -0.8,
    eps: Sequence[float | None] = (None, 0.001),
    d: float = 1,
    weight_decay: float = 0,
    maximize: bool = False,
    ema: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Adafactor.

    w = t^beta2_decay; from two axes on: row_var = lerp(row_var, mean of g^2 by row, w),
    col_var = lerp(col_var, mean of g^2 by column, w), v =
    row_var*col_var/max(mean(row_var), eps1); else v = variance = lerp(variance, g^2,
    w); u = g/sqrt(max(v, eps1^2)); p -= lr*weight_decay*p + max(eps2, rms(p))*min(lr,
    1/sqrt(t)) * u/max(1, rms(u)/d).

    lr: Upper bound of the relative step size 1/sqrt(t), and factor of weight_decay;
        with a schedule, its base rate.
    beta2_decay: The second moment's weight of the new gradient at step t is
        t^beta2_decay.
    eps: eps1, the smallest divisor of the update: null is 2^-23 for parameters
        below F64, and 2^-52 for F64; and eps2, the smallest root mean square of the
        parameter, a number.
    d: Largest root mean square of an update; a larger update is scaled down.
    weight_decay: Decoupled weight decay: lr*weight_decay times the parameter is
        subtracted from the parameter.
    maximize: Go up the gradient instead of down.
    ema: Average of the parameters over the steps, in the slot ema: {decay}, as
        torch's AveragedModel computes it; null keeps no average.
    """
    return {
        "name": "adafactor",
        "lr": lr,
        "beta2_decay": beta2_decay,
        "eps": eps,
        "d": d,
        "weight_decay": weight_decay,
        "maximize": maximize,
        "ema": ema,
    }


def adagrad(
    *,
    lr: float = 0.01,
    lr_decay: float = 0,
    weight_decay: float = 0,
    initial_accumulator_value: float = 0,
    eps: float = 1e-10,
    maximize: bool = False,
    ema: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Adagrad.

    g += weight_decay*p; sum += g^2; p -= lr/(1 + (t-1)*lr_decay) * g/(sqrt(sum) + eps).

    lr: Learning rate; with a schedule, its base rate.
    lr_decay: Learning rate decay: step t divides the rate by 1 + (t-1)*lr_decay.
    weight_decay: Weight decay (L2): weight_decay times the parameter is added to
        the gradient.
    initial_accumulator_value: Initial value of sum.
    eps: Added to the root.
    maximize: Go up the gradient instead of down.
    ema: Average of the parameters over the steps, in the slot ema: {decay}, as
        torch's AveragedModel computes it; null keeps no average.
    """
    return {
        "name": "adagrad",
        "lr": lr,
        "lr_decay": lr_decay,
        "weight_decay": weight_decay,
        "initial_accumulator_value": initial_accumulator_value,
        "eps": eps,
        "maximize": maximize,
        "ema": ema,
    }


def adam(
    *,
    lr: float = 0.001,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0,
    amsgrad: bool = False,
    maximize: bool = False,
    eps_root: float = 0,
    nesterov: bool = False,
    bias_correction: Literal["moments", "step_size", "none"] = "moments",
    caution: bool = False,
    state_dtype: Literal["F32", "BF16", "Q8"] = "F32",
    ema: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Adam.

    g += weight_decay*p; m = lerp(m, g, 1-beta1); v = lerp(v, g^2, 1-beta2); p -= lr *
    m/(1-beta1^t) / (sqrt(v/(1-beta2^t)) + eps).

    lr: Learning rate; with a schedule, its base rate.
    betas: Decay rates of exp_avg and exp_avg_sq.
    eps: Added to the root of the second moment, after the bias correction.
    weight_decay: Weight decay (L2): weight_decay times the parameter is added to
        the gradient.
    amsgrad: Divide by the running maximum of exp_avg_sq (slot max_exp_avg_sq).
    maximize: Go up the gradient instead of down.
    eps_root: Added under the root, as in optax.
    nesterov: Use Nesterov's form of the first moment, as in optax.
    bias_correction: Correct the moments (paper), the step size alone, so that eps
        is added to the uncorrected root (Keras, and Flower's FedAdam), or nothing.
    caution: Zero the elements of the update whose sign differs from the gradient's,
        and scale up the others (timm).
    state_dtype: Format of the moments: F32; BF16, with half of the bytes; or Q8,
        with 8 bits per element and one scale per 64 elements. Under Q8, tensors below
        4,096 elements keep their moments in F32. Parameters in F64 allow only F32.
    ema: Average of the parameters over the steps, in the slot ema: {decay}, as
        torch's AveragedModel computes it; null keeps no average.
    """
    return {
        "name": "adam",
        "lr": lr,
        "betas": betas,
        "eps": eps,
        "weight_decay": weight_decay,
        "amsgrad": amsgrad,
        "maximize": maximize,
        "eps_root": eps_root,
        "nesterov": nesterov,
        "bias_correction": bias_correction,
        "caution": caution,
        "state_dtype": state_dtype,
        "ema": ema,
    }


def adamax(
    *,
    lr: float = 0.002,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0,
    maximize: bool = False,
    state_dtype: Literal["F32", "BF16", "Q8"] = "F32",
    ema: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Adamax.

    g += weight_decay*p; m = lerp(m, g, 1-beta1); u = max(beta2*u, |g| + eps); p -=
    lr/(1-beta1^t) * m/u.

    lr: Learning rate; with a schedule, its base rate.
    betas: Decay rates of exp_avg and exp_avg_sq.
    eps: Added to the size of each gradient.
    weight_decay: Weight decay (L2): weight_decay times the parameter is added to
        the gradient.
    maximize: Go up the gradient instead of down.
    state_dtype: Format of the moments: F32; BF16, with half of the bytes; or Q8,
        with 8 bits per element and one scale per 64 elements. Under Q8, tensors below
        4,096 elements keep their moments in F32. Parameters in F64 allow only F32.
    ema: Average of the parameters over the steps, in the slot ema: {decay}, as
        torch's AveragedModel computes it; null keeps no average.
    """
    return {
        "name": "adamax",
        "lr": lr,
        "betas": betas,
        "eps": eps,
        "weight_decay": weight_decay,
        "maximize": maximize,
        "state_dtype": state_dtype,
        "ema": ema,
    }


def adamw(
    *,
    lr: float = 0.001,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    weight_decay_scale: Literal["lr", "schedule", "none"] = "lr",
    amsgrad: bool = False,
    maximize: bool = False,
    eps_root: float = 0,
    nesterov: bool = False,
    bias_correction: Literal["moments", "step_size", "none"] = "moments",
    caution: bool = False,
    state_dtype: Literal["F32", "BF16", "Q8"] = "F32",
    ema: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """AdamW.

    m = lerp(m, g, 1-beta1); v = lerp(v, g^2, 1-beta2); p -= scale*weight_decay*p + lr *
    m/(1-beta1^t) / (sqrt(v/(1-beta2^t)) + eps), scale = lr, lr_t/lr or 1 by
    weight_decay_scale.

    lr: Learning rate; with a schedule, its base rate.
    betas: Decay rates of exp_avg and exp_avg_sq.
    eps: Added to the root of the second moment, after the bias correction.
    weight_decay: Decoupled weight decay: weight_decay times the parameter, scaled
        by weight_decay_scale, is subtracted from the parameter.
    weight_decay_scale: Factor of weight_decay: lr (torch), the schedule's factor
        lr_t/lr (the AdamW paper's fully decoupled form; lr_t/max_lr with one_cycle and
        cyclic), or 1 (IPRally's QHAdamW).
    amsgrad: Divide by the running maximum of exp_avg_sq (slot max_exp_avg_sq).
    maximize: Go up the gradient instead of down.
    eps_root: Added under the root, as in optax.
    nesterov: Use Nesterov's form of the first moment, as in optax.
    bias_correction: Correct the moments (paper), the step size alone, so that eps
        is added to the uncorrected root (Keras, and Flower's FedAdam), or nothing.
    caution: Zero the elements of the update whose sign differs from the gradient's,
        and scale up the others (timm).
    state_dtype: Format of the moments: F32; BF16, with half of the bytes; or Q8,
        with 8 bits per element and one scale per 64 elements. Under Q8, tensors below
        4,096 elements keep their moments in F32. Parameters in F64 allow only F32.
    ema: Average of the parameters over the steps, in the slot ema: {decay}, as
        torch's AveragedModel computes it; null keeps no average.
    """
    return {
        "name": "adamw",
        "lr": lr,
        "betas": betas,
        "eps": eps,
        "weight_decay": weight_decay,
        "weight_decay_scale": weight_decay_scale,
        "amsgrad": amsgrad,
        "maximize": maximize,
        "eps_root": eps_root,
        "nesterov": nesterov,
        "bias_correction": bias_correction,
        "caution": caution,
        "state_dtype": state_dtype,
        "ema": ema,
    }


def adan(
    *,
    lr: float = 0.001,
    betas: Sequence[float] = (0.98, 0.92, 0.99),
    eps: float = 1e-8,
    weight_decay: float = 0,
    no_prox: bool = False,
    diff_weight: float | None = None,
    eps_root: float = 0,
    maximize: bool = False,
    state_dtype: Literal["F32", "BF16", "Q8"] = "F32",
    ema: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Adan.

    d = g - g_previous; m = lerp(m, g, 1-beta1); n = lerp(n, d, 1-beta2); v = lerp(v, (g
    + w*d)^2, 1-beta3); u = (m/(1-beta1^t) + w*n/(1-beta2^t)) / (sqrt(v/(1-beta3^t) +
    eps_root) + eps); p = (p - lr*u) / (1 + lr*weight_decay), with no_prox p -=
    lr*(weight_decay*p + u).

    lr: Learning rate; with a schedule, its base rate.
    betas: Decay rates of exp_avg, exp_avg_diff and exp_avg_sq.
    eps: Added to the root of the second moment, after the bias correction.
    weight_decay: Weight decay; no_prox selects its form.
    no_prox: Subtract lr*weight_decay times the parameter from it, instead of
        dividing the new parameter by 1 + lr*weight_decay.
    diff_weight: Weight of the difference and of exp_avg_diff; null is the second of
        betas (paper, timm), and optax has 1 minus it.
    eps_root: Added under the root, as in optax.
    maximize: Go up the gradient instead of down.
    state_dtype: Format of the moments: F32; BF16, with half of the bytes; or Q8,
        with 8 bits per element and one scale per 64 elements. Under Q8, tensors below
        4,096 elements keep their moments in F32. Parameters in F64 allow only F32.
    ema: Average of the parameters over the steps, in the slot ema: {decay}, as
        torch's AveragedModel computes it; null keeps no average.
    """
    return {
        "name": "adan",
        "lr": lr,
        "betas": betas,
        "eps": eps,
        "weight_decay": weight_decay,
        "no_prox": no_prox,
        "diff_weight": diff_weight,
        "eps_root": eps_root,
        "maximize": maximize,
        "state_dtype": state_dtype,
        "ema": ema,
    }


def ademamix(
    *,
    lr: float = 0.001,
    betas: Sequence[float] = (0.9, 0.999, 0.9999),
    alpha: float = 5,
    t_alpha_beta3: float | None = None,
    eps: float = 1e-8,
    weight_decay: float = 0,
    decoupled_weight_decay: bool = True,
    eps_root: float = 0,
    maximize: bool = False,
    state_dtype: Literal["F32", "BF16", "Q8"] = "F32",
    ema: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """AdEMAMix.

    m = lerp(m, g, 1-beta1); s = lerp(s, g, 1-beta3_t); v = lerp(v, g^2, 1-beta2); p -=
    lr * (m/(1-beta1^t) + alpha_t*s) / (sqrt(v/(1-beta2^t) + eps_root) + eps); alpha_t
    and beta3_t grow over the first t_alpha_beta3 steps.

    lr: Learning rate; with a schedule, its base rate.
    betas: Decay rates of exp_avg, exp_avg_sq and exp_avg_slow.
    alpha: Weight of exp_avg_slow in the numerator.
    t_alpha_beta3: Number of steps over which alpha grows from 0 and the decay rate
        of exp_avg_slow from the first of betas; null starts with their full values.
    eps: Added to the root of the second moment, after the bias correction.
    weight_decay: Weight decay; decoupled_weight_decay selects its form.
    decoupled_weight_decay: Subtract lr*weight_decay times the parameter from it,
        instead of adding weight_decay times the parameter to the gradient.
    eps_root: Added under the root, as in optax.
    maximize: Go up the gradient instead of down.
    state_dtype: Format of the moments: F32; BF16, with half of the bytes; or Q8,
        with 8 bits per element and one scale per 64 elements. Under Q8, tensors below
        4,096 elements keep their moments in F32. Parameters in F64 allow only F32.
    ema: Average of the parameters over the steps, in the slot ema: {decay}, as
        torch's AveragedModel computes it; null keeps no average.
    """
    return {
        "name": "ademamix",
        "lr": lr,
        "betas": betas,
        "alpha": alpha,
        "t_alpha_beta3": t_alpha_beta3,
        "eps": eps,
        "weight_decay": weight_decay,
        "decoupled_weight_decay": decoupled_weight_decay,
        "eps_root": eps_root,
        "maximize": maximize,
        "state_dtype": state_dtype,
        "ema": ema,
    }


def adopt(
    *,
    lr: float = 0.001,
    betas: Sequence[float] = (0.9, 0.9999),
    eps: float = 0.000001,
    use_clipping: bool = True,
    clip_exp: float = 0.25,
    weight_decay: float = 0,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
    state_dtype: Literal["F32", "BF16", "Q8"] = "F32",
    ema: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """ADOPT.

    n = clamp(g/max(sqrt(v), eps), +-(t-1)^clip_exp); m = lerp(m, n, 1-beta1); p -=
    lr*m; v = lerp(v, g^2, 1-beta2); first step: v = g^2 alone.

    lr: Learning rate; with a schedule, its base rate.
    betas: Decay rates of exp_avg and exp_avg_sq.
    eps: Lower bound of the root of exp_avg_sq.
    use_clipping: Clamp the quotients to the range that clip_exp gives.
    clip_exp: The quotients of step t are clamped to (t-1)^clip_exp.
    weight_decay: Weight decay; decoupled_weight_decay selects its form.
    decoupled_weight_decay: Subtract lr*weight_decay times the parameter from it,
        instead of adding weight_decay times the parameter to the gradient.
    maximize: Go up the gradient instead of down.
    state_dtype: Format of the moments: F32; BF16, with half of the bytes; or Q8,
        with 8 bits per element and one scale per 64 elements. Under Q8, tensors below
        4,096 elements keep their moments in F32. Parameters in F64 allow only F32.
    ema: Average of the parameters over the steps, in the slot ema: {decay}, as
        torch's AveragedModel computes it; null keeps no average.
    """
    return {
        "name": "adopt",
        "lr": lr,
        "betas": betas,
        "eps": eps,
        "use_clipping": use_clipping,
        "clip_exp": clip_exp,
        "weight_decay": weight_decay,
        "decoupled_weight_decay": decoupled_weight_decay,
        "maximize": maximize,
        "state_dtype": state_dtype,
        "ema": ema,
    }


def asgd(
    *,
    lr: float = 0.01,
    lambd: float = 0.0001,
    alpha: float = 0.75,
    t0: float = 1000000,
    weight_decay: float = 0,
    maximize: bool = False,
    ema: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """ASGD.

    g += weight_decay*p; p -= lambd*eta*p + eta*g; ax = lerp(ax, p, mu); eta = lr/(1 +
    lambd*lr*t)^alpha; mu = 1/max(1, t - t0).

    lr: Learning rate; with a schedule, its base rate.
    lambd: Decay of the parameter and of the rate.
    alpha: Exponent of the rate's decrease.
    t0: The step after which parameters are averaged.
    weight_decay: Weight decay (L2): weight_decay times the parameter is added to
        the gradient.
    maximize: Go up the gradient instead of down.
    ema: Average of the parameters over the steps, in the slot ema: {decay}, as
        torch's AveragedModel computes it; null keeps no average.
    """
    return {
        "name": "asgd",
        "lr": lr,
        "lambd": lambd,
        "alpha": alpha,
        "t0": t0,
        "weight_decay": weight_decay,
        "maximize": maximize,
        "ema": ema,
    }


def lamb(
    *,
    lr: float = 0.001,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 0.000001,
    weight_decay: float = 0.01,
    weight_decay_mode: Literal["in_update", "decoupled"] = "in_update",
    bias_correction: Literal["moments", "step_size", "none"] = "moments",
    adapt: Literal["always", "decayed_only"] = "always",
    trust_min: float | None = None,
    trust_max: float | None = None,
    max_grad_norm: float | None = None,
    grad_averaging: bool = True,
    eps_root: float = 0,
    caution: bool = False,
    state_dtype: Literal["F32", "BF16", "Q8"] = "F32",
    ema: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """LAMB.

    m, v as in adam; u = mhat/(sqrt(vhat) + eps) + weight_decay*p; p -= lr * trust_ratio
    * u, trust_ratio = |p|/|u| (1 where either is 0) within [trust_min, trust_max].

    lr: Learning rate; with a schedule, its base rate.
    betas: Decay rates of exp_avg and exp_avg_sq.
    eps: Added to the root of the second moment, after the bias correction.
    weight_decay: Weight decay; weight_decay_mode selects its form.
    weight_decay_mode: Add weight_decay times the parameter to the update before its
        norm, or subtract lr times it from the parameter before the norms.
    bias_correction: Correct the moments (paper), the step size outside the ratio
        (DeepSpeed), or nothing (albert).
    adapt: When the trust ratio applies; decayed_only uses 1 if weight_decay is 0
        (timm, apex).
    trust_min: Lower bound of the trust ratio.
    trust_max: Upper bound of the trust ratio.
    max_grad_norm: Divide all gradients by max(1, norm/max_grad_norm), the norm over
        all tensors; null does not clip (timm: 1.0).
    grad_averaging: Multiply the new gradient by 1-beta1 in exp_avg; false adds it
        unscaled.
    eps_root: Added under the root, as in optax.
    caution: Zero the elements of the update whose sign differs from the gradient's,
        and scale up the others (timm).
    state_dtype: Format of the moments: F32; BF16, with half of the bytes; or Q8,
        with 8 bits per element and one scale per 64 elements. Under Q8, tensors below
        4,096 elements keep their moments in F32. Parameters in F64 allow only F32.
    ema: Average of the parameters over the steps, in the slot ema: {decay}, as
        torch's AveragedModel computes it; null keeps no average.
    """
    return {
        "name": "lamb",
        "lr": lr,
        "betas": betas,
        "eps": eps,
        "weight_decay": weight_decay,
        "weight_decay_mode": weight_decay_mode,
        "bias_correction": bias_correction,
        "adapt": adapt,
        "trust_min": trust_min,
        "trust_max": trust_max,
        "max_grad_norm": max_grad_norm,
        "grad_averaging": grad_averaging,
        "eps_root": eps_root,
        "caution": caution,
        "state_dtype": state_dtype,
        "ema": ema,
    }


def lars(
    *,
    lr: float = 1,
    momentum: float = 0.9,
    dampening: float = 0,
    weight_decay: float = 0,
    nesterov: bool = False,
    trust_coefficient: float = 0.001,
    eps: float = 1e-8,
    trust_denominator: Literal["sum", "decayed_grad"] = "sum",
    trust_clip: bool = False,
    always_adapt: bool = False,
    lr_in_momentum: bool = False,
    state_dtype: Literal["F32", "BF16", "Q8"] = "F32",
    ema: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """LARS.

    d = ratio*(g + weight_decay*p), ratio = trust_coefficient*|p|/(|g| +
    weight_decay*|p| + eps) (1 where a norm is 0); buf = momentum*buf + (1-dampening)*d
    (first step: buf = d); p -= lr * (nesterov ? d + momentum*buf : buf).

    lr: Learning rate; with a schedule, its base rate.
    momentum: Decay rate of momentum_buffer; 0 keeps no buffer.
    dampening: Fraction of each new gradient that is not added to the buffer.
    weight_decay: Weight decay (L2): weight_decay times the parameter is added to
        the gradient.
    nesterov: Nesterov momentum: step along the scaled gradient plus momentum times
        the buffer.
    trust_coefficient: Factor of the trust ratio.
    eps: Added to the trust ratio's denominator.
    trust_denominator: Sum of the norms (timm), or norm of the decayed gradient
        (optax).
    trust_clip: Keep ratio/lr at most 1, as LARC and timm do.
    always_adapt: Apply the trust ratio even if weight_decay is 0; otherwise
        trust_denominator sum uses 1 then.
    lr_in_momentum: Apply lr before the momentum buffer (optax) instead of after it
        (timm).
    state_dtype: Format of the moments: F32; BF16, with half of the bytes; or Q8,
        with 8 bits per element and one scale per 64 elements. Under Q8, tensors below
        4,096 elements keep their moments in F32. Parameters in F64 allow only F32.
    ema: Average of the parameters over the steps, in the slot ema: {decay}, as
        torch's AveragedModel computes it; null keeps no average.
    """
    return {
        "name": "lars",
        "lr": lr,
        "momentum": momentum,
        "dampening": dampening,
        "weight_decay": weight_decay,
        "nesterov": nesterov,
        "trust_coefficient": trust_coefficient,
        "eps": eps,
        "trust_denominator": trust_denominator,
        "trust_clip": trust_clip,
        "always_adapt": always_adapt,
        "lr_in_momentum": lr_in_momentum,
        "state_dtype": state_dtype,
        "ema": ema,
    }


def lion(
    *,
    lr: float = 0.0001,
    betas: Sequence[float] = (0.9, 0.99),
    weight_decay: float = 0,
    maximize: bool = False,
    caution: bool = False,
    state_dtype: Literal["F32", "BF16", "Q8"] = "F32",
    ema: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Lion.

    u = sign(lerp(m, g, 1-beta1)); p -= lr*weight_decay*p + lr*u; m = lerp(m, g,
    1-beta2).

    lr: Learning rate; with a schedule, its base rate.
    betas: Decay rates of exp_avg and exp_avg_sq.
    weight_decay: Decoupled weight decay: lr times weight_decay times the parameter
        is subtracted from the parameter.
    maximize: Go up the gradient instead of down.
    caution: Zero the elements of the update whose sign differs from the gradient's,
        and scale up the others (timm).
    state_dtype: Format of the moments: F32; BF16, with half of the bytes; or Q8,
        with 8 bits per element and one scale per 64 elements. Under Q8, tensors below
        4,096 elements keep their moments in F32. Parameters in F64 allow only F32.
    ema: Average of the parameters over the steps, in the slot ema: {decay}, as
        torch's AveragedModel computes it; null keeps no average.
    """
    return {
        "name": "lion",
        "lr": lr,
        "betas": betas,
        "weight_decay": weight_decay,
        "maximize": maximize,
        "caution": caution,
        "state_dtype": state_dtype,
        "ema": ema,
    }


def muon(
    *,
    lr: float = 0.001,
    weight_decay: float = 0.1,
    momentum: float = 0.95,
    nesterov: bool = True,
    ns_steps: float = 5,
    ns_coefficients: Sequence[float] = (3.4445, -4.775, 2.0315),
    eps: float = 1e-7,
    adjust_lr_fn: Literal[
        "original", "match_rms_adamw", "spectral_unclamped"
    ] = "original",
    state_dtype: Literal["F32", "BF16", "Q8"] = "F32",
    ema: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Muon.

    buf = lerp(buf, g, 1-momentum); u = nesterov ? lerp(g, buf, momentum) : buf; X =
    u/max(|u|, eps); ns_steps times: A = X*X', X = a*X + (b*A + c*A*A)*X; p -=
    lr*weight_decay*p + lr*scale*X, scale by adjust_lr_fn from R rows and C columns:
    original sqrt(max(1, R/C)), match_rms_adamw 0.2*sqrt(max(R, C)), spectral_unclamped
    sqrt(R/C).

    lr: Learning rate; with a schedule, its base rate.
    weight_decay: Decoupled weight decay: lr*weight_decay times the parameter is
        subtracted from the parameter.
    momentum: Decay rate of momentum_buffer.
    nesterov: Use Nesterov's form: orthogonalize the mean of gradient and buffer,
        instead of the buffer.
    ns_steps: Number of Newton-Schulz iterations, a whole number; each takes three
        matrix products.
    ns_coefficients: Coefficients a, b and c of the iteration.
    eps: Smallest divisor of the update before the iterations.
    adjust_lr_fn: Factor of lr by shape: sqrt(max(1, rows/columns)),
        0.2*sqrt(max(rows, columns)), or sqrt(rows/columns).
    state_dtype: Format of the moments: F32; BF16, with half of the bytes; or Q8,
        with 8 bits per element and one scale per 64 elements. Under Q8, tensors below
        4,096 elements keep their moments in F32. Parameters in F64 allow only F32.
    ema: Average of the parameters over the steps, in the slot ema: {decay}, as
        torch's AveragedModel computes it; null keeps no average.
    """
    return {
        "name": "muon",
        "lr": lr,
        "weight_decay": weight_decay,
        "momentum": momentum,
        "nesterov": nesterov,
        "ns_steps": ns_steps,
        "ns_coefficients": ns_coefficients,
        "eps": eps,
        "adjust_lr_fn": adjust_lr_fn,
        "state_dtype": state_dtype,
        "ema": ema,
    }


def nadam(
    *,
    lr: float = 0.002,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0,
    decoupled_weight_decay: bool = False,
    momentum_decay: float = 0.004,
    maximize: bool = False,
    state_dtype: Literal["F32", "BF16", "Q8"] = "F32",
    ema: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """NAdam.

    m, v as in adam; mu_t = beta1*(1 - 0.96^(t*momentum_decay)/2); P = mu_1*...*mu_t; p
    -= lr * ((1-mu_t)/(1-P)*g + mu_{t+1}/(1-P*mu_{t+1})*m) / (sqrt(v/(1-beta2^t)) +
    eps).

    lr: Learning rate; with a schedule, its base rate.
    betas: Decay rates of exp_avg and exp_avg_sq.
    eps: Added to the root of the second moment, after the bias correction.
    weight_decay: Weight decay (L2): weight_decay times the parameter is added to
        the gradient.
    decoupled_weight_decay: Decouple the weight decay: subtract lr*weight_decay
        times the parameter, instead of adding to the gradient.
    momentum_decay: Speed of the momentum's warm-up.
    maximize: Go up the gradient instead of down.
    state_dtype: Format of the moments: F32; BF16, with half of the bytes; or Q8,
        with 8 bits per element and one scale per 64 elements. Under Q8, tensors below
        4,096 elements keep their moments in F32. Parameters in F64 allow only F32.
    ema: Average of the parameters over the steps, in the slot ema: {decay}, as
        torch's AveragedModel computes it; null keeps no average.
    """
    return {
        "name": "nadam",
        "lr": lr,
        "betas": betas,
        "eps": eps,
        "weight_decay": weight_decay,
        "decoupled_weight_decay": decoupled_weight_decay,
        "momentum_decay": momentum_decay,
        "maximize": maximize,
        "state_dtype": state_dtype,
        "ema": ema,
    }


def prodigy(
    *,
    lr: float = 1,
    betas: Sequence[float] = (0.9, 0.999),
    beta3: float | None = None,
    eps: float = 1e-8,
    weight_decay: float = 0,
    decouple: bool = True,
    use_bias_correction: bool = False,
    safeguard_warmup: bool = False,
    d0: float = 0.000001,
    d_coef: float = 1,
    growth_rate: float | None = None,
    ema: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Prodigy.

    rate = d*lr (use_bias_correction: times sqrt(1-beta2^k)/(1-beta1^k)); m = beta1*m +
    (1-beta1)*d*g; v = beta2*v + (1-beta2)*d^2*g^2; s = beta3*s + d/d0*rate*g; over all
    tensors: numerator = beta3*numerator + d/d0*rate*<g, p0 - p>, d_hat =
    d_coef*numerator/|s|_1, d_max = max(d_max, d_hat), d = min(d_max, d*growth_rate); p
    -= rate*weight_decay*p + rate * m/(sqrt(v) + d*eps).

    lr: Factor of the estimated step size; with a schedule, its base rate.
    betas: Decay rates of exp_avg and exp_avg_sq.
    beta3: Decay rate of s and of the numerator; null takes the root of the second
        of betas.
    eps: Added to the root of the second moment, after the bias correction.
    weight_decay: Weight decay; decouple selects its form.
    decouple: Subtract rate*weight_decay times the parameter from it; false adds
        weight_decay times the parameter to the gradient.
    use_bias_correction: Correct the bias of the moments in the step size (optax:
        always).
    safeguard_warmup: Leave lr out of s, for schedules that begin with small rates.
    d0: Estimate of the distance before the first step.
    d_coef: Factor of the estimate.
    growth_rate: Largest factor by which d grows in a step; null for no limit.
    ema: Average of the parameters over the steps, in the slot ema: {decay}, as
        torch's AveragedModel computes it; null keeps no average.
    """
    return {
        "name": "prodigy",
        "lr": lr,
        "betas": betas,
        "beta3": beta3,
        "eps": eps,
        "weight_decay": weight_decay,
        "decouple": decouple,
        "use_bias_correction": use_bias_correction,
        "safeguard_warmup": safeguard_warmup,
        "d0": d0,
        "d_coef": d_coef,
        "growth_rate": growth_rate,
        "ema": ema,
    }


def qhadam(
    *,
    lr: float = 0.001,
    betas: Sequence[float] = (0.995, 0.999),
    nus: Sequence[float] = (0.7, 1),
    eps: float = 1e-8,
    weight_decay: float = 0,
    state_dtype: Literal["F32", "BF16", "Q8"] = "F32",
    ema: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """QHAdam.

    g += weight_decay*p; m, v as in adam; p -= lr * (nu1*mhat + (1-nu1)*g) /
    (sqrt(nu2*vhat + (1-nu2)*g^2) + eps), mhat = m/(1-beta1^t), vhat = v/(1-beta2^t).

    lr: Learning rate; with a schedule, its base rate.
    betas: Decay rates of exp_avg and exp_avg_sq.
    nus: Weights of the first and second moment, relative to the current gradient;
        any finite numbers.
    eps: Added to the root of the second moment, after the bias correction.
    weight_decay: Weight decay (L2): weight_decay times the parameter is added to
        the gradient.
    state_dtype: Format of the moments: F32; BF16, with half of the bytes; or Q8,
        with 8 bits per element and one scale per 64 elements. Under Q8, tensors below
        4,096 elements keep their moments in F32. Parameters in F64 allow only F32.
    ema: Average of the parameters over the steps, in the slot ema: {decay}, as
        torch's AveragedModel computes it; null keeps no average.
    """
    return {
        "name": "qhadam",
        "lr": lr,
        "betas": betas,
        "nus": nus,
        "eps": eps,
        "weight_decay": weight_decay,
        "state_dtype": state_dtype,
        "ema": ema,
    }


def qhadamw(
    *,
    lr: float = 0.001,
    betas: Sequence[float] = (0.995, 0.999),
    nus: Sequence[float] = (0.7, 1),
    eps: float = 1e-8,
    weight_decay: float = 0,
    weight_decay_scale: Literal["lr", "schedule", "none"] = "lr",
    state_dtype: Literal["F32", "BF16", "Q8"] = "F32",
    ema: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """QHAdamW.

    m, v as in adamw; p -= scale*weight_decay*p + lr * (nu1*mhat + (1-nu1)*g) /
    (sqrt(nu2*vhat + (1-nu2)*g^2) + eps), scale = lr, lr_t/lr or 1 by
    weight_decay_scale.

    lr: Learning rate; with a schedule, its base rate.
    betas: Decay rates of exp_avg and exp_avg_sq.
    nus: Weights of the first and second moment, relative to the current gradient;
        any finite numbers.
    eps: Added to the root of the second moment, after the bias correction.
    weight_decay: Decoupled weight decay: weight_decay times the parameter, scaled
        by weight_decay_scale, is subtracted from the parameter.
    weight_decay_scale: Factor of weight_decay: lr (torch), the schedule's factor
        lr_t/lr (the AdamW paper's fully decoupled form; lr_t/max_lr with one_cycle and
        cyclic), or 1 (IPRally's QHAdamW).
    state_dtype: Format of the moments: F32; BF16, with half of the bytes; or Q8,
        with 8 bits per element and one scale per 64 elements. Under Q8, tensors below
        4,096 elements keep their moments in F32. Parameters in F64 allow only F32.
    ema: Average of the parameters over the steps, in the slot ema: {decay}, as
        torch's AveragedModel computes it; null keeps no average.
    """
    return {
        "name": "qhadamw",
        "lr": lr,
        "betas": betas,
        "nus": nus,
        "eps": eps,
        "weight_decay": weight_decay,
        "weight_decay_scale": weight_decay_scale,
        "state_dtype": state_dtype,
        "ema": ema,
    }


def qhm(
    *,
    lr: float,
    momentum: float,
    nu: float,
    weight_decay: float = 0,
    weight_decay_type: Literal["grad", "direct"] = "grad",
    state_dtype: Literal["F32", "BF16", "Q8"] = "F32",
    ema: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """QHM.

    g += weight_decay*p (type grad); buf = lerp(buf, g, 1-momentum); p -=
    lr*weight_decay*p (type direct) + lr * (nu*buf + (1-nu)*g).

    lr: Learning rate; with a schedule, its base rate. The paper's experiments use 1
        with momentum 0.999 and nu 0.7.
    momentum: Decay rate of momentum_buffer.
    nu: Weight of the buffer, relative to the current gradient.
    weight_decay: Weight decay: a multiple of the parameter.
    weight_decay_type: Add the decay to the gradient, or subtract lr times it from
        the parameter.
    state_dtype: Format of the moments: F32; BF16, with half of the bytes; or Q8,
        with 8 bits per element and one scale per 64 elements. Under Q8, tensors below
        4,096 elements keep their moments in F32. Parameters in F64 allow only F32.
    ema: Average of the parameters over the steps, in the slot ema: {decay}, as
        torch's AveragedModel computes it; null keeps no average.
    """
    return {
        "name": "qhm",
        "lr": lr,
        "momentum": momentum,
        "nu": nu,
        "weight_decay": weight_decay,
        "weight_decay_type": weight_decay_type,
        "state_dtype": state_dtype,
        "ema": ema,
    }


def radam(
    *,
    lr: float = 0.001,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
    state_dtype: Literal["F32", "BF16", "Q8"] = "F32",
    ema: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """RAdam.

    m, v as in adam; rho = rho_inf - 2t*beta2^t/(1-beta2^t); p -= lr * m/(1-beta1^t) *
    (rho > 5 ? rect(rho)*sqrt(1-beta2^t)/(sqrt(v) + eps) : 1).

    lr: Learning rate; with a schedule, its base rate.
    betas: Decay rates of exp_avg and exp_avg_sq.
    eps: Added to the root of the second moment, after the bias correction.
    weight_decay: Weight decay (L2): weight_decay times the parameter is added to
        the gradient.
    decoupled_weight_decay: Decouple the weight decay: subtract lr*weight_decay
        times the parameter, instead of adding to the gradient.
    maximize: Go up the gradient instead of down.
    state_dtype: Format of the moments: F32; BF16, with half of the bytes; or Q8,
        with 8 bits per element and one scale per 64 elements. Under Q8, tensors below
        4,096 elements keep their moments in F32. Parameters in F64 allow only F32.
    ema: Average of the parameters over the steps, in the slot ema: {decay}, as
        torch's AveragedModel computes it; null keeps no average.
    """
    return {
        "name": "radam",
        "lr": lr,
        "betas": betas,
        "eps": eps,
        "weight_decay": weight_decay,
        "decoupled_weight_decay": decoupled_weight_decay,
        "maximize": maximize,
        "state_dtype": state_dtype,
        "ema": ema,
    }


def rmsprop(
    *,
    lr: float = 0.01,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0,
    momentum: float = 0,
    centered: bool = False,
    maximize: bool = False,
    eps_root: float = 0,
    state_dtype: Literal["F32", "BF16", "Q8"] = "F32",
    ema: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """RMSprop.

    g += weight_decay*p; s = lerp(s, g^2, 1-alpha); q = centered ? max(s - h^2, 0), h =
    lerp(h, g, 1-alpha) : s; u = g/(sqrt(q + eps_root) + eps); p -= lr * (momentum ? buf
    = momentum*buf + u : u).

    lr: Learning rate; with a schedule, its base rate.
    alpha: Decay rate of square_avg and grad_avg.
    eps: Added to the root.
    weight_decay: Weight decay (L2): weight_decay times the parameter is added to
        the gradient.
    momentum: Decay rate of momentum_buffer; 0 keeps no buffer.
    centered: Divide by the deviation from the mean gradient (slot grad_avg).
    maximize: Go up the gradient instead of down.
    eps_root: Added under the root, as in optax.
    state_dtype: Format of the moments: F32; BF16, with half of the bytes; or Q8,
        with 8 bits per element and one scale per 64 elements. Under Q8, tensors below
        4,096 elements keep their moments in F32. Parameters in F64 allow only F32.
    ema: Average of the parameters over the steps, in the slot ema: {decay}, as
        torch's AveragedModel computes it; null keeps no average.
    """
    return {
        "name": "rmsprop",
        "lr": lr,
        "alpha": alpha,
        "eps": eps,
        "weight_decay": weight_decay,
        "momentum": momentum,
        "centered": centered,
        "maximize": maximize,
        "eps_root": eps_root,
        "state_dtype": state_dtype,
        "ema": ema,
    }


def rprop(
    *,
    lr: float = 0.01,
    etas: Sequence[float] = (0.5, 1.2),
    step_sizes: Sequence[float] = (0.000001, 50),
    maximize: bool = False,
    ema: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Rprop.

    s = clamp(s * (g*prev > 0 ? eta_plus : g*prev < 0 ? eta_minus : 1), step_sizes); g =
    0 where g*prev < 0; p -= sign(g)*s; prev = g (first step: s = lr).

    lr: Step size of the first step.
    etas: Factors of the step size: below 1 where the gradient's sign turns, above 1
        where it stays.
    step_sizes: Smallest and largest step size.
    maximize: Go up the gradient instead of down.
    ema: Average of the parameters over the steps, in the slot ema: {decay}, as
        torch's AveragedModel computes it; null keeps no average.
    """
    return {
        "name": "rprop",
        "lr": lr,
        "etas": etas,
        "step_sizes": step_sizes,
        "maximize": maximize,
        "ema": ema,
    }


def schedule_free_adamw(
    *,
    lr: float = 0.0025,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0,
    warmup_steps: float = 0,
    r: float = 0,
    weight_lr_power: float = 2,
    maximize: bool = False,
    state_dtype: Literal["F32", "BF16", "Q8"] = "F32",
    ema: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Schedule-free AdamW.

    v = lerp(v, g^2, 1-beta2); u = g/(sqrt(v/(1-beta2^t)) + eps) + weight_decay*p; c =
    w_t/(w_1 + ... + w_t), w_t = t^r * lr_max^weight_lr_power; p += c*(z - p) - lr*(1 -
    beta1*(1-c))*u; z -= lr*u (first step: z = p before it); average: p + (1 -
    1/beta1)*(z - p).

    lr: Learning rate; with a schedule, its base rate.
    betas: Weight of the average x in the parameters, more than 0, and decay rate of
        exp_avg_sq.
    eps: Added to the root of the second moment, after the bias correction.
    weight_decay: Weight decay: weight_decay times the parameter is added to the
        scaled gradient.
    warmup_steps: Number of steps in which the learning rate grows linearly from 0.
    r: Power of the step number in the weight of each step in the average.
    weight_lr_power: Power of the largest learning rate so far in the weight of each
        step in the average.
    maximize: Go up the gradient instead of down.
    state_dtype: Format of the moments: F32; BF16, with half of the bytes; or Q8,
        with 8 bits per element and one scale per 64 elements. Under Q8, tensors below
        4,096 elements keep their moments in F32. Parameters in F64 allow only F32.
    ema: Average of the parameters over the steps, in the slot ema: {decay}, as
        torch's AveragedModel computes it; null keeps no average.
    """
    return {
        "name": "schedule_free_adamw",
        "lr": lr,
        "betas": betas,
        "eps": eps,
        "weight_decay": weight_decay,
        "warmup_steps": warmup_steps,
        "r": r,
        "weight_lr_power": weight_lr_power,
        "maximize": maximize,
        "state_dtype": state_dtype,
        "ema": ema,
    }


def schedule_free_sgd(
    *,
    lr: float = 1,
    momentum: float = 0.9,
    weight_decay: float = 0,
    warmup_steps: float = 0,
    r: float = 0,
    weight_lr_power: float = 2,
    maximize: bool = False,
    ema: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Schedule-free SGD.

    g += weight_decay*p; c = w_t/(w_1 + ... + w_t), w_t = t^r * lr_max^weight_lr_power;
    p += c*(z - p) - lr*(1 - momentum*(1-c))*g; z -= lr*g (first step: z = p before it);
    average: p + (1 - 1/momentum)*(z - p).

    lr: Learning rate; with a schedule, its base rate.
    momentum: Weight of the average x in the parameters; more than 0.
    weight_decay: Weight decay (L2): weight_decay times the parameter is added to
        the gradient.
    warmup_steps: Number of steps in which the learning rate grows linearly from 0.
    r: Power of the step number in the weight of each step in the average.
    weight_lr_power: Power of the largest learning rate so far in the weight of each
        step in the average.
    maximize: Go up the gradient instead of down.
    ema: Average of the parameters over the steps, in the slot ema: {decay}, as
        torch's AveragedModel computes it; null keeps no average.
    """
    return {
        "name": "schedule_free_sgd",
        "lr": lr,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "warmup_steps": warmup_steps,
        "r": r,
        "weight_lr_power": weight_lr_power,
        "maximize": maximize,
        "ema": ema,
    }


def sgd(
    *,
    lr: float = 0.001,
    momentum: float = 0,
    dampening: float = 0,
    weight_decay: float = 0,
    nesterov: bool = False,
    maximize: bool = False,
    state_dtype: Literal["F32", "BF16", "Q8"] = "F32",
    ema: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """SGD.

    g += weight_decay*p; buf = momentum*buf + (1-dampening)*g (first step: buf = g); p
    -= lr * (nesterov ? g + momentum*buf : momentum ? buf : g).

    lr: Learning rate; with a schedule, its base rate.
    momentum: Decay rate of momentum_buffer; 0 keeps no buffer.
    dampening: Fraction of each new gradient that is not added to the buffer.
    weight_decay: Weight decay (L2): weight_decay times the parameter is added to
        the gradient.
    nesterov: Nesterov momentum: step along the gradient plus momentum times the
        buffer.
    maximize: Go up the gradient instead of down.
    state_dtype: Format of the moments: F32; BF16, with half of the bytes; or Q8,
        with 8 bits per element and one scale per 64 elements. Under Q8, tensors below
        4,096 elements keep their moments in F32. Parameters in F64 allow only F32.
    ema: Average of the parameters over the steps, in the slot ema: {decay}, as
        torch's AveragedModel computes it; null keeps no average.
    """
    return {
        "name": "sgd",
        "lr": lr,
        "momentum": momentum,
        "dampening": dampening,
        "weight_decay": weight_decay,
        "nesterov": nesterov,
        "maximize": maximize,
        "state_dtype": state_dtype,
        "ema": ema,
    }


def signum(
    *,
    lr: float = 0.001,
    momentum: float = 0.9,
    weight_decay: float = 0,
    decoupled_weight_decay: bool = True,
    maximize: bool = False,
    state_dtype: Literal["F32", "BF16", "Q8"] = "F32",
    ema: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Signum.

    buf = lerp(buf, g, 1-momentum); p -= lr*sign(buf).

    lr: Learning rate; with a schedule, its base rate.
    momentum: Decay rate of momentum_buffer.
    weight_decay: Weight decay; decoupled_weight_decay selects its form.
    decoupled_weight_decay: Subtract lr*weight_decay times the parameter from it,
        instead of adding weight_decay times the parameter to the gradient.
    maximize: Go up the gradient instead of down.
    state_dtype: Format of the moments: F32; BF16, with half of the bytes; or Q8,
        with 8 bits per element and one scale per 64 elements. Under Q8, tensors below
        4,096 elements keep their moments in F32. Parameters in F64 allow only F32.
    ema: Average of the parameters over the steps, in the slot ema: {decay}, as
        torch's AveragedModel computes it; null keeps no average.
    """
    return {
        "name": "signum",
        "lr": lr,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "decoupled_weight_decay": decoupled_weight_decay,
        "maximize": maximize,
        "state_dtype": state_dtype,
        "ema": ema,
    }


def yogi(
    *,
    lr: float = 0.01,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 0.001,
    initial_accumulator_value: float = 0.000001,
    weight_decay: float = 0,
    decoupled_weight_decay: bool = True,
    bias_correction: Literal["moments", "step_size", "none"] = "moments",
    eps_root: float = 0,
    maximize: bool = False,
    ema: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Yogi.

    m = lerp(m, g, 1-beta1); v -= (1-beta2)*sign(v - g^2)*g^2; p -= lr * m/(1-beta1^t) /
    (sqrt(v/(1-beta2^t) + eps_root) + eps).

    lr: Learning rate; with a schedule, its base rate.
    betas: Decay rates of exp_avg and exp_avg_sq.
    eps: Added to the root of the second moment.
    initial_accumulator_value: Initial value of exp_avg and exp_avg_sq.
    weight_decay: Weight decay; decoupled_weight_decay selects its form.
    decoupled_weight_decay: Subtract lr*weight_decay times the parameter from it,
        instead of adding weight_decay times the parameter to the gradient.
    bias_correction: Correct the moments (paper), the step size alone, so that eps
        is added to the uncorrected root (Keras, and Flower's FedAdam), or nothing.
    eps_root: Added under the root, as in optax.
    maximize: Go up the gradient instead of down.
    ema: Average of the parameters over the steps, in the slot ema: {decay}, as
        torch's AveragedModel computes it; null keeps no average.
    """
    return {
        "name": "yogi",
        "lr": lr,
        "betas": betas,
        "eps": eps,
        "initial_accumulator_value": initial_accumulator_value,
        "weight_decay": weight_decay,
        "decoupled_weight_decay": decoupled_weight_decay,
        "bias_correction": bias_correction,
        "eps_root": eps_root,
        "maximize": maximize,
        "ema": ema,
    }
