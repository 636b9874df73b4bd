"""What a step costs in this client: python bench.py [URL], with a running server.

Prints for each size the milliseconds of a step, and of a bare socket that sends the
same request and receives the same reply, each the least of several.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import numpy as np

import stepd
from stepd._calls import step as step_call

SIZES = (2**18, 2**22, 2**24)
RUNS = 7
ADAMW = {"name": "adamw"}


def least(run: Callable[[], object]) -> float:
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080"
    parts = urlsplit(url)
    client = stepd.Client(url)
    bare = socket.create_connection((parts.hostname or "", parts.port or 80))
    print("   bytes in       bare       sync      async   (ms)")
    for size in SIZES:
        params = {"w": np.ones(size, np.float32)}
        state = client.step(ADAMW, params, params).state
        call = step_call(ADAMW, params, params, state, {})
        head = (
            f"POST {call.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
            "Content-Type: application/vnd.msgpack\r\n"
            f"Content-Length: {call.nbytes}\r\n\r\n"
        ).encode()
        into = memoryview(bytearray(call.nbytes + 65536))

        def exchange(
            head: bytes = head,
            body: list[memoryview] = call.body,
            into: memoryview = into,
        ) -> None:
            bare.sendall(head)
            for part in body:
                bare.sendall(part)
            filled = bare.recv_into(into)
            split = bytes(into[:4096]).index(b"\r\n\r\n") + 4
            headers = bytes(into[:split]).lower()
            _, _, length = headers.partition(b"content-length: ")
            total = split + int(length.split(b"\r\n")[0])
            while filled < total:
                filled += bare.recv_into(into[filled:])

        async def asynchronous(
            params: dict[str, np.ndarray] = params, state: stepd.State = state
        ) -> float:
            async with stepd.AsyncClient(url) as one:
                times = []
                for _ in range(RUNS):
                    start = time.perf_counter()
                    await one.step(ADAMW, params, params, state)
                    times.append(time.perf_counter() - start)
                return 1000 * min(times)

        def synchronous(
            params: dict[str, np.ndarray] = params, state: stepd.State = state
        ) -> stepd.StepResult:
            return client.step(ADAMW, params, params, state)

        row = (least(exchange), least(synchronous), asyncio.run(asynchronous()))
        print(f"{call.nbytes:11d}", *(f"{value:10.1f}" for value in row))


if __name__ == "__main__":
    main()
