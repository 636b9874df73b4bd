"""Times the Python client of stepd on command: client.py URL

Reads one command per line and answers each command with one line. `prepare ELEMENTS`
returns "ok". `bare REPETITIONS`, `Client REPETITIONS` and `AsyncClient REPETITIONS`
return the milliseconds of a step, as the mean of REPETITIONS steps in a row. `bare` is
a socket that sends the same request and receives the reply into one buffer without
reading the buffer.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, cast
from urllib.parse import urlsplit

import numpy as np

import stepd
from stepd._calls import step as step_call

ADAMW = {"name": "adamw"}
# The header of a reply has at most this many bytes.
HEAD_BYTES = 4096

Arrays = dict[str, np.ndarray[Any, np.dtype[np.float32]]]


class BareSocket:
    """Sends the client's request over a raw socket. Reuses one buffer for replies."""

    def __init__(
        self, url: str, params: Arrays, grads: Arrays, state: stepd.State
    ) -> None:
        parts = urlsplit(url)
        address = (parts.hostname or "", parts.port or 80)
        self.socket = socket.create_connection(address)
        call = step_call(ADAMW, params, grads, state, {})
        self.body = call.body
        self.head = (
            f"POST {call.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
            "Content-Type: application/vnd.msgpack\r\n"
            f"Content-Length: {call.nbytes}\r\n\r\n"
        ).encode()
        self.into = memoryview(bytearray(call.nbytes + 65536))

    def exchange(self) -> None:
        self.socket.sendall(self.head)
        for part in self.body:
            self.socket.sendall(part)
        filled = 0
        while (
            end := bytes(self.into[: min(filled, HEAD_BYTES)]).find(b"\r\n\r\n")
        ) < 0:
            filled += self.socket.recv_into(self.into[filled:])
        headers = bytes(self.into[:end]).lower()
        if not headers.startswith(b"http/1.1 200 "):
            raise RuntimeError(f"the server said {headers!r}")
        _, _, length = headers.partition(b"content-length: ")
        total = end + 4 + int(length.split(b"\r\n")[0])
        while filled < total:
            filled += self.socket.recv_into(self.into[filled:])


async def mean(
    step: Callable[[], object], asynchronous: bool, repetitions: int
) -> float:
    start = time.perf_counter()
    for _ in range(repetitions):
        result = step()
        if asynchronous:
            await cast("Awaitable[object]", result)
    return 1000 * (time.perf_counter() - start) / repetitions


def values(elements: int, seed: int) -> Arrays:
    """Return random values. None is subnormal: subnormal arithmetic is slow."""
    generator = np.random.default_rng(seed)
    return {"w": generator.uniform(0.25, 1, elements).astype(np.float32)}


async def main(url: str) -> None:
    print("ready", flush=True)
    client = stepd.Client(url)
    async with stepd.AsyncClient(url) as async_client:
        steps: dict[str, Callable[[], object]] = {}
        for line in sys.stdin:
            command, number = line.split()
            if command != "prepare":
                is_async = command == "AsyncClient"
                elapsed = await mean(steps[command], is_async, int(number))
                print(elapsed, flush=True)
                continue
            params, grads = values(int(number), 1), values(int(number), 2)
            state = client.step(ADAMW, params, grads).state
            steps = {
                "bare": BareSocket(url, params, grads, state).exchange,
                "Client": partial(client.step, ADAMW, params, grads, state),
                "AsyncClient": partial(async_client.step, ADAMW, params, grads, state),
            }
            print("ok", flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
