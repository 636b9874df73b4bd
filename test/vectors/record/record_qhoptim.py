"""Records vectors of qhoptim."""

from functools import partial
from importlib.metadata import version

from qhoptim.pyt import QHM, QHAdam
from recording import ODD, Case, record
from torch_run import torch_peer

# The release contains the optimizers of this commit unchanged.
COMMIT = "e81dea3"


_peer = partial(torch_peer, "qhoptim", f"{version('qhoptim')}+{COMMIT}")

PEERS = {
    "qhadam.qhoptim": _peer(
        QHAdam,
        [
            Case("default-nu1", 3919120317),
            Case(
                "recommended",
                3890160729,
                {"betas": (0.995, 0.999), "nus": (0.7, 1.0)},
                steps=8,
            ),
            Case(
                "nus.8-.9-wd",
                765011740,
                {"lr": 0.01, "nus": (0.8, 0.9), "weight_decay": 0.05},
                shapes=ODD,
                steps=4,
            ),
            Case("nu1-0", 2347837056, {"nus": (0.0, 1.0)}),
            Case("nu2-0", 2310510809, {"nus": (1.0, 0.0)}),
            Case("nu-0-0", 3904182591, {"lr": 0.01, "nus": (0.0, 0.0)}),
            Case("eps0", 813113080, {"nus": (0.7, 1.0), "eps": 0.0}, steps=3),
            Case("nadam-like", 4123750891, {"nus": (0.9, 1.0)}),
            Case("zeros-first", 502089417, {"nus": (0.7, 1.0)}, grads="zeros_first"),
            Case("tiny", 994649045, {"nus": (0.7, 1.0)}, grads="tiny"),
            Case("large18", 3361545387, {"nus": (0.7, 1.0)}, grads="large18"),
            Case("missing", 2945419408, {"nus": (0.7, 0.9)}, grads="missing"),
            Case(
                "lr-per-step",
                1619378169,
                {"nus": (0.7, 1.0), "weight_decay": 0.01},
                lrs=(0.0001, 0.0005, 0.001, 0.0, 0.002),
            ),
            Case("beta0", 881185596, {"betas": (0.0, 0.0), "nus": (0.7, 0.7)}),
            Case(
                "nu-gt-1",
                4287183275,
                {"lr": 0.01, "nus": (1.2, 1.1)},
                note="nus are not validated by the peer",
            ),
        ],
    ),
    "qhadamw.qhoptim": _peer(
        QHAdam,
        [
            Case(
                "nu1", 3387482022, {"weight_decay": 0.01, "decouple_weight_decay": True}
            ),
            Case(
                "recommended",
                1428114811,
                {
                    "betas": (0.995, 0.999),
                    "nus": (0.7, 1.0),
                    "weight_decay": 0.01,
                    "decouple_weight_decay": True,
                },
                steps=8,
            ),
            Case(
                "nus.8-.9-wd.1",
                3416388442,
                {
                    "lr": 0.01,
                    "nus": (0.8, 0.9),
                    "weight_decay": 0.1,
                    "decouple_weight_decay": True,
                },
                shapes=ODD,
                steps=4,
            ),
            Case("wd0", 4274083039, {"nus": (0.7, 1.0), "decouple_weight_decay": True}),
            Case(
                "nu0",
                3203395376,
                {
                    "lr": 0.01,
                    "nus": (0.0, 0.0),
                    "weight_decay": 0.1,
                    "decouple_weight_decay": True,
                },
            ),
            Case(
                "sched",
                1943174097,
                {"nus": (0.7, 1.0), "weight_decay": 0.1, "decouple_weight_decay": True},
                lrs=(0.0001, 0.0005, 0.001, 0.0, 0.002),
            ),
            Case(
                "zeros",
                858000791,
                {
                    "lr": 0.1,
                    "nus": (0.7, 1.0),
                    "weight_decay": 0.1,
                    "decouple_weight_decay": True,
                },
                grads="zeros",
            ),
        ],
    ),
    "qhm.qhoptim": _peer(
        QHM,
        [
            Case("nu.7-b.999", 3701121040, {"lr": 1.0, "momentum": 0.999, "nu": 0.7}),
            Case("nu1", 2863277116, {"lr": 1.0, "momentum": 0.9, "nu": 1.0}),
            Case("nu0", 3719107754, {"lr": 0.1, "momentum": 0.9, "nu": 0.0}),
            Case(
                "wd-grad",
                2658637359,
                {"lr": 0.5, "momentum": 0.9, "nu": 0.7, "weight_decay": 0.02},
                shapes=ODD,
                steps=4,
            ),
            Case(
                "wd-direct",
                2178632110,
                {
                    "lr": 0.5,
                    "momentum": 0.9,
                    "nu": 0.7,
                    "weight_decay": 0.02,
                    "weight_decay_type": "direct",
                },
            ),
            Case(
                "nesterov-as-qhm", 2135580445, {"lr": 1.0, "momentum": 0.9, "nu": 0.9}
            ),
            Case(
                "zeros-first",
                3944107787,
                {"lr": 1.0, "momentum": 0.9, "nu": 0.7},
                grads="zeros_first",
            ),
            Case("momentum0", 240628592, {"lr": 0.3, "momentum": 0.0, "nu": 0.5}),
        ],
    ),
}

if __name__ == "__main__":
    record(PEERS)
