"""Times steps and echoes of the same bytes on command: link.py URL ECHO_HOST ECHO_PORT

Reads one command per line and answers each command with one line. `prepare ELEMENTS`
returns "ok", `bytes NAME` the bytes up and down of a step, and `NAME REPETITIONS` the
milliseconds of a step, as the mean of REPETITIONS steps in a row. `cpu NAME
REPETITIONS` is this process's own processor time instead.

`bare` sends the bytes of the step `sent` with sendmsg, and receives the reply into its
final place with recv_into. `echoed+NAME+CONNECTIONS` does the same with the bytes of
the step NAME and an echo server, in parts over several connections. `trained
trained+HOW+BATCH REPETITIONS` times backward alone, with a step after it, and with an
overlapping step; `batch` finds the batch whose backward takes as long as a step.
"""

from __future__ import annotations

import queue
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch

import stepd
from stepd._calls import step as step_call
from stepd._tensors import bfloat16
from stepd.torch import RemoteOptimizer

ADAMW = {"name": "adamw"}

# The header of a reply has at most this many bytes.
HEAD_BYTES = 4096

# The least bytes of a part in an echo over several connections.
PART_BYTES = 2 * 2**20

# The model of `backward` has this many layers, and each is a bucket.
LAYERS = 8


def receive(connection: socket.socket, into: memoryview) -> None:
    """Receive a reply whose body has the size of ``into``."""
    head = bytearray(HEAD_BYTES)
    filled = 0
    while (end := head.find(b"\r\n\r\n", 0, filled)) < 0:
        filled += connection.recv_into(memoryview(head)[filled:])
    if not head.startswith(b"HTTP/1.1 200 "):
        raise RuntimeError(f"the server said {bytes(head[:filled])!r}")
    body = filled - end - 4
    into[:body] = head[end + 4 : filled]
    while body < into.nbytes:
        body += connection.recv_into(into[body:])


def head_of(path: str, host: str, length: int) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\n"
        f"Content-Type: application/vnd.msgpack\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def send(connection: socket.socket, parts: list[memoryview]) -> None:
    """Send all parts with as few calls as the socket allows."""
    while parts:
        sent = connection.sendmsg(parts)
        while parts and sent >= parts[0].nbytes:
            sent -= parts.pop(0).nbytes
        if sent:
            parts[0] = parts[0][sent:]


class Echo:
    """Moves bytes up and down in equal parts, over several connections at once."""

    def __init__(self, address: tuple[str, int], up: int, down: int, number: int):
        self.sockets = [socket.create_connection(address) for _ in range(number)]
        count = 1 if number == 1 else max(number, up // PART_BYTES)
        self.source = memoryview(bytearray(up))
        self.target = memoryview(bytearray(down))
        self.parts = [
            (slice(up * i // count, up * (i + 1) // count),
             slice(down * i // count, down * (i + 1) // count))
            for i in range(count)
        ]  # fmt: skip

    def exchange(self) -> None:
        left: queue.SimpleQueue[tuple[slice, slice]] = queue.SimpleQueue()
        for part in self.parts:
            left.put(part)

        def work(connection: socket.socket) -> None:
            while True:
                try:
                    up, down = left.get_nowait()
                except queue.Empty:
                    return
                source, target = self.source[up], self.target[down]
                head = head_of(f"/echo/{target.nbytes}", "echo", source.nbytes)
                send(connection, [memoryview(head), source])
                receive(connection, target)

        if len(self.sockets) == 1:
            work(self.sockets[0])
            return
        threads = [threading.Thread(target=work, args=[one]) for one in self.sockets]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


class Run:
    """The contenders, by name, for one number of parameters."""

    def __init__(self, url: str, echo: tuple[str, int], elements: int) -> None:
        self.url = url
        self.echo = echo
        self.elements = elements
        self.client = stepd.Client(url)
        self.narrow: Callable[[], stepd.Client] = one_connection(url)
        random = np.random.default_rng(1)
        # No value is subnormal: subnormal arithmetic is slow.
        self.params = {"w": random.uniform(0.25, 1, elements).astype(np.float32)}
        self.grads = {"w": random.uniform(0.25, 1, elements).astype(np.float32)}
        bits = (self.grads["w"].view(np.uint32) >> 16).astype(np.uint16)
        self.half = {"w": bits.view(bfloat16)}
        self.steps: dict[str, Callable[[], object]] = {}

    def contender(self, name: str) -> Callable[[], object]:
        if name not in self.steps:
            kind, *more = name.split("+")
            self.steps[name] = getattr(self, kind)(*more)
        return self.steps[name]

    def sent(self, state_dtype: str = "F32") -> Callable[[], object]:
        """Send and receive everything, with moments in a format."""
        optimizer = {**ADAMW, "state_dtype": state_dtype}
        state = self.client.step(optimizer, self.params, self.grads).state
        return lambda: self.client.step(optimizer, self.params, self.grads, state)

    def resident(self, how: str = "many", form: str = "f32") -> Callable[[], object]:
        """Send gradients, and receive parameters: the rest stays on the server."""
        client = self.narrow() if how == "one" else self.client
        reply: Any = {"state": "none", "cache": True}
        grads: Any = self.grads
        if form == "bf16":
            reply["params"] = "bf16"
            grads = self.half
        cached = client.step(ADAMW, self.params, grads, reply=reply).cached

        def step() -> None:
            nonlocal cached
            cached = client.step(ADAMW, None, grads, cached=cached, reply=reply).cached

        return step

    def bare(self) -> Callable[[], object]:
        """Send the bytes of a step, and receive those of its reply."""
        state = self.client.step(ADAMW, self.params, self.grads).state
        call = step_call(ADAMW, self.params, self.grads, state, {})
        parts = urlsplit(self.url)
        connection = socket.create_connection((parts.hostname or "", parts.port or 80))
        head = memoryview(head_of(call.path, parts.netloc, call.nbytes))
        send(connection, [head, *call.body])
        start = bytearray(HEAD_BYTES)
        count = connection.recv_into(start)
        found = bytes(start[:count]).lower().partition(b"content-length: ")[2]
        length = int(found.split(b"\r\n")[0])
        into = memoryview(bytearray(length))
        body = count - start.find(b"\r\n\r\n") - 4
        while body < length:
            body += connection.recv_into(into[body:])

        def exchange() -> None:
            send(connection, [head, *call.body])
            receive(connection, into)

        return exchange

    def echoed(self, name: str, connections: str) -> Callable[[], object]:
        up, down = self.bytes_of(name.replace("/", "+"))
        return Echo(self.echo, up, down, int(connections)).exchange

    def bytes_of(self, name: str) -> tuple[int, int]:
        """Return the bytes of arrays up and down. Headers take a few hundred more."""
        kind, *more = name.split("+")
        if kind == "resident":
            each = 2 if more[1:] == ["bf16"] else 4
            return each * self.elements, each * self.elements
        state = self.client.step(
            {**ADAMW, "state_dtype": more[0] if more else "F32"},
            self.params,
            self.grads,
        ).state
        size = state.nbytes + 4 * self.elements
        return size + 4 * self.elements, size

    def model(self, overlap: bool) -> Any:
        """Return a model of ``elements`` parameters in layers, and its optimizer."""
        torch.manual_seed(1)
        width = round((self.elements / LAYERS) ** 0.5)
        layers = [torch.nn.Linear(width, width, bias=False) for _ in range(LAYERS)]
        model = torch.nn.Sequential(*layers)
        bucket_mb = 4 * self.elements / LAYERS / 2**20 - 0.01
        return model, RemoteOptimizer(
            model.parameters(),
            self.client,
            resident=True,
            fetch_every=10**6,
            overlap=overlap,
            bucket_cap_mb=bucket_mb,
        )

    def trained(self, how: str, batch: str) -> Callable[[], float]:
        """Return backward, then a step, or both at once. Forward is not timed."""
        model, optimizer = self.model(how == "overlap")
        x = torch.randn(int(batch), model[0].in_features)

        def step() -> float:
            optimizer.zero_grad()
            loss = model(x).square().mean()
            start = time.perf_counter()
            loss.backward()
            if how != "backward":
                optimizer.step()
            return 1000 * (time.perf_counter() - start)

        for _ in range(3):
            step()
        return step

    def batch(self) -> int:
        """Return the batch whose backward takes as long as a step."""
        model, optimizer = self.model(overlap=False)

        def times(size: int) -> tuple[float, float]:
            x = torch.randn(size, model[0].in_features)
            times = []
            for _ in range(9):
                optimizer.zero_grad()
                loss = model(x).square().mean()
                start = time.perf_counter()
                loss.backward()
                middle = time.perf_counter()
                optimizer.step()
                times.append((middle - start, time.perf_counter() - middle))
            backward, step = np.median(times[2:], axis=0)
            return float(backward), float(step)

        # Repeated, because the time is not proportional to the size.
        size = 256
        for _ in range(3):
            backward, step = times(size)
            size = max(1, round(size * step / backward))
        return size


def one_connection(url: str) -> Callable[[], stepd.Client]:
    """Return a function that makes a client of one connection."""
    return lambda: stepd.Client(url, connections=1)


def main(url: str, echo: tuple[str, int]) -> None:
    # The other processor is for the client's threads.
    torch.set_num_threads(1)
    print("ready", flush=True)
    run: Run | None = None
    for line in sys.stdin:
        command, *words = line.split()
        if command == "prepare":
            run = Run(url, echo, int(words[0]))
            print("ok", flush=True)
            continue
        assert run is not None
        if command == "bytes":
            print(*run.bytes_of(words[0]), flush=True)
        elif command == "batch":
            print(run.batch(), flush=True)
        elif command == "trained":
            step: Any = run.contender(words[0])
            times = [step() for _ in range(int(words[1]))]
            print(sum(times) / len(times), flush=True)
        else:
            is_own = command == "cpu"
            name, repetitions = words if is_own else (command, words[0])
            clock = time.process_time if is_own else time.perf_counter
            contender = run.contender(name)
            start = clock()
            for _ in range(int(repetitions)):
                contender()
            print(1000 * (clock() - start) / int(repetitions), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], (sys.argv[2], int(sys.argv[3])))
