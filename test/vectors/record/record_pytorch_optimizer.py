"""Records vectors of pytorch_optimizer."""

from functools import partial
from importlib.metadata import version

from pytorch_optimizer import AdaBelief, Adan, AdEMAMix, SignSGD, Yogi
from recording import ODD, Case, record
from torch_run import torch_peer

_peer = partial(torch_peer, "pytorch_optimizer", version("pytorch_optimizer"))

PEERS = {
    "yogi.pytorch_optimizer": _peer(
        Yogi,
        [
            Case("default", 3021188471, {"weight_decay": 0.1}, steps=8),
            Case(
                "coupled",
                1900415527,
                {
                    "initial_accumulator": 0.0,
                    "weight_decay": 0.01,
                    "weight_decouple": False,
                },
                shapes=ODD,
                steps=4,
            ),
        ],
    ),
    "adabelief.pytorch_optimizer": _peer(
        AdaBelief,
        [
            Case(
                "coupled",
                2760391148,
                {"lr": 0.01, "weight_decay": 0.1, "weight_decouple": False},
            )
        ],
    ),
    "adan.pytorch_optimizer": _peer(
        Adan,
        [
            Case("default", 2977410326, {"weight_decay": 0.1}),
            Case(
                "decoupled",
                1309948815,
                {"lr": 0.01, "weight_decay": 0.1, "weight_decouple": True},
                shapes=ODD,
                steps=4,
            ),
        ],
    ),
    "ademamix.pytorch_optimizer": _peer(
        AdEMAMix,
        [
            Case("default", 3360157204, {"weight_decay": 0.1}, steps=8),
            Case(
                "warm-up",
                1150776923,
                {
                    "lr": 0.01,
                    "t_alpha_beta3": 5,
                    "weight_decay": 0.1,
                    "weight_decouple": True,
                },
                steps=8,
            ),
            Case(
                "heavy",
                2219084467,
                {"betas": (0.4, 0.3, 0.9), "alpha": 2.0, "t_alpha_beta3": 20},
                shapes=ODD,
                steps=4,
            ),
        ],
    ),
    "signum.pytorch_optimizer": _peer(
        SignSGD,
        [
            Case("default", 1544920377, {"weight_decay": 0.1}),
            Case(
                "coupled",
                3390118264,
                {"momentum": 0.4, "weight_decay": 0.1, "weight_decouple": False},
                shapes=ODD,
                steps=4,
            ),
        ],
    ),
}

if __name__ == "__main__":
    record(PEERS)
