"""Records vectors of optax."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import optax.contrib
from recording import ODD, Arrays, Case, Peer, Run, record

# These arguments are not hyperparameters, or are recorded under another name.
_NOT_RECORDED = (
    "accumulator_dtype",
    "clip_value_fn",
    "dtype_momentum",
    "learning_rate",
    "mu_dtype",
    "mask",
    "weight_decay_mask",
    "trust_ratio_mask",
)

# stepd's names of optax's slots.
_SLOTS = {"mu": "exp_avg", "nu": "exp_avg_sq", "trace": "trace"}
_OTHER_SLOTS = {
    "rmsprop": {"mu": "grad_avg", "nu": "square_avg"},
    "adabelief": {"nu": "exp_avg_var"},
    "signum": {"ema": "momentum_buffer"},
    "adan": {"m": "exp_avg", "v": "exp_avg_diff", "n": "exp_avg_sq", "g": "pre_grad"},
    "ademamix": {"m1": "exp_avg", "m2": "exp_avg_slow"},
    "prodigy": {
        "exp_avg": "exp_avg",
        "exp_avg_sq": "exp_avg_sq",
        "grad_sum": "s",
        "params0": "p0",
    },
}


class OptaxRun(Run):
    def __init__(
        self,
        make: Callable[..., optax.GradientTransformation],
        case: Case,
        params: Arrays,
    ) -> None:
        given = dict(case.given)
        self._slots = _SLOTS | _OTHER_SLOTS.get(make.__name__, {})
        signature = inspect.signature(make).parameters
        defaults = {
            name: parameter.default
            for name, parameter in signature.items()
            if name not in _NOT_RECORDED
        }
        # no_decay lists the tensors that the mask excludes. The learning rate comes
        # last.
        self.hyperparameters = {
            **defaults,
            **{name: value for name, value in given.items() if name != "lr"},
            "lr": given["lr"],
        }
        no_decay = given.pop("no_decay", ())
        mask = (
            {"mask": {name: name not in no_decay for name in params}}
            if no_decay
            else {}
        )
        self._is_f64 = next(iter(params.values())).dtype == np.float64
        with self._precision():
            self._optimizer = make(given.pop("lr"), **given, **mask)
            self._params = {
                name: jax.numpy.asarray(value) for name, value in params.items()
            }
            self._state = self._optimizer.init(self._params)

    def _precision(self) -> Any:
        return jax.enable_x64(self._is_f64)

    def step(self, grads: Arrays, lr: float | None) -> None:
        with self._precision():
            updates, self._state = self._optimizer.update(
                grads, self._state, self._params
            )
            self._params = optax.apply_updates(self._params, updates)

    def params(self) -> Arrays:
        return {name: np.asarray(value) for name, value in self._params.items()}

    def state(self) -> dict[str, dict[str, Any]]:
        slots: dict[str, dict[str, Any]] = {name: {} for name in self._params}
        # Prodigy is no chain of transforms.
        parts = [self._state] if hasattr(self._state, "_asdict") else self._state
        for part in parts:
            for slot, value in (
                part._asdict().items() if hasattr(part, "_asdict") else ()
            ):
                for name in self._params:
                    # Adan calls its count t.
                    if slot in ("count", "t"):
                        slots[name]["step"] = int(value)
                        if "estim_lr" in part._fields:
                            slots[name] |= _estimates(part)
                    elif slot in self._slots:
                        slots[name][self._slots[slot]] = np.asarray(value[name])
                    elif slot in ("v_row", "v_col", "v"):
                        slots[name] |= _factor(
                            slot, np.asarray(value[name]), self._params[name].shape
                        )
        return slots


def _estimates(state: Any) -> dict[str, Any]:
    """Return Prodigy's scalars under prodigyopt's names. d is its own maximum."""
    values = {
        "d": state.estim_lr,
        "d_max": state.estim_lr,
        "d_numerator": state.numerator_weighted,
        "k": state.count,
    }
    return {name: np.asarray(value, np.float64) for name, value in values.items()}


def _factor(slot: str, value: np.ndarray, shape: tuple[int, ...]) -> Arrays:
    """Return a slot of Adafactor under torch's name, in torch's shape.

    Unused slots are left out. In v_row, optax reduces the longer axis.
    """
    if len(shape) != 2:
        return {"variance": value} if slot == "v" else {}
    if slot == "v":
        return {}
    if (slot == "v_row") == (shape[0] <= shape[1]):
        return {"row_var": value.reshape(-1, 1)}
    return {"col_var": value.reshape(1, -1)}


def _peer(name: str, cases: list[Case]) -> Peer:
    source = {
        "package": "optax",
        "version": f"{optax.__version__} (jax {jax.__version__})",
        "class": name,
    }
    make = getattr(optax, name, None) or getattr(optax.contrib, name)
    return Peer(source, lambda case, params: OptaxRun(make, case, params), cases)


FACTORED = {"w": (3, 11), "t": (9, 4), "b": (7,), "s": ()}

# optax computes 1 - beta^t in float32, which is exact for these betas.
EXACT = (0.5, 0.75)

PEERS = {
    "adafactor.optax": _peer(
        "adafactor",
        [
            Case(
                "default",
                1482203617,
                {"lr": 0.01, "min_dim_size_to_factor": 1},
                shapes=FACTORED,
                steps=8,
            ),
            Case(
                "decay-clip",
                3150937726,
                {
                    "lr": 0.1,
                    "min_dim_size_to_factor": 1,
                    "decay_rate": 0.5,
                    "clipping_threshold": 1.5,
                },
                shapes=FACTORED,
            ),
            Case(
                "unclipped",
                2067751498,
                {
                    "lr": 0.2,
                    "min_dim_size_to_factor": 1,
                    "decay_rate": 1.0,
                    "clipping_threshold": None,
                },
                shapes=FACTORED,
            ),
        ],
    ),
    "adam.optax": _peer(
        "adam",
        [
            Case("default", 1740126724, {"lr": 0.001}),
            Case("eps-root", 2207514214, {"eps_root": 1e-08, "lr": 0.01}),
            Case("nesterov", 3911369418, {"nesterov": True, "lr": 0.01}),
        ],
    ),
    "adamw.optax": _peer(
        "adamw",
        [
            Case("default", 1461177047, {"lr": 0.001}),
            Case(
                "wd.1-mask",
                2732351564,
                {"weight_decay": 0.1, "no_decay": ("b", "s"), "lr": 0.01},
            ),
            Case(
                "zeros-first",
                293621855,
                {"weight_decay": 0.1, "lr": 0.01},
                grads="zeros_first",
            ),
        ],
    ),
    "lamb.optax": _peer(
        "lamb",
        [
            Case("default", 2467760438, {"lr": 0.001}),
            Case(
                "wd.01",
                2715700290,
                {"weight_decay": 0.01, "lr": 0.01},
                shapes=ODD,
                steps=4,
            ),
            Case(
                "eps-root",
                1269825749,
                {"eps_root": 1e-06, "weight_decay": 0.1, "lr": 0.01},
            ),
            Case(
                "mask",
                3396768451,
                {"weight_decay": 0.1, "no_decay": ("b", "s"), "lr": 0.01},
                note="mask removes the decay only; the trust ratio is still applied",
            ),
            Case("zero-params", 3525601962, {"lr": 0.01}, grads="zero_params"),
            Case("zeros", 564484453, {"lr": 0.01}, grads="zeros"),
        ],
    ),
    "prodigy.optax": _peer(
        "prodigy",
        [
            Case("betas", 910334701, {"lr": 1.0, "betas": EXACT}, steps=8),
            Case(
                "wd",
                910334802,
                {
                    "lr": 0.5,
                    "betas": EXACT,
                    "estim_lr0": 0.01,
                    "estim_lr_coef": 6.0,
                    "weight_decay": 0.1,
                },
                shapes=ODD,
                steps=6,
            ),
            Case(
                "safeguard",
                910334803,
                {
                    "lr": 0.7,
                    "betas": EXACT,
                    "beta3": 0.8,
                    "estim_lr0": 0.01,
                    "estim_lr_coef": 6.0,
                    "safeguard_warmup": True,
                },
                steps=6,
            ),
        ],
    ),
    "lars.optax": _peer(
        "lars",
        [
            Case("default", 105059381, {"lr": 1.0}),
            Case(
                "wd", 217626919, {"weight_decay": 0.01, "lr": 0.5}, shapes=ODD, steps=4
            ),
            Case(
                "nesterov",
                3097311710,
                {"weight_decay": 0.01, "nesterov": True, "lr": 0.5},
            ),
            Case("zero-params", 2329742076, {"lr": 0.5}, grads="zero_params"),
        ],
    ),
    "yogi.optax": _peer(
        "yogi",
        [
            Case("default", 1877204116, {"lr": 0.01}),
            Case(
                "betas", 2940115862, {"lr": 0.01, "b1": 0.4, "b2": 0.3}, grads="sparse"
            ),
        ],
    ),
    "adabelief.optax": _peer(
        "adabelief",
        [
            Case("default", 3120477905, {"lr": 0.001}),
            Case("eps", 1660182743, {"lr": 0.01, "eps": 0.001, "eps_root": 0.01}),
        ],
    ),
    "adopt.optax": _peer(
        "adopt",
        [
            Case(
                "clip",
                771380126,
                {"lr": 0.001, "b1": 0.875, "b2": 0.9375},
                note="betas exact in float32, in which optax subtracts them from 1",
            ),
            Case(
                "no-clip",
                4104837715,
                {"lr": 0.01, "b1": 0.875, "b2": 0.9375, "use_clipping": False},
            ),
        ],
    ),
    "adan.optax": _peer(
        "adan",
        [
            Case(
                "default",
                2018440937,
                {
                    "lr": 0.001,
                    "b1": 0.96875,
                    "b2": 0.9375,
                    "b3": 0.875,
                    "weight_decay": 0.02,
                },
                steps=4,
                note="betas exact in float32, in which optax subtracts them from 1",
            ),
        ],
    ),
    "ademamix.optax": _peer(
        "ademamix",
        [
            Case(
                "default",
                1588240671,
                {
                    "lr": 0.001,
                    "b1": 0.875,
                    "b2": 0.9375,
                    "b3": 0.96875,
                    "weight_decay": 0.1,
                },
                steps=4,
                note="betas exact in float32, in which optax subtracts them from 1",
            ),
            Case(
                "alpha",
                3019977250,
                {
                    "lr": 0.01,
                    "b1": 0.875,
                    "b2": 0.9375,
                    "b3": 0.96875,
                    "alpha": 2.0,
                    "eps_root": 1e-06,
                },
                shapes=ODD,
                steps=4,
            ),
        ],
    ),
    "signum.optax": _peer("signum", [Case("default", 2255017390, {"lr": 0.01})]),
    "rmsprop.optax": _peer(
        "rmsprop",
        [
            Case("default", 1120934011, {"lr": 0.001}),
            Case(
                "eps-centered",
                2214780563,
                {"lr": 0.01, "eps": 0.001, "decay": 0.99, "centered": True},
            ),
        ],
    ),
    "lion.optax": _peer(
        "lion",
        [
            Case("default", 3075656239, {"lr": 0.001}),
            Case(
                "wd.1",
                566074076,
                {"weight_decay": 0.1, "lr": 0.01},
                shapes=ODD,
                steps=4,
            ),
        ],
    ),
}

if __name__ == "__main__":
    record(PEERS)
