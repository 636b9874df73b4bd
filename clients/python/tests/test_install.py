"""Tests that the READMEs' install commands work unchanged in a checkout."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys
import sysconfig

import pytest
from conftest import ROOT

#: One use of each extra.
USES = {
    "": "stepd.Client",
    "async": "stepd.AsyncClient",
    "bfloat16": "__import__('ml_dtypes')",
    "torch": "__import__('stepd.torch')",
    "optax": "__import__('stepd.optax')",
}


def commands(readme: pathlib.Path) -> list[str]:
    return re.findall(r"^(?:With `)?(pip install [^#`\n]+)", readme.read_text(), re.M)


def in_environment(folder: pathlib.Path, command: str, **more: str) -> str:
    """Run a command in the root, with the environment's bin first in the path."""
    # pip works offline, and finds the packages in the tests' own environment.
    settings = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0"} | more
    ended = subprocess.run(
        command,
        shell=True,
        cwd=ROOT,
        env=os.environ | settings | {"PATH": f"{folder}/bin:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, f"{command}\n{ended.stdout}{ended.stderr}"
    assert "does not provide the extra" not in ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Return an empty environment that can import the tests' own packages."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "tests.pth").write_text(sysconfig.get_path("purelib"))
    return folder


def test_client_install_commands(environment: pathlib.Path) -> None:
    extras = []
    for command in commands(ROOT / "clients/python/README.md"):
        found = re.fullmatch(
            r'pip install "?./clients/python(?:\[(\w+)\])?"?', command.strip()
        )
        assert found is not None, command
        extras.append(found[1] or "")
        # The torch of the tests lacks some of its dependencies (overrides.txt).
        settings = {"PIP_NO_DEPS": "1"} if extras[-1] == "torch" else {}
        in_environment(environment, command, **settings)
        use = f"import stepd; {USES[extras[-1]]}; print(stepd.__file__)"
        installed = in_environment(environment, f'python -c "{use}"')
        assert installed.startswith(str(environment)), command
    assert extras == list(USES)


def test_install_commands_of_other_pages(environment: pathlib.Path) -> None:
    (command,) = commands(ROOT / "docs/wire-format.md")
    in_environment(environment, command)
    # The commands of the repository's README run in a folder beside the checkout.
    (environment / "stepd").symlink_to(ROOT)
    (environment / "trainer").mkdir()
    torch, optax = commands(ROOT / "README.md")
    # The pages of torch and JAX have the commands of the client's README.
    of_client = commands(ROOT / "clients/python/README.md")
    for page, extra in (("torch", "torch"), ("jax", "optax")):
        (command,) = commands(ROOT / f"docs/{page}.md")
        assert any(line.startswith(command) and extra in line for line in of_client)
    for command, use in ((torch, USES["torch"]), (optax, USES["optax"])):
        in_environment(
            environment, f"cd {environment}/trainer && {command}", PIP_NO_DEPS="1"
        )
        in_environment(environment, f'python -c "{use}"')
