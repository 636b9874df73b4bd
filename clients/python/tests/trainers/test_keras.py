"""Trains with stepd.keras on the three backends of Keras, each in its own process."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest
from conftest import Server

PROCESS = pathlib.Path(__file__).with_name("keras_process.py")
BACKENDS = ["torch", "jax", "tensorflow"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_trains_as_keras_does(
    server: Server, tmp_path: pathlib.Path, backend: str
) -> None:
    # Keras chooses its backend at import, so each backend needs a process.
    environment = {
        **os.environ,
        "KERAS_BACKEND": backend,
        "KERAS_HOME": str(tmp_path),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "",
        "STEPD_URL": server.url,
    }
    ended = subprocess.run(
        [sys.executable, PROCESS, tmp_path],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr[-6000:]
    assert ended.stdout.splitlines()[-1] == f"{backend}: all checks passed"
