# DO NOT EDIT: written by `npm run generate`.
"""What an optimizer needs to know of a tensor, and the shapes of its slots."""

from __future__ import annotations

#: Whether an optimizer needs whole tensors: always, never, or with a hyperparameter.
WHOLE_TENSORS: dict[str, bool | str] = {
    "adabelief": False,
    "adadelta": False,
    "adafactor": True,
    "adagrad": False,
    "adam": "caution",
    "adamax": False,
    "adamw": "caution",
    "adan": False,
    "ademamix": False,
    "adopt": False,
    "asgd": False,
    "lamb": True,
    "lars": True,
    "lion": "caution",
    "muon": True,
    "nadam": False,
    "prodigy": True,
    "qhadam": False,
    "qhadamw": False,
    "qhm": False,
    "radam": False,
    "rmsprop": False,
    "rprop": False,
    "schedule_free_adamw": False,
    "schedule_free_sgd": False,
    "sgd": False,
    "signum": False,
    "yogi": False,
}

#: The optimizers whose step needs all of their tensors in one call.
ALL_TENSORS = frozenset(["prodigy"])

#: The slots whose shape is not that of their parameter.
OWN_SHAPES = frozenset(["row_var", "col_var"])
