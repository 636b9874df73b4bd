"""Tests the scripts that run the tests and the examples."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from typing import Any

import pytest
from conftest import ROOT, Server

import stepd

FOLDER = ROOT / "clients/python"
PRINT_URL = "import os; print(os.environ['STEPD_URL'])"


def run(script: str, *arguments: str, **settings: str) -> Any:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("STEPD_")}
    return subprocess.run(
        [FOLDER / script, *arguments],
        env=environment | settings,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_with_server_starts_one_and_stops_it() -> None:
    code = (
        "import os, stepd; url = os.environ['STEPD_URL']\n"
        "with stepd.Client(url) as client: print(url, client.ready())"
    )
    ended = run("with-server", sys.executable, "-c", code)
    assert ended.returncode == 0, ended.stderr
    url, ready = ended.stdout.split()
    assert ready == "True"
    with stepd.Client(url, retries=0) as client, pytest.raises(stepd.ConnectError):
        client.info()


def test_with_server_uses_an_existing_server(server: Server) -> None:
    ended = run("with-server", sys.executable, "-c", PRINT_URL, STEPD_URL=server.url)
    assert ended.stdout.strip() == server.url


def test_with_server_returns_the_exit_code(server: Server) -> None:
    failing = (sys.executable, "-c", "raise SystemExit(7)")
    assert run("with-server", *failing, STEPD_URL=server.url).returncode == 7
    assert "expected a command" in run("with-server").stderr


def test_package_includes_the_licence() -> None:
    package = importlib.metadata.distribution("stepd")
    assert package.metadata["License-Expression"] == "Apache-2.0"
    assert package.metadata.get_all("License-File") == ["LICENSE"]
    assert package.read_text("licenses/LICENSE") == (ROOT / "LICENSE").read_text()


def test_environment_explains_failures() -> None:
    ended = run("environment", "/nowhere/requirements.txt")
    assert ended.returncode == 1 and ended.stdout == ""
    assert "/nowhere/requirements.txt" in ended.stderr
