"""Tests ledgers: their lines and blobs, torn lines, changed arrays, parts of a step."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import pathlib
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from conftest import Server

import stepd
from stepd import Ledger

ADAMW = {"name": "adamw", "lr": 0.01}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[stepd.Client]:
    with stepd.Client(server.url) as client:
        yield client


def arrays(seed: int) -> dict[str, stepd._tensors.Array]:
    values = np.random.default_rng(seed)
    shapes = {"w": (4, 8), "b": (8,)}
    return {
        name: values.standard_normal(shape, dtype=np.float32)
        for name, shape in shapes.items()
    }


def run(client: stepd.Client, ledger: Ledger, steps: int) -> stepd.StepResult:
    params, state = arrays(0), None
    for step in range(steps):
        grads = arrays(step + 1)
        result = client.step(ADAMW, params, grads, state, ledger=ledger)
        params, state = result.params, result.state
    return result


def lines(path: pathlib.Path) -> list[Any]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_steps_chain_and_gradients_are_kept(
    client: stepd.Client, tmp_path: pathlib.Path
) -> None:
    path, blobs = tmp_path / "run.jsonl", tmp_path / "blobs"
    with Ledger(path, blobs=blobs) as ledger:
        run(client, ledger, 3)
    first, second, third = lines(path)
    for before, after in ((first, second), (second, third)):
        expected = {key: before["outputs"][key] for key in ("params", "state")}
        assert expected.items() <= after["inputs"].items()
    kept = {file.stem for file in blobs.iterdir()}
    assert kept == {first["inputs"]["params"]} | {
        line["inputs"]["grads"] for line in (first, second, third)
    }
    for file in blobs.iterdir():
        assert hashlib.sha256(file.read_bytes()).hexdigest() == file.stem


def test_every_keeps_the_inputs_of_some_steps(
    client: stepd.Client, tmp_path: pathlib.Path
) -> None:
    path, blobs = tmp_path / "run.jsonl", tmp_path / "blobs"
    with Ledger(path, blobs=blobs, every=2) as ledger:
        run(client, ledger, 4)
    kept = {file.stem for file in blobs.iterdir()}
    has_all = [set(line["inputs"].values()) <= kept for line in lines(path)]
    assert has_all == [True, False, True, False]


def test_a_torn_line_is_removed(client: stepd.Client, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "run.jsonl"
    with Ledger(path) as ledger:
        run(client, ledger, 2)
        assert ledger.torn_bytes == 0
    whole = path.read_bytes()
    with path.open("ab") as file:
        file.write(whole[:40])
    with Ledger(path) as ledger:
        assert ledger.torn_bytes == 40
        run(client, ledger, 1)
    assert path.read_bytes().startswith(whole)
    assert len(lines(path)) == 3


def test_a_ledger_survives_a_kill_at_any_moment(
    server: Server, tmp_path: pathlib.Path
) -> None:
    script = """
        import sys, stepd, numpy as np
        client, ledger = stepd.Client(sys.argv[1]), stepd.Ledger(sys.argv[2])
        params, state = {"w": np.zeros(3, np.float32)}, None
        while True:
            grads = {"w": np.ones(3, np.float32)}
            result = client.step({"name": "adam"}, params, grads, state, receipt=True)
            ledger.append(result)
            params, state = result.params, result.state
            print(result.step, flush=True)
    """
    path = tmp_path / "run.jsonl"
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script), server.url, str(path)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        acknowledged = [int(process.stdout.readline()) for _ in range(20)]
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert acknowledged[-1] == 20
        with Ledger(path):
            pass
        steps = [line["step"] for line in lines(path)]
        assert steps.count(20) == steps.count(1)


def test_changed_arrays_are_refused(
    client: stepd.Client, tmp_path: pathlib.Path
) -> None:
    path, blobs = tmp_path / "run.jsonl", tmp_path / "blobs"
    with Ledger(path, blobs=blobs) as ledger:
        large = {"w": np.ones(4096, np.float32)}
        grads = {"w": np.ones(4096, np.float32)}
        result = client.step(ADAMW, large, grads, receipt=True)
        grads["w"][5] = 2
        with pytest.raises(ValueError, match=r"grads: .*changed since the step"):
            ledger.append(result)
    assert path.read_bytes() == b""
    assert not [file for file in blobs.iterdir() if file.suffix != ".safetensors"]


def test_refusals(client: stepd.Client, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "run.jsonl"
    with Ledger(path) as ledger:
        with pytest.raises(ValueError, match="receipt=True"):
            ledger.append(client.step(ADAMW, arrays(0), arrays(1)))
        if sys.platform != "win32":
            with pytest.raises(BlockingIOError, match="another Ledger"):
                Ledger(path)
    with pytest.raises(ValueError, match="keep"):
        Ledger(path, keep=["gradients"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="every"):
        Ledger(path, every=0)


def test_the_parts_of_a_sharded_step_are_one_line(
    server: Server, tmp_path: pathlib.Path
) -> None:
    path, blobs = tmp_path / "run.jsonl", tmp_path / "blobs"
    with (
        stepd.ShardedClient([server.url], request_bytes=200) as client,
        Ledger(path, blobs=blobs) as ledger,
    ):
        params = arrays(0)
        state = client.init(ADAMW, params)
        for step in range(2):
            result = client.step(
                ADAMW,
                params,
                arrays(step + 1),
                state,
                clip={"max_norm": 0.5},
                ledger=ledger,
            )
            params, state = result.params, result.state
    for line in lines(path):
        assert [receipt["part"] for receipt in line] == [
            {"index": 0, "count": 2},
            {"index": 1, "count": 2},
        ]


def test_an_async_client_writes_ledgers(server: Server, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "run.jsonl"

    async def step() -> None:
        async with stepd.AsyncClient(server.url) as client:
            await client.step(ADAMW, arrays(0), arrays(1), ledger=ledger)

    with Ledger(path) as ledger:
        asyncio.run(step())
    assert [line["step"] for line in lines(path)] == [1]


@pytest.mark.parametrize("resident", [False, True])
def test_a_torch_optimizer_writes_ledgers(
    tmp_path: pathlib.Path, resident: bool
) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "run.jsonl"
    weight = torch.nn.Parameter(torch.ones(3, 4))
    with (
        Server(STEPD_CACHE_MIB="16") as server,
        stepd.Client(server.url) as client,
        Ledger(path, blobs=tmp_path / "blobs") as ledger,
    ):
        optimizer = stepd.torch.RemoteOptimizer(
            [weight], client, "adamw", resident=resident, ledger=ledger
        )
        for _ in range(3):
            (weight * weight).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    written = lines(path)
    assert [line["step"] for line in written] == [1, 2, 3]
    for before, after in itertools.pairwise(written):
        expected = {key: before["outputs"][key] for key in ("params", "state")}
        assert expected.items() <= after["inputs"].items()
