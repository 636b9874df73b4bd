"""Records vectors of timm.optim."""

from functools import partial

import timm
from recording import LARGE, ODD, Case, record
from timm.optim import AdaBelief, AdamWLegacy, Adan, Adopt, Lamb, Lars, Lion
from torch_run import torch_peer

_peer = partial(torch_peer, "timm", timm.__version__)

PEERS = {
    "adabelief.timm": _peer(
        AdaBelief,
        [
            Case("default", 2113406875, steps=8),
            Case("plain-wd", 1790012263, {"weight_decay": 0.1, "rectify": False}),
        ],
    ),
    "adan.timm": _peer(
        Adan,
        [
            Case("default", 2480115093, {"weight_decay": 0.02}, steps=8),
            Case(
                "no-prox",
                1733020468,
                {
                    "lr": 0.01,
                    "betas": (0.4, 0.3, 0.2),
                    "weight_decay": 0.1,
                    "no_prox": True,
                },
                shapes=ODD,
                steps=4,
            ),
            Case("zeros-first", 3105227741, grads="zeros_first"),
        ],
    ),
    "adopt.timm": _peer(
        Adopt,
        [
            Case("default", 960180337, {"weight_decay": 0.01}),
            Case(
                "decoupled",
                2440011731,
                {"lr": 0.01, "weight_decay": 0.1, "decoupled": True, "clip_exp": None},
                shapes=ODD,
                steps=4,
            ),
            Case("missing", 3311908450, grads="missing"),
        ],
    ),
    "adam.timm": _peer(
        Lamb,
        [
            Case(
                "no-biascorr",
                2381270944,
                {
                    "lr": 0.01,
                    "bias_correction": False,
                    "weight_decay": 0.0,
                    "max_grad_norm": None,
                },
                note="without decay Lamb has no trust ratio, and is Adam",
            ),
        ],
    ),
    "adamw.timm": _peer(
        AdamWLegacy,
        [
            Case("caution", 1746108829, {"caution": True}),
            Case(
                "caution-amsgrad",
                3019524403,
                {
                    "lr": 0.01,
                    "weight_decay": 0.1,
                    "betas": (0.4, 0.3),
                    "caution": True,
                    "amsgrad": True,
                },
                shapes=ODD,
                steps=4,
            ),
            Case("caution-zeros", 852110367, {"caution": True}, grads="zeros_first"),
        ],
    ),
    "lamb.timm": _peer(
        Lamb,
        [
            Case("default", 1970817549),
            Case("noclip", 1004058660, {"max_grad_norm": None}, steps=8),
            Case(
                "noclip-trustclip",
                1666561179,
                {"lr": 0.01, "max_grad_norm": None, "trust_clip": True},
                shapes=ODD,
                steps=4,
            ),
            Case("wd0-noadapt", 5107912, {"weight_decay": 0.0, "max_grad_norm": None}),
            Case(
                "wd0-always",
                2630316828,
                {"weight_decay": 0.0, "max_grad_norm": None, "always_adapt": True},
            ),
            Case(
                "no-biascorr",
                699780366,
                {"bias_correction": False, "max_grad_norm": None},
            ),
            Case(
                "no-gradavg",
                1624296809,
                {"grad_averaging": False, "max_grad_norm": None},
            ),
            Case(
                "decoupled",
                1357111263,
                {
                    "lr": 0.01,
                    "weight_decay": 0.1,
                    "max_grad_norm": None,
                    "decoupled_decay": True,
                },
            ),
            Case("caution", 2830798023, {"max_grad_norm": None, "caution": True}),
            Case(
                "zero-params", 752752310, {"max_grad_norm": None}, grads="zero_params"
            ),
            Case(
                "zero-grads",
                26618375,
                {"weight_decay": 0.0, "max_grad_norm": None, "always_adapt": True},
                grads="zeros",
            ),
            Case("clip.1", 75809694, {"lr": 0.01, "max_grad_norm": 0.1}),
            Case("clip-big-not-active", 3942504071, {"max_grad_norm": 10000.0}),
            Case(
                "sched",
                3362937064,
                {"max_grad_norm": None},
                lrs=(0.0001, 0.0005, 0.001, 0.0, 0.002),
            ),
            Case(
                "groups-bias-excluded",
                3211173643,
                {"lr": 0.01, "weight_decay": 0.05},
                groups=(
                    {"tensors": ("w", "s"), "hyperparameters": {}},
                    {"tensors": ("b", "z"), "hyperparameters": {"weight_decay": 0.0}},
                ),
            ),
            Case("big", 294282097, {"max_grad_norm": None}, shapes=LARGE, steps=4),
            Case(
                "zeros-first", 2388206766, {"max_grad_norm": None}, grads="zeros_first"
            ),
            Case(
                "missing",
                1720070411,
                grads="missing",
                note="timm: one step count per group; "
                "it advances for tensors without a gradient too",
            ),
        ],
    ),
    "lars.timm": _peer(
        Lars,
        [
            Case("mom-wd", 3152496169, {"momentum": 0.9, "weight_decay": 0.0001}),
            Case(
                "nesterov",
                95987485,
                {"lr": 0.5, "momentum": 0.9, "weight_decay": 0.001, "nesterov": True},
                shapes=ODD,
                steps=4,
            ),
            Case(
                "trustclip",
                2860024223,
                {
                    "lr": 0.1,
                    "momentum": 0.9,
                    "weight_decay": 0.01,
                    "trust_coeff": 0.02,
                    "trust_clip": True,
                },
            ),
            Case("wd0-plain-sgd", 4112462749, {"lr": 0.1, "momentum": 0.9}),
            Case("always", 3505493908, {"momentum": 0.9, "always_adapt": True}),
            Case(
                "zero-params",
                3186774411,
                {"momentum": 0.9, "weight_decay": 0.0001},
                grads="zero_params",
            ),
            Case(
                "zeros-first",
                527786899,
                {"momentum": 0.9, "weight_decay": 0.01},
                grads="zeros_first",
            ),
            Case(
                "damp",
                1702353424,
                {"momentum": 0.9, "dampening": 0.5, "weight_decay": 0.01},
            ),
        ],
    ),
    "lion.timm": _peer(
        Lion,
        [
            Case("default", 2216228350),
            Case(
                "wd.1",
                1447640057,
                {"lr": 0.01, "weight_decay": 0.1},
                shapes=ODD,
                steps=4,
            ),
            Case("caution", 1507472180, {"lr": 0.01, "caution": True}),
            Case("zeros-first", 2077199847, {"lr": 0.01}, grads="zeros_first"),
            Case("max", 458984448, {"lr": 0.01, "maximize": True}),
            Case("denormal", 876907910, grads="denormal"),
        ],
    ),
}

if __name__ == "__main__":
    record(PEERS)
