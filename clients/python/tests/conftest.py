"""Real servers for the tests, started on free ports and killed at the end."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from types import TracebackType

import pytest

import stepd

ROOT = pathlib.Path(__file__).parents[3]
NODE = ROOT / "node_modules/.bin/node"


class Server:
    """A stepd process. ``url`` is set once the server listens."""

    def __init__(self, **settings: str) -> None:
        own = {"STEPD_PORT": "0", "STEPD_ARENA_MIB": "256", "STEPD_LOG_LEVEL": "warn"}
        # Many tests start a server, so the servers share a cache of compiled sources.
        cache = {"NODE_COMPILE_CACHE": str(ROOT / "build/compile-cache")}
        environment = {"PATH": os.environ["PATH"], **cache, **own, **settings}
        self.process = subprocess.Popen(
            [NODE, ROOT / "src/main.ts"],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        log = ""
        for line in self.process.stderr:
            _, found, rest = line.partition(" listens on ")
            if found:
                address, _, _ = rest.partition('"')
                self.url = address.replace("unix:", "unix://")
                return
            log += line
        raise RuntimeError(f"the server did not start: {log}")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    subprocess.run([NODE, ROOT / "scripts/build-kernels.ts"], check=True)
    with Server() as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[stepd.Client]:
    with stepd.Client(server.url) as connected:
        yield connected


if sys.platform == "win32":
    raise RuntimeError("the tests need Unix sockets and signals")
