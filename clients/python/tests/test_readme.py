"""Every example of README.md runs."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import pytest
from conftest import Server

README = pathlib.Path(__file__).parents[1] / "README.md"


def test_examples(
    server: Server, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) > 5
    namespace: dict[str, Any] = {}
    for block in blocks:
        code = block.replace("http://127.0.0.1:8080", server.url)
        exec(compile(code, str(README), "exec"), namespace)
    namespace["client"].close()
