# DO NOT EDIT: written by `npm run generate`.
"""What an optimizer's update of one element depends on."""

from __future__ import annotations

#: Whether an optimizer needs whole tensors: always, never, or with a hyperparameter.
WHOLE_TENSORS: dict[str, bool | str] = {
    "adabelief": False,
    "adadelta": False,
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
