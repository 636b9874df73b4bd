"""Tests that every example of README.md runs."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import pytest
from conftest import Server

README = pathlib.Path(__file__).parents[1] / "README.md"


def test_examples(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    with Server(STEPD_SHARED_DIR=str(folder), STEPD_CACHE_MIB="16") as server:
        run(server.url, folder, tmp_path, monkeypatch)
    assert list(folder.iterdir()) == []


def run(
    url: str,
    folder: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) > 5
    namespace: dict[str, Any] = {}
    for block in blocks:
        code = block.replace("http://127.0.0.1:8080", url)
        code = code.replace("/dev/shm/stepd", str(folder))
        exec(compile(code, str(README), "exec"), namespace)
    namespace["client"].close()
