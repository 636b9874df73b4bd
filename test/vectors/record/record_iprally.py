"""Records vectors of iprally/qhadamw-pytorch, a module that ./run downloads."""

from qhadamw import QHAdamW
from recording import LARGE, ODD, Case, Peer, record
from torch_run import torch_run

SOURCE = {
    "package": "iprally/qhadamw-pytorch",
    "version": "8951294",
    "class": "QHAdamW",
}

PEERS = {
    "qhadamw.iprally": Peer(
        SOURCE,
        torch_run(QHAdamW),
        [
            Case("default", 1614669431),
            Case("wd1e-4", 2082544149, {"weight_decay": 0.0001}, steps=8),
            Case(
                "wd.01-lr.01",
                539244714,
                {"lr": 0.01, "weight_decay": 0.01},
                shapes=ODD,
                steps=4,
            ),
            Case(
                "nu1-1",
                1533775511,
                {"betas": (0.9, 0.999), "nus": (1.0, 1.0), "weight_decay": 1e-05},
            ),
            Case("nu0", 3802262889, {"nus": (0.0, 0.0), "weight_decay": 0.01}),
            Case("nu1-0", 745324033, {"nus": (1.0, 0.0)}),
            Case("eps0", 3402235420, {"weight_decay": 0.001, "eps": 0.0}, steps=3),
            Case(
                "sched",
                4138049710,
                {"weight_decay": 0.01},
                lrs=(0.0001, 0.0005, 0.001, 0.0, 0.002),
                note="decay is not multiplied by lr: with lr=0 the params still shrink",
            ),
            Case("missing", 1942199665, {"weight_decay": 0.01}, grads="missing"),
            Case(
                "zeros-first", 3127549945, {"weight_decay": 0.01}, grads="zeros_first"
            ),
            Case("denormal", 2697237265, grads="denormal"),
            Case("large18", 336660810, {"weight_decay": 0.01}, grads="large18"),
            Case("large30", 687662074, grads="large30"),
            Case("big", 4173565191, {"weight_decay": 0.0001}, shapes=LARGE, steps=4),
        ],
    ),
}

if __name__ == "__main__":
    record(PEERS)
