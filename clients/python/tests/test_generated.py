"""Tests that the server accepts the results of the generated functions."""

from __future__ import annotations

import asyncio
import inspect
import json
import pathlib
import subprocess
from typing import Any

import numpy as np
import pytest
from conftest import NODE, ROOT, Server

import stepd

W = {"w": np.ones((2, 2), np.float32)}

#: Values for the arguments that have no default.
EXAMPLES: dict[str, Any] = {
    "lr": 0.1,
    "momentum": 0.9,
    "nu": 0.7,
    "T_max": 10,
    "T_0": 5,
    "base_lr": 0.01,
    "max_lr": 0.1,
    "gamma": 0.9,
    "milestones": [2],
    "total_steps": 20,
    "step_size": 3,
    "warmup_steps": 2,
    "stable_steps": 3,
    "decay_steps": 5,
    "lrs": [0.1, 0.01],
    "schedules": [{"name": "constant"}, {"name": "linear"}],
}


def mapping_of(function: Any) -> dict[str, Any]:
    required = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is parameter.empty
    ]
    made: dict[str, Any] = function(**{name: EXAMPLES[name] for name in required})
    return made


@pytest.mark.parametrize("name", stepd.optimizers.__all__)
def test_optimizer(client: stepd.Client, name: str) -> None:
    optimizer = mapping_of(getattr(stepd.optimizers, name))
    assert optimizer["name"] == name
    required = (
        {"name": name, **{k: optimizer[k] for k in ("lr", "momentum", "nu")}}
        if (name == "qhm")
        else {"name": name}
    )
    spelled = client.step(optimizer, W, W)
    assert spelled.state == client.step(required, W, W).state
    assert spelled.step == 1


@pytest.mark.parametrize("name", stepd.schedules.__all__)
def test_schedule(client: stepd.Client, name: str) -> None:
    schedule = mapping_of(getattr(stepd.schedules, name))
    assert len(client.evaluate_schedule(schedule, count=10)["lrs"]) == 10


def test_every_optimizer_has_a_function(client: stepd.Client) -> None:
    names = sorted(found["name"] for found in client.optimizers())
    assert stepd.optimizers.__all__ == names


def test_agrees_with_its_sources(tmp_path: pathlib.Path) -> None:
    script = ROOT / "scripts/generate-clients.ts"
    subprocess.run([NODE, script, tmp_path], check=True)
    written = sorted(tmp_path.iterdir())
    assert len(written) == 4
    for file in written:
        committed = ROOT / "clients/python/src/stepd" / file.name
        assert file.read_text() == committed.read_text(), "run npm run generate"


def test_one_version() -> None:
    package = json.loads(pathlib.Path(ROOT / "package.json").read_text())
    assert stepd.__version__ == package["version"]


def test_error_classes_form_a_tree() -> None:
    for name, kind in stepd.ServerError.by_name.items():
        assert issubclass(kind, stepd.ServerError) and kind.code < 0
        error = kind({"name": name, "detail": "what", "field": "/x"})
        assert (str(error), error.field, error.status) == ("what", "/x", kind.status)
        assert getattr(stepd, kind.__name__) is kind


def test_step_options_are_those_of_the_wire() -> None:
    schema = json.loads((ROOT / "schemas/step.schema.json").read_text())
    of_wire = schema["properties"].keys() - {"optimizer", "params", "grads", "state"}
    assert stepd.StepOptions.__optional_keys__ == of_wire | {"cached", "ledger"}


@pytest.mark.parametrize("kind", [stepd.Client, stepd.ShardedClient, stepd.AsyncClient])
def test_unknown_step_option_is_named(server: Server, kind: Any) -> None:
    url: Any = [server.url] if kind is stepd.ShardedClient else server.url
    client = kind(url)
    with pytest.raises(
        TypeError, match="no option losscale; the nearest is loss_scale"
    ):
        done = client.step({"name": "sgd"}, W, W, losscale=2)
        asyncio.run(done)
