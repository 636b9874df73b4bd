"""Tests that every example of the READMEs and of other pages runs."""

from __future__ import annotations

import pathlib
import re
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import ROOT, Server

PAGES = [
    ROOT / name for name in ("clients/python/README.md", "docs/torch.md", "docs/jax.md")
]


def python_blocks(readme: pathlib.Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", readme.read_text(), re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=["python", "torch", "jax"])
def test_examples(
    page: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    with Server(STEPD_SHARED_DIR=str(folder), STEPD_CACHE_MIB="16") as server:
        run(page, server.url, folder, tmp_path, monkeypatch)
    assert list(folder.iterdir()) == []


def run(
    page: pathlib.Path,
    url: str,
    folder: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = python_blocks(page)
    assert len(blocks) > 2
    namespace: dict[str, Any] = {}
    for block in blocks:
        code = block.replace("http://127.0.0.1:8080", url)
        code = code.replace("/dev/shm/stepd", str(folder))
        exec(compile(code, str(page), "exec"), namespace)
    namespace["client"].close()


def test_examples_of_the_repository(server: Server) -> None:
    torch_block, optax_block = (
        block.replace("http://127.0.0.1:8080", server.url)
        for block in python_blocks(ROOT / "README.md")
    )
    model, local = torch.nn.Linear(4, 1), torch.nn.Linear(4, 1)
    local.load_state_dict(model.state_dict())
    names: dict[str, Any] = {"model": model}
    exec(torch_block, names)
    in_process = torch.optim.AdamW(local.parameters(), lr=1e-3)
    for module, optimizer in ((model, names["optimizer"]), (local, in_process)):
        module(torch.ones(2, 4)).sum().backward()
        optimizer.step()
    assert torch.allclose(model.weight, local.weight, rtol=1e-6)
    assert names["optimizer"].state_dict()["state"]

    exec(optax_block, names)
    params = {"w": jnp.ones(3)}
    state = names["transformation"].init(params)
    updates, _ = jax.jit(names["transformation"].update)(params, state, params)
    assert np.allclose(updates["w"], -1e-3, rtol=0.02)


RECIPES = sorted(
    path
    for path in (ROOT / "docs/recipes").glob("*.md")
    if "```python" in path.read_text()
)


def test_every_recipe_is_found() -> None:
    assert len(RECIPES) >= 8


# A short program leaves its connections to the end of the process.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("recipe", RECIPES, ids=[path.stem for path in RECIPES])
def test_recipes(
    recipe: pathlib.Path,
    server: Server,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": recipe.stem}
    settings = {"STEPD_CACHE_MIB": "16"} if recipe.stem == "sending-less" else {}
    with Server(**settings) if settings else nullcontext(server) as used:
        for block in python_blocks(recipe):
            code = re.sub(r"http://127\.0\.0\.1:80\d\d", used.url, block)
            exec(compile(code, str(recipe), "exec"), names)
    if recipe.stem == "clipping":
        assert names["stats"].grad_norm > 1
        assert names["stats"].clipped
    if recipe.stem == "sending-less":
        assert [int(one["step"]) for one in names["checkpoint"]["state"].values()] == [
            3,
            3,
        ]
    if recipe.stem == "decay":
        assert [g["weight_decay"] for g in names["optimizer"].param_groups] == [0.1, 0]
    if recipe.stem == "schedule":
        torch_rate = names["scheduler"].get_last_lr()[0]
        rates = names["client"].evaluate_schedule(names["schedule"], lr=1e-3, count=4)[
            "lrs"
        ]
        assert np.isclose(rates[3], torch_rate, rtol=1e-9)
        assert np.isclose(names["result"].lr, rates[2], rtol=1e-6)
    if recipe.stem == "torch-checkpoint":
        steps = [slots["step"] for slots in names["adamw"].state.values()]
        assert steps == [4, 4]
    if recipe.stem == "mixed-precision":
        assert names["master"].dtype == torch.float32
