"""Lists the optimizers and schedules of other libraries, from their installed packages.

The names go to names.json. The environment is that of test/vectors/record, with flwr
beside it; flwr is read, not imported. calls.json says how each name is called here.
"""

import ast
import importlib.util
import inspect
import json
import os
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

os.environ["KERAS_BACKEND"] = "torch"

import keras
import optax
import optax.contrib
import timm.optim
import timm.scheduler
import torch
from torch.optim import lr_scheduler, swa_utils


def _classes(module: ModuleType, base: type) -> list[str]:
    """Return the public classes derived from a base, without the base."""
    return [
        name
        for name, value in vars(module).items()
        if inspect.isclass(value)
        and issubclass(value, base)
        and value is not base
        and not name.startswith("_")
    ]


def _functions(module: ModuleType, *hidden: str) -> list[str]:
    """Return the public functions whose names do not start with one of `hidden`."""
    return [
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value) and not name.startswith(("_", *hidden))
    ]


def _flower() -> list[str]:
    package = importlib.util.find_spec("flwr")
    assert package and package.submodule_search_locations
    [folder] = package.submodule_search_locations
    tree = ast.parse((Path(folder) / "serverapp/strategy/__init__.py").read_text())
    [names] = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    return [name for name in names if name not in ("Result", "Strategy")]


SWA = (swa_utils.AveragedModel, swa_utils.SWALR)

NAMES = {
    f"torch.optim {version('torch').split('+')[0]}": [
        *_classes(torch.optim, torch.optim.Optimizer),
        *_classes(lr_scheduler, lr_scheduler.LRScheduler),
        *(value.__name__ for value in SWA),
    ],
    f"optax {version('optax')}": [
        *(
            name
            for name in _functions(optax)
            if getattr(optax, name).__module__ == "optax._src.alias"
        ),
        *(name for name, value in vars(optax).items() if isinstance(value, partial)),
        *_functions(optax.schedules, "inject_"),
    ],
    "optax.contrib": _functions(optax.contrib, "scale_by_"),
    f"timm {version('timm')}": [
        *timm.optim.list_optimizers(),
        *(name for name in vars(timm.scheduler) if name.endswith("LRScheduler")),
    ],
    f"keras {version('keras')}": [
        *_classes(keras.optimizers, keras.optimizers.Optimizer),
        *_classes(
            keras.optimizers.schedules,
            keras.optimizers.schedules.LearningRateSchedule,
        ),
    ],
    f"flwr {version('flwr')}": _flower(),
}

if __name__ == "__main__":
    names = {library: sorted(set(found)) for library, found in NAMES.items()}
    text = json.dumps(names, indent=2) + "\n"
    Path(__file__).with_name("names.json").write_text(text)
