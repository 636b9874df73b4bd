"""Train a character transformer by DiLoCo: local AdamW steps, outer steps by stepd.

Each worker is a process with its own part of the text. After some local steps it sends
the coordinator its delta (local minus global parameters). The coordinator has stepd
average the deltas and take a Nesterov step, and keeps parameters, state and round in
one file, so that it can be killed at any time. DDP trains the same model on the same
batches for comparison.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import multiprocessing
import os
import pathlib
import pickle
import queue
import secrets
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Client as connect
from multiprocessing.connection import Connection, Listener
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch
from torch import nn

import stepd

Arrays = dict[str, np.ndarray]

OUTER: dict[str, Any] = {"name": "sgd", "lr": 0.7, "momentum": 0.9, "nesterov": True}
INNER: dict[str, Any] = {"lr": 3e-3, "weight_decay": 0.01}
CHARACTERS, CONTEXT, WIDTH, BATCH = 128, 32, 32, 8
HELD_OUT = 20_000
#: A process that does not answer for so many seconds is lost.
PATIENCE = 60

# torch is imported once, and its processes are forks.
fork = multiprocessing.get_context("fork")


class Transformer(nn.Module):
    """Predict the next character."""

    def __init__(self) -> None:
        super().__init__()
        self.characters = nn.Embedding(CHARACTERS, WIDTH)
        self.places = nn.Embedding(CONTEXT, WIDTH)
        layer = nn.TransformerEncoderLayer(
            WIDTH, 4, 4 * WIDTH, dropout=0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, CHARACTERS)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(CONTEXT)
        x = self.characters(text) + self.places.weight
        scores: torch.Tensor = self.head(self.layers(x, mask=mask, is_causal=True))
        return scores


def load_torch() -> None:
    """Have torch load what it loads at the first step, which the forks then share."""
    torch.set_num_threads(1)
    model = make_model()
    loss_of(model, batch(0, 1, 0)).backward()
    torch.optim.AdamW(model.parameters()).step()


def make_model() -> Transformer:
    torch.manual_seed(0)
    return Transformer()


@functools.cache
def text() -> torch.Tensor:
    """Return the reference of the Python language, which Python itself contains."""
    joined = "\n".join(topics[name] for name in sorted(topics))
    return torch.tensor(list(joined.encode("ascii", "replace")))


def loss_of(model: Any, rows: torch.Tensor) -> Any:
    scores = model(rows[:, :-1])
    return nn.functional.cross_entropy(scores.flatten(0, 1), rows[:, 1:].flatten())


def batch(worker: int, workers: int, step: int) -> torch.Tensor:
    """Return the batch of a worker's step, from its own part of the text."""
    own = text()[:-HELD_OUT].chunk(workers)[worker]
    rng = np.random.default_rng([worker, step])
    starts = rng.integers(0, len(own) - CONTEXT, BATCH)
    return torch.stack([own[start : start + CONTEXT + 1] for start in starts])


@torch.no_grad()
def held_out_loss(model: Any) -> float:
    rows = text()[-HELD_OUT:].unfold(0, CONTEXT + 1, CONTEXT)
    return float(loss_of(model, rows))


def arrays_of(model: nn.Module) -> Arrays:
    return {name: p.detach().numpy().copy() for name, p in model.named_parameters()}


@torch.no_grad()
def load(model: nn.Module, arrays: Arrays) -> None:
    own = dict(model.named_parameters())
    for name, array in arrays.items():
        own[name].copy_(torch.from_numpy(array))


def fragment(params: Arrays, number: int, count: int) -> Arrays:
    """Return the parameters that the exchange of that number steps."""
    names = sorted(params)[number % count :: count]
    return {name: params[name] for name in names}


class Run:
    """The coordinator's parameters, states, round and members, in one file."""

    def __init__(self, folder: pathlib.Path, options: argparse.Namespace) -> None:
        self.path = folder / "run.pickle"
        self.params = arrays_of(make_model())
        #: The state of each fragment.
        self.states: dict[int, stepd.State] = {}
        self.round = 0
        self.members = list(range(options.workers))
        #: torch's momentum buffers, for the comparison.
        self.buffers: Arrays = {}
        if self.path.exists():
            kept = pickle.loads(self.path.read_bytes())
            self.params, files, self.round, self.members, self.buffers = kept
            self.states = {key: stepd.State(file) for key, file in files.items()}

    @property
    def files(self) -> dict[int, bytes]:
        return {key: state.to_bytes() for key, state in sorted(self.states.items())}

    def save(self) -> None:
        """Replace the file atomically."""
        kept = (self.params, self.files, self.round, self.members, self.buffers)
        partial = self.path.with_suffix(".partial")
        with partial.open("wb") as file:
            file.write(pickle.dumps(kept))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.path)

    def digest(self) -> str:
        digest = hashlib.sha256()
        for name in sorted(self.params):
            digest.update(self.params[name].tobytes())
        for file in self.files.values():
            digest.update(file)
        return digest.hexdigest()


def compare(run: Run, before: Arrays, grads: Arrays, state: stepd.State) -> None:
    """Take the outer step with torch, and compare its buffers and parameters."""
    for name, array in before.items():
        param = nn.Parameter(torch.from_numpy(array.copy()))
        settings = {key: value for key, value in OUTER.items() if key != "name"}
        optimizer = torch.optim.SGD([param], **settings)
        if name in run.buffers:
            kept = torch.from_numpy(run.buffers[name].copy())
            optimizer.state[param]["momentum_buffer"] = kept
        param.grad = torch.from_numpy(grads[name].copy())
        optimizer.step()
        run.buffers[name] = optimizer.state[param]["momentum_buffer"].numpy()
        mine = state[f"momentum_buffer/{name}"]
        if run.buffers[name].tobytes() != mine.tobytes():
            raise SystemExit(f"{name}: the momentum buffer differs from torch's")
        np.testing.assert_allclose(
            run.params[name], param.detach().numpy(), rtol=1e-6, atol=1e-7
        )


def outer_step(
    client: stepd.Client, run: Run, deltas: list[Arrays], fragments: int
) -> None:
    key = run.round % fragments
    before = fragment(run.params, run.round, fragments)
    # The deltas are in the order of the workers' ids, so the step can be repeated.
    updates = [stepd.Update(delta) for delta in deltas]
    reduce: Any = {"form": "deltas", "updates": updates}
    result = client.step(OUTER, before, None, run.states.get(key), reduce=reduce)
    run.params.update({name: array.copy() for name, array in result.params.items()})
    run.states[key] = stepd.State(result.state.to_bytes())
    grads = client.reduce(updates, form="deltas").grads
    compare(run, before, grads, run.states[key])


def listen(listener: Listener, events: queue.Queue[Any]) -> None:
    """Put the messages of all workers into the queue."""

    def receive(connection: Connection) -> None:
        worker = None
        try:
            while True:
                worker, *message = connection.recv()
                events.put((worker, connection, message))
        except (EOFError, OSError):
            events.put((worker, connection, None))

    while True:
        with contextlib.suppress(
            OSError, EOFError, multiprocessing.AuthenticationError
        ):
            connection = listener.accept()
            threading.Thread(target=receive, args=(connection,), daemon=True).start()


def coordinate(folder: pathlib.Path, options: argparse.Namespace, key: bytes) -> None:
    """Take an outer step in each round in which every member has sent its delta."""
    torch.set_num_threads(1)
    run = Run(folder, options)
    if run.round:
        print(f"coordinator resumed after round {run.round}", flush=True)
    events: queue.Queue[Any] = queue.Queue()
    listener = Listener(("127.0.0.1", 0), authkey=key)
    threading.Thread(target=listen, args=(listener, events), daemon=True).start()
    partial = folder / "address.partial"
    partial.write_text(str(listener.address[1]))
    partial.replace(folder / "address")
    connections: dict[int, Connection] = {}
    deltas: dict[int, Arrays] = {}

    def lose(worker: int) -> None:
        run.members.remove(worker)
        deltas.pop(worker, None)
        left = len(run.members)
        print(
            f"worker {worker} lost in round {run.round + 1}, {left} go on", flush=True
        )

    with stepd.Client(os.environ["STEPD_URL"]) as client:
        while run.round < options.rounds:
            try:
                worker, connection, message = events.get(timeout=PATIENCE)
            except queue.Empty:
                for worker in set(run.members) - deltas.keys():
                    lose(worker)
            else:
                if message is None:
                    if worker in run.members and connections[worker] is connection:
                        lose(worker)
                elif worker in run.members:
                    connections[worker] = connection
                    number, delta = message
                    if delta is None:
                        connection.send((run.round, run.params))
                    elif number < run.round:
                        # The coordinator was killed before it could reply.
                        stepped = fragment(run.params, number, options.fragments)
                        connection.send((number + 1, stepped))
                    else:
                        deltas[worker] = delta
            if not run.members:
                raise SystemExit("every worker is lost")
            if deltas.keys() != set(run.members):
                continue
            ordered = [deltas[worker] for worker in sorted(deltas)]
            outer_step(client, run, ordered, options.fragments)
            stepped = fragment(run.params, run.round, options.fragments)
            run.round += 1
            run.save()
            if run.round == options.kill_coordinator:
                os.kill(os.getpid(), signal.SIGKILL)
            deltas.clear()
            for worker in run.members:
                connections[worker].send((run.round, stepped))


class Exchange:
    """A worker's connection, which outlives the coordinator's process."""

    def __init__(self, folder: pathlib.Path, key: bytes, worker: int) -> None:
        self._folder, self._key, self._worker = folder, key, worker
        self._connection: Connection | None = None
        self.sent = 0

    def __call__(self, number: int, delta: Arrays | None) -> tuple[int, Arrays]:
        message = pickle.dumps((self._worker, number, delta))
        end = time.monotonic() + PATIENCE
        while True:
            try:
                if self._connection is None:
                    port = int((self._folder / "address").read_text())
                    self._connection = connect(("127.0.0.1", port), authkey=self._key)
                self._connection.send_bytes(message)
                self.sent += len(message)
                reply: tuple[int, Arrays] = self._connection.recv()
                return reply
            except (EOFError, OSError):
                self._connection = None
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)


def work(
    worker: int, folder: pathlib.Path, options: argparse.Namespace, key: bytes
) -> None:
    """Take local steps, exchange a fragment, and so on."""
    torch.set_num_threads(1)
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), **INNER)
    exchange = Exchange(folder, key, worker)
    number, start = exchange(-1, None)
    load(model, start)
    steps = options.local_steps // options.fragments
    while number < options.rounds:
        if (worker, number + 1) == options.kill_worker:
            os.kill(os.getpid(), signal.SIGKILL)
        for step in range(number * steps, (number + 1) * steps):
            optimizer.zero_grad()
            loss_of(model, batch(worker, options.workers, step)).backward()
            optimizer.step()
        local = fragment(arrays_of(model), number, options.fragments)
        delta = {name: array - start[name] for name, array in local.items()}
        number, stepped = exchange(number, delta)
        start.update(stepped)
        load(model, stepped)
    (folder / f"bytes-{worker}").write_text(str(exchange.sent))


def work_in_step(
    worker: int, folder: pathlib.Path, options: argparse.Namespace
) -> None:
    """Train by DDP, which averages the gradients of every step."""
    torch.set_num_threads(1)
    distributed: Any = torch.distributed
    store = distributed.FileStore(str(folder / "store"), options.workers)
    distributed.init_process_group(
        "gloo", store=store, rank=worker, world_size=options.workers
    )
    model = nn.parallel.DistributedDataParallel(make_model())
    sent = 0

    def average(_: Any, bucket: Any) -> Any:
        nonlocal sent
        sent += bucket.buffer().nbytes
        total = bucket.buffer().div_(options.workers)
        work = distributed.all_reduce(total, async_op=True)
        return work.get_future().then(lambda done: done.value()[0])

    # DistributedDataParallel compares annotations with types, and these are strings.
    average.__annotations__.clear()
    model.register_comm_hook(None, average)
    optimizer = torch.optim.AdamW(model.parameters(), **INNER)
    for step in range(options.rounds * (options.local_steps // options.fragments)):
        optimizer.zero_grad()
        loss_of(model, batch(worker, options.workers, step)).backward()
        optimizer.step()
    if worker == 0:
        result = (sent, held_out_loss(model.module))
        (folder / "synchronous").write_bytes(pickle.dumps(result))
    distributed.destroy_process_group()


@contextlib.contextmanager
def started(target: Any, arguments: list[tuple[Any, ...]]) -> Iterator[list[Any]]:
    """Start processes, and end those that are left."""
    processes = [fork.Process(target=target, args=own) for own in arguments]
    for process in processes:
        process.start()
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.join()


def train(folder: pathlib.Path, options: argparse.Namespace) -> Run:
    """Run coordinator and workers. A killed coordinator is started again."""
    key = secrets.token_bytes(16)
    workers = [(worker, folder, options, key) for worker in range(options.workers)]
    with started(work, workers) as processes:
        while True:
            with started(coordinate, [(folder, options, key)]) as [coordinator]:
                coordinator.join()
            if coordinator.exitcode != -signal.SIGKILL:
                break
            print("coordinator killed", flush=True)
        if coordinator.exitcode != 0:
            raise SystemExit("the coordinator failed")
        for process in processes:
            process.join(PATIENCE)
    return Run(folder, options)


def pair(given: str) -> tuple[int, int]:
    worker, number = given.split("@")
    return int(worker), int(number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--local-steps", type=int, default=20, metavar="H")
    parser.add_argument("--fragments", type=int, default=1, help="stepped by turns")
    parser.add_argument("--kill-worker", type=pair, metavar="WORKER@ROUND")
    parser.add_argument("--kill-coordinator", type=int, metavar="ROUND")
    parser.add_argument("--no-ddp", action="store_true", help="no comparison with DDP")
    options = parser.parse_args()
    if options.local_steps % options.fragments:
        parser.error("--local-steps: expected a multiple of --fragments")
    load_torch()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        run = train(folder, options)
        print("momentum buffers equal torch's bit for bit")
        print(f"sha256 of parameters and states {run.digest()}")
        model = make_model()
        print(f"loss before {held_out_loss(model):.3f}")
        load(model, run.params)
        sent = int((folder / "bytes-0").read_text())
        print(f"DiLoCo loss {held_out_loss(model):.3f} bytes {sent}")
        if not options.no_ddp:
            workers = [(worker, folder, options) for worker in range(options.workers)]
            with started(work_in_step, workers) as processes:
                for process in processes:
                    process.join()
            sent, loss = pickle.loads((folder / "synchronous").read_bytes())
            print(f"DDP loss {loss:.3f} bytes {sent}")


if __name__ == "__main__":
    main()
