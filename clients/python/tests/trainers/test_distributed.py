"""Tests DDP, ZeRO, FSDP2, tensor parallel and checkpoints in two processes."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from typing import Any

import pytest
import torch
from conftest import Server
from twins import assert_close, assert_equal
from two_processes import CASES

FOLDER = pathlib.Path(__file__).parent

Found = list[dict[str, Any]]


@pytest.fixture(scope="module")
def results(server: Server, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("processes")
    script = str(FOLDER / "two_processes.py")
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-W",
                "ignore",
                script,
                str(rank),
                server.url,
                str(folder),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in processes:
            output, _ = process.communicate(timeout=480)
            print(output)
            if process.returncode:
                break
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return folder


@pytest.fixture
def found(results: pathlib.Path, request: pytest.FixtureRequest) -> Found:
    """Return the results that both processes have saved."""
    case = request.node.name.removeprefix("test_")
    both = []
    for rank in range(2):
        path = results / f"{case}.{rank}.pt"
        assert path.exists(), f"process {rank} did not come to {case}"
        both.append(torch.load(path, weights_only=False))
    errors = [one["error"] for one in both if "error" in one]
    assert not errors, "\n".join(errors)
    return both


def agree(found: Found, one: str, other: str, **tolerance: float) -> None:
    for each in found:
        assert_close(each[one], each[other], **tolerance)
    # Both processes have bit-identical weights.
    assert_equal(found[0][one], found[1][one])


def test_data_parallel(found: Found) -> None:
    agree(found, "mine", "theirs")


def test_overlap(found: Found) -> None:
    agree(found, "mine", "theirs", rtol=0, atol=0)


def test_zero(found: Found) -> None:
    agree(found, "mine", "theirs")


def test_fully_sharded(found: Found) -> None:
    agree(found, "mine", "theirs")
    # A step of shards has the same bits as a step of whole tensors.
    agree(found, "mine", "single", rtol=0, atol=0)
    for each in found:
        assert torch.equal(each["slot"], each["single_slot"])
        assert each["placements"] == each["expected_placements"]


def test_other_placements(found: Found) -> None:
    agree(found, "mine", "single", rtol=0, atol=0)


def test_mixed_precision(found: Found) -> None:
    # A difference in the last bit of a weight may round to another bfloat16.
    agree(found, "mine", "theirs", rtol=1e-2, atol=1e-3)


def test_tensor_parallel(found: Found) -> None:
    agree(found, "mine", "theirs")


def test_checkpoint(found: Found) -> None:
    agree(found, "resumed", "straight", rtol=0, atol=0)
    assert found[0]["lr"] == 1e-2


def test_checkpoint_of_torch(found: Found) -> None:
    agree(found, "mine", "theirs")
    mine, theirs = found[0]["my_moments"], found[0]["their_moments"]
    assert {"step", "exp_avg", "exp_avg_sq"} <= mine.keys()
    assert mine["step"] == theirs["step"] == 6
    torch.testing.assert_close(mine["exp_avg"], theirs["exp_avg"], rtol=1e-4, atol=1e-6)


def test_refusals(found: Found) -> None:
    for each in found:
        sentences = each["sentences"]
        assert set(sentences) == {
            *("lamb", "lars", "muon", "adafactor", "caution"),
            *("clip", "stats", "skip", "later", "slot"),
        }
        assert "clip_grad_norm_" in sentences["clip"]
        assert sentences["later"] == sentences["clip"]
        assert "expected a DTensor" in sentences["slot"]
        assert_equal(each["before"], each["after"])


def test_every_case_has_a_test() -> None:
    assert {f"test_{case.__name__}" for case in CASES} <= globals().keys()
