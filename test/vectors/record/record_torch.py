"""Records vectors of torch.optim."""

from functools import partial

import torch
from recording import LARGE, ODD, ONE, Case, record
from torch_run import torch_peer

# The version has no build suffix, because any build computes the same on the CPU.
_peer = partial(torch_peer, "torch", f"{torch.__version__.partition('+')[0]}+cpu")


OVERFLOW = "g*g overflows f32: peer f32 keeps v=inf and stops moving; f64 does not"
MATRICES = {"wide": (12, 20), "tall": (33, 5), "row": (1, 7)}
FACTORED = {"w": (3, 11), "t": (9, 4), "c": (2, 3, 5), "b": (7,), "s": ()}
BFLOAT16 = "torch iterates in bfloat16 in both runs, so f64 is no reference"
RESTING = "a tensor without a gradient keeps its state; its step does not advance"


def _adam_cases(seeds: list[int]) -> list[Case]:
    """Return the cases of Adam and AdamW, which differ in their seeds only."""
    seed = iter(seeds)
    return [
        Case("default", next(seed), steps=10),
        Case(
            "betas-eps",
            next(seed),
            {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-06},
            shapes=ODD,
            steps=4,
        ),
        Case("wd.1", next(seed), {"lr": 0.01, "weight_decay": 0.1}),
        Case("wd0", next(seed), {"weight_decay": 0.0}),
        Case(
            "amsgrad",
            next(seed),
            {"lr": 0.01, "amsgrad": True},
            grads="mixed",
            steps=8,
        ),
        Case(
            "amsgrad-wd-max",
            next(seed),
            {"lr": 0.01, "weight_decay": 0.05, "amsgrad": True, "maximize": True},
        ),
        Case("maximize", next(seed), {"maximize": True}),
        Case("eps0", next(seed), {"lr": 0.01, "eps": 0.0}, shapes=ODD, steps=3),
        Case(
            "eps0-zero-grad-nan",
            next(seed),
            {"lr": 0.01, "eps": 0.0, "weight_decay": 0.0},
            grads="zeros",
            steps=3,
            note="0/0: peer yields NaN params",
        ),
        Case("beta1-0", next(seed), {"betas": (0.0, 0.999)}),
        Case("beta2-0", next(seed), {"betas": (0.9, 0.0)}),
        Case("beta-1m", next(seed), {"betas": (0.99, 0.9999), "eps": 1e-12}),
        Case("beta1-.4", next(seed), {"lr": 0.1, "betas": (0.4, 0.3)}),
        Case("zeros-first", next(seed), grads="zeros_first"),
        Case("zeros", next(seed), {"lr": 0.1}, grads="zeros"),
        Case("sparse", next(seed), grads="sparse"),
        Case("denormal", next(seed), grads="denormal"),
        Case("tiny", next(seed), grads="tiny"),
        Case("large18", next(seed), grads="large18"),
        Case(
            "large30",
            next(seed),
            grads="large30",
            note=OVERFLOW,
        ),
        Case("nonfinite", next(seed), grads="nonfinite"),
        Case("lr-per-step", next(seed), lrs=(0.0001, 0.0005, 0.001, 0.0, 0.002)),
        Case(
            "missing-grad",
            next(seed),
            {"lr": 0.01},
            grads="missing",
            note=RESTING,
        ),
        Case("big", next(seed), {"lr": 0.0003, "weight_decay": 0.1}, shapes=LARGE),
        Case("one", next(seed), {"lr": 0.1}, shapes=ONE, steps=12),
        Case(
            "groups",
            next(seed),
            {"lr": 0.01, "weight_decay": 0.1},
            groups=(
                {"tensors": ("w", "s"), "hyperparameters": {}},
                {
                    "tensors": ("b", "z"),
                    "hyperparameters": {
                        "weight_decay": 0.0,
                        "lr": 0.002,
                        "betas": (0.8, 0.99),
                    },
                },
            ),
        ),
    ]


PEERS = {
    "asgd.torch": _peer(
        torch.optim.ASGD,
        [
            Case("default", 1410933267),
            Case(
                "averaging",
                2088124430,
                {"lambd": 0.1, "alpha": 0.5, "t0": 1, "weight_decay": 0.1},
                shapes=ODD,
            ),
            Case(
                "sched-missing",
                3470205511,
                lrs=(0.01, 0.001, 0.02, 0.0, 0.01),
                grads="missing",
            ),
        ],
    ),
    "rprop.torch": _peer(
        torch.optim.Rprop,
        [
            Case("default", 872044091, steps=8),
            Case(
                "bounds",
                2551380127,
                {"lr": 0.1, "etas": (0.3, 2.0), "step_sizes": (0.05, 0.25)},
                shapes=ODD,
            ),
            Case("zeros-first", 3902275538, grads="zeros_first"),
            Case("missing", 1200918734, grads="missing"),
        ],
    ),
    "adadelta.torch": _peer(
        torch.optim.Adadelta,
        [
            Case("default", 4147285294),
            Case(
                "wd",
                3507185235,
                {"lr": 0.5, "rho": 0.95, "weight_decay": 0.05},
                shapes=ODD,
                steps=4,
            ),
            Case("zeros-first", 2703155512, grads="zeros_first"),
            Case("max", 313118536, {"eps": 0.001, "maximize": True}),
        ],
    ),
    "adafactor.torch": _peer(
        torch.optim.Adafactor,
        [
            Case("default", 1861004251, shapes=FACTORED, steps=8),
            Case(
                "decay-clip",
                2941130087,
                {"lr": 0.1, "beta2_decay": -0.5, "d": 1.5, "weight_decay": 0.1},
                shapes=FACTORED,
            ),
            Case(
                "eps-max",
                3307719442,
                {"lr": 0.05, "eps": (0.5, 2.0), "maximize": True},
                shapes=FACTORED,
            ),
            Case("zeros-first", 516240983, shapes=FACTORED, grads="zeros_first"),
            Case("missing", 1190433658, {"lr": 0.2}, shapes=FACTORED, grads="missing"),
            Case(
                "sparse",
                4023317206,
                {"eps": (1e-6, 1e-3)},
                shapes=FACTORED,
                grads="sparse",
            ),
            Case(
                "tiny",
                774205519,
                {"eps": (1e-12, 1e-3)},
                shapes=FACTORED,
                grads="tiny",
            ),
            Case("zero-params", 905512377, shapes=FACTORED, grads="zero_params"),
            Case(
                "lr-per-step",
                3650027714,
                {"weight_decay": 0.1},
                shapes=FACTORED,
                lrs=(0.01, 0.5, 1.0, 0.0, 0.3),
            ),
        ],
    ),
    "adagrad.torch": _peer(
        torch.optim.Adagrad,
        [
            Case("default", 873794194),
            Case(
                "lrdecay-wd",
                1052350418,
                {"lr": 0.1, "lr_decay": 0.05, "weight_decay": 0.05},
                shapes=ODD,
                steps=4,
            ),
            Case("init-acc", 3678069641, {"lr": 0.1, "initial_accumulator_value": 0.5}),
            Case("zeros-first", 3395828848, grads="zeros_first"),
            Case("max", 2150784086, {"maximize": True}),
        ],
    ),
    "adam.torch": _peer(
        torch.optim.Adam,
        _adam_cases(
            [
                175770111,
                2135290865,
                421571393,
                3120070114,
                2485951415,
                3718038774,
                765159641,
                2148346998,
                1954184683,
                2630493942,
                2660014255,
                2052787446,
                1941289448,
                577161012,
                461281916,
                1865398463,
                1137565676,
                2335379803,
                2119624386,
                1119554674,
                3964214996,
                1594768900,
                3252736244,
                3820267107,
                1243857627,
                3082890358,
            ]
        ),
    ),
    "adamax.torch": _peer(
        torch.optim.Adamax,
        [
            Case("default", 3288416597),
            Case(
                "wd",
                2309710829,
                {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.05},
                shapes=ODD,
                steps=4,
            ),
            Case("zeros-first", 3459165607, grads="zeros_first"),
            Case("large30", 2361410776, grads="large30"),
            Case("max", 1042870726, {"maximize": True}),
        ],
    ),
    "adamw.torch": _peer(
        torch.optim.AdamW,
        _adam_cases(
            [
                987101484,
                1760405406,
                2549308259,
                3571951231,
                2760076132,
                1350120657,
                846283847,
                249486420,
                1281057160,
                2892355109,
                2921556092,
                1257569317,
                1818203510,
                2886021657,
                3465545832,
                1965064784,
                1546122098,
                98623865,
                1324946961,
                1913978017,
                4225845947,
                3513633577,
                2226253684,
                2393603582,
                658250054,
                2915964569,
            ]
        ),
    ),
    "nadam.torch": _peer(
        torch.optim.NAdam,
        [
            Case("default", 3981562648, steps=8),
            Case("wd", 3128041062, {"lr": 0.01, "weight_decay": 0.05}),
            Case(
                "decoupled",
                4001729026,
                {"lr": 0.01, "weight_decay": 0.05, "decoupled_weight_decay": True},
                shapes=ODD,
                steps=4,
            ),
            Case(
                "md",
                174056637,
                {"betas": (0.8, 0.99), "momentum_decay": 0.1, "maximize": True},
            ),
            Case("zeros-first", 2714666209, grads="zeros_first"),
            Case("tiny", 1086057155, grads="tiny"),
        ],
    ),
    "radam.torch": _peer(
        torch.optim.RAdam,
        [
            Case("default", 517666933, steps=8),
            Case("wd", 4130714407, {"lr": 0.01, "weight_decay": 0.05}),
            Case(
                "decoupled-b2.9",
                393834966,
                {
                    "lr": 0.01,
                    "betas": (0.9, 0.9),
                    "weight_decay": 0.05,
                    "decoupled_weight_decay": True,
                },
                steps=8,
            ),
            Case("b2.5-never-rectified", 2547916658, {"lr": 0.01, "betas": (0.9, 0.5)}),
            Case("zeros-first", 2690244632, grads="zeros_first", steps=7),
        ],
    ),
    "rmsprop.torch": _peer(
        torch.optim.RMSprop,
        [
            Case("default", 3132362857),
            Case(
                "mom-wd",
                2493467866,
                {"momentum": 0.9, "weight_decay": 0.05},
                shapes=ODD,
                steps=4,
            ),
            Case("centered", 4159131219, {"centered": True}),
            Case(
                "centered-mom",
                1932498963,
                {"momentum": 0.9, "alpha": 0.9, "centered": True, "maximize": True},
            ),
            Case("zeros-first", 933406975, grads="zeros_first"),
            Case("large30", 4067759588, grads="large30"),
            Case("eps", 3407865716, {"alpha": 0.5, "eps": 0.01}),
        ],
    ),
    "sgd.torch": _peer(
        torch.optim.SGD,
        [
            Case("default", 2110969380),
            Case("lr.1", 90177744, {"lr": 0.1}, shapes=ODD),
            Case("mom.9", 725896868, {"lr": 0.1, "momentum": 0.9}, steps=8),
            Case(
                "mom.9-damp.1-wd",
                1601761874,
                {"lr": 0.05, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.01},
            ),
            Case(
                "nesterov",
                3528886510,
                {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.0005, "nesterov": True},
                shapes=ODD,
                steps=4,
            ),
            Case(
                "maximize",
                1022217050,
                {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.01, "maximize": True},
            ),
            Case("mom0-wd.1", 4004717219, {"lr": 0.2, "weight_decay": 0.1}),
            Case(
                "lr-per-step",
                2150736111,
                {"lr": 0.1, "momentum": 0.9},
                lrs=(0.0, 0.05, 0.1, 0.03, 0.007),
            ),
            Case(
                "zeros-first-damp.5",
                4080883521,
                {"lr": 0.1, "momentum": 0.9, "dampening": 0.5},
                grads="zeros_first",
            ),
            Case(
                "denormal", 1388018799, {"lr": 0.5, "momentum": 0.9}, grads="denormal"
            ),
            Case(
                "denormal-zero-params",
                364666113,
                {"lr": 0.5, "momentum": 0.9},
                grads="denormal",
            ),
            Case("large30", 890491817, {"lr": 0.1, "momentum": 0.9}, grads="large30"),
            Case(
                "nonfinite", 2565454573, {"lr": 0.1, "momentum": 0.9}, grads="nonfinite"
            ),
            Case(
                "missing-grad",
                4142388378,
                {"lr": 0.1, "momentum": 0.9},
                grads="missing",
            ),
            Case("lr0", 2503118515, {"lr": 0.0, "momentum": 0.9}, shapes=ONE),
            Case(
                "big",
                3281366132,
                {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0001},
                shapes=LARGE,
                steps=4,
            ),
            Case(
                "groups",
                405692791,
                {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
                groups=(
                    {"tensors": ("w", "s"), "hyperparameters": {}},
                    {
                        "tensors": ("b", "z"),
                        "hyperparameters": {"weight_decay": 0.0, "lr": 0.02},
                    },
                ),
            ),
        ],
    ),
    "muon.torch": _peer(
        torch.optim.Muon,
        [
            Case("default", 723450001, shapes=MATRICES, note=BFLOAT16),
            Case(
                "no-nesterov",
                723450002,
                {"lr": 0.02, "nesterov": False, "weight_decay": 0.0},
                shapes=MATRICES,
                note=BFLOAT16,
            ),
            Case(
                "match-rms-adamw",
                723450003,
                {"momentum": 0.8, "adjust_lr_fn": "match_rms_adamw"},
                shapes=MATRICES,
                note=BFLOAT16,
            ),
            Case(
                "spectral-unclamped",
                723450004,
                {
                    "adjust_lr_fn": "spectral_unclamped",
                    "ns_steps": 4,
                    "ns_coefficients": (3.0, -3.2, 1.2),
                    "eps": 1e-3,
                },
                shapes=MATRICES,
                grads="zeros_first",
                note=BFLOAT16,
            ),
        ],
    ),
}

if __name__ == "__main__":
    record(PEERS)
