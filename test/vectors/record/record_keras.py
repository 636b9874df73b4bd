"""Records vectors of Keras, on its torch backend."""

import os
from typing import Any

os.environ["KERAS_BACKEND"] = "torch"

import keras
import numpy as np
import torch
from recording import ODD, Arrays, Case, Peer, Run, record

torch.set_num_threads(1)

# Keras' lists of slots, and torch's names of the slots.
_SLOTS = {
    "Adam": {
        "_momentums": "exp_avg",
        "_velocities": "exp_avg_sq",
        "_velocity_hats": "max_exp_avg_sq",
    },
    "RMSprop": {"_velocities": "square_avg", "_average_gradients": "grad_avg"},
}
_SLOTS["AdamW"] = _SLOTS["Adam"]

# These entries of a configuration are hyperparameters.
_RECORDED = (
    "beta_1",
    "beta_2",
    "rho",
    "epsilon",
    "weight_decay",
    "amsgrad",
    "momentum",
    "centered",
)


class KerasRun(Run):
    def __init__(self, name: str, case: Case, params: Arrays) -> None:
        given = dict(case.given)
        lr = given.pop("lr")
        self._slots = _SLOTS[name]
        dtype = str(next(iter(params.values())).dtype)
        # The learning rate is a variable of this dtype.
        keras.config.set_floatx(dtype)
        self._optimizer = getattr(keras.optimizers, name)(learning_rate=lr, **given)
        self._params = {
            key: keras.Variable(value, dtype=dtype) for key, value in params.items()
        }
        self._optimizer.build(list(self._params.values()))
        config = self._optimizer.get_config()
        self.hyperparameters = {
            "lr": lr,
            **{key: config[key] for key in _RECORDED if key in config},
        }

    def step(self, grads: Arrays, lr: float | None) -> None:
        self._optimizer.apply([torch.from_numpy(grads[key]) for key in self._params])

    def params(self) -> Arrays:
        return {key: _array(value) for key, value in self._params.items()}

    def state(self) -> dict[str, dict[str, Any]]:
        step = int(self._optimizer.iterations.numpy())
        return {
            key: {
                "step": step,
                **{
                    slot: _array(variables[index])
                    for name, slot in self._slots.items()
                    if (variables := getattr(self._optimizer, name, None))
                },
            }
            for index, key in enumerate(self._params)
        }


def _array(variable: keras.Variable) -> np.ndarray:
    return np.array(variable.value.detach().numpy())


def _peer(name: str, cases: list[Case]) -> Peer:
    source = {"package": "keras", "version": keras.__version__, "class": name}
    return Peer(source, lambda case, params: KerasRun(name, case, params), cases)


PEERS = {
    "adam.keras": _peer(
        "Adam",
        [
            Case("default", 604170013, {"lr": 0.001}),
            Case(
                "eps-amsgrad",
                3170290871,
                {"lr": 0.01, "epsilon": 0.001, "amsgrad": True},
                grads="zeros_first",
            ),
        ],
    ),
    "adamw.keras": _peer(
        "AdamW",
        [Case("default", 1288413752, {"lr": 0.01}, shapes=ODD, steps=4)],
    ),
    "rmsprop.keras": _peer(
        "RMSprop",
        [
            Case("default", 2900341187, {"lr": 0.001}),
            Case("eps", 4035115610, {"lr": 0.01, "epsilon": 0.001, "rho": 0.4}),
        ],
    ),
}

if __name__ == "__main__":
    record(PEERS)
