"""Records vectors of torch.optim."""

import torch
from recording import LARGE, ODD, ONE, Case, Peer, record
from torch_run import torch_run


def _peer(optimizer: type[torch.optim.Optimizer], cases: list[Case]) -> Peer:
    # The version without its build suffix: any build computes the same on the CPU.
    version = f"{torch.__version__.partition('+')[0]}+cpu"
    source = {"package": "torch", "version": version, "class": optimizer.__name__}
    return Peer(source, torch_run(optimizer), cases)


OVERFLOW = "g*g overflows f32: peer f32 keeps v=inf and stops moving; f64 does not"
RESTING = "a tensor without a gradient keeps its state; its step does not advance"

PEERS = {
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
        [
            Case("default", 175770111, steps=10),
            Case(
                "betas-eps",
                2135290865,
                {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-06},
                shapes=ODD,
                steps=4,
            ),
            Case("wd.1", 421571393, {"lr": 0.01, "weight_decay": 0.1}),
            Case("wd0", 3120070114, {"weight_decay": 0.0}),
            Case(
                "amsgrad",
                2485951415,
                {"lr": 0.01, "amsgrad": True},
                grads="mixed",
                steps=8,
            ),
            Case(
                "amsgrad-wd-max",
                3718038774,
                {"lr": 0.01, "weight_decay": 0.05, "amsgrad": True, "maximize": True},
            ),
            Case("maximize", 765159641, {"maximize": True}),
            Case("eps0", 2148346998, {"lr": 0.01, "eps": 0.0}, shapes=ODD, steps=3),
            Case(
                "eps0-zero-grad-nan",
                1954184683,
                {"lr": 0.01, "eps": 0.0, "weight_decay": 0.0},
                grads="zeros",
                steps=3,
                note="0/0: peer yields NaN params",
            ),
            Case("beta1-0", 2630493942, {"betas": (0.0, 0.999)}),
            Case("beta2-0", 2660014255, {"betas": (0.9, 0.0)}),
            Case("beta-1m", 2052787446, {"betas": (0.99, 0.9999), "eps": 1e-12}),
            Case("beta1-.4", 1941289448, {"lr": 0.1, "betas": (0.4, 0.3)}),
            Case("zeros-first", 577161012, grads="zeros_first"),
            Case("zeros", 461281916, {"lr": 0.1}, grads="zeros"),
            Case("sparse", 1865398463, grads="sparse"),
            Case("denormal", 1137565676, grads="denormal"),
            Case("tiny", 2335379803, grads="tiny"),
            Case("large18", 2119624386, grads="large18"),
            Case(
                "large30",
                1119554674,
                grads="large30",
                note=OVERFLOW,
            ),
            Case("nonfinite", 3964214996, grads="nonfinite"),
            Case("lr-per-step", 1594768900, lrs=(0.0001, 0.0005, 0.001, 0.0, 0.002)),
            Case(
                "missing-grad",
                3252736244,
                {"lr": 0.01},
                grads="missing",
                note=RESTING,
            ),
            Case("big", 3820267107, {"lr": 0.0003, "weight_decay": 0.1}, shapes=LARGE),
            Case("one", 1243857627, {"lr": 0.1}, shapes=ONE, steps=12),
            Case(
                "groups",
                3082890358,
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
        ],
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
        [
            Case("default", 987101484, steps=10),
            Case(
                "betas-eps",
                1760405406,
                {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-06},
                shapes=ODD,
                steps=4,
            ),
            Case("wd.1", 2549308259, {"lr": 0.01, "weight_decay": 0.1}),
            Case("wd0", 3571951231, {"weight_decay": 0.0}),
            Case(
                "amsgrad",
                2760076132,
                {"lr": 0.01, "amsgrad": True},
                grads="mixed",
                steps=8,
            ),
            Case(
                "amsgrad-wd-max",
                1350120657,
                {"lr": 0.01, "weight_decay": 0.05, "amsgrad": True, "maximize": True},
            ),
            Case("maximize", 846283847, {"maximize": True}),
            Case("eps0", 249486420, {"lr": 0.01, "eps": 0.0}, shapes=ODD, steps=3),
            Case(
                "eps0-zero-grad-nan",
                1281057160,
                {"lr": 0.01, "eps": 0.0, "weight_decay": 0.0},
                grads="zeros",
                steps=3,
                note="0/0: peer yields NaN params",
            ),
            Case("beta1-0", 2892355109, {"betas": (0.0, 0.999)}),
            Case("beta2-0", 2921556092, {"betas": (0.9, 0.0)}),
            Case("beta-1m", 1257569317, {"betas": (0.99, 0.9999), "eps": 1e-12}),
            Case("beta1-.4", 1818203510, {"lr": 0.1, "betas": (0.4, 0.3)}),
            Case("zeros-first", 2886021657, grads="zeros_first"),
            Case("zeros", 3465545832, {"lr": 0.1}, grads="zeros"),
            Case("sparse", 1965064784, grads="sparse"),
            Case("denormal", 1546122098, grads="denormal"),
            Case("tiny", 98623865, grads="tiny"),
            Case("large18", 1324946961, grads="large18"),
            Case(
                "large30",
                1913978017,
                grads="large30",
                note=OVERFLOW,
            ),
            Case("nonfinite", 4225845947, grads="nonfinite"),
            Case("lr-per-step", 3513633577, lrs=(0.0001, 0.0005, 0.001, 0.0, 0.002)),
            Case(
                "missing-grad",
                2226253684,
                {"lr": 0.01},
                grads="missing",
                note=RESTING,
            ),
            Case("big", 2393603582, {"lr": 0.0003, "weight_decay": 0.1}, shapes=LARGE),
            Case("one", 658250054, {"lr": 0.1}, shapes=ONE, steps=12),
            Case(
                "groups",
                2915964569,
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
        ],
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
}

if __name__ == "__main__":
    record(PEERS)
