"""Tests that shared memory gives the same bytes as TCP, even if replies are lost."""

from __future__ import annotations

import asyncio
import copy
import gc
import itertools
import os
import pathlib
import pickle
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Server
from proxy import Proxy, read_request

import stepd
import stepd.torch
from stepd._shared import Place
from stepd._tensors import Array

TOKEN = "not-a-secret-but-long-enough-for-one"
QUICK = stepd.Retry(attempts=2, first=0.01)
Arrays = dict[str, Array]


@pytest.fixture(scope="module")
def root() -> Iterator[pathlib.Path]:
    memory = pathlib.Path("/dev/shm")
    path = pathlib.Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
    (path / "trainer").mkdir()
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def sharing(root: pathlib.Path) -> Iterator[Server]:
    with Server(STEPD_SHARED_DIR=str(root)) as running:
        yield running


@pytest.fixture
def folder(root: pathlib.Path) -> Iterator[pathlib.Path]:
    yield root
    gc.collect()
    assert left(root) == []


def left(folder: pathlib.Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.is_file()]


def tensors(seed: int, dtype: Any = np.float32, size: int = 30_000) -> Arrays:
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "b": (7,),
        "w": (3, size),
        "e": (0,),
        "v": (5_000,),
        "s": (),
    }
    return {
        name: np.asarray(rng.standard_normal(shape)).astype(dtype)
        for name, shape in shapes.items()
    }


def options_of(folder: pathlib.Path) -> list[dict[str, Any]]:
    """Return the options of a TCP client, and of a client with shared memory."""
    return [{}, {"shared_dir": folder}]


def same(one: Any, other: Any) -> bool:
    return list(one.params) == list(other.params) and all(
        one.params[name].dtype == other.params[name].dtype
        and one.params[name].tobytes() == other.params[name].tobytes()
        for name in one.params
    )


def agree(one: stepd.StepResult, other: stepd.StepResult) -> bool:
    return same(one, other) and one.state.to_bytes() == other.state.to_bytes()


def steps(client: Any, optimizer: Any, dtype: Any, count: int = 4) -> list[Any]:
    """Take steps, and keep all of their results."""
    results: list[Any] = []
    params, state = tensors(1, dtype), None
    for seed in range(count):
        result = client.step(optimizer, params, tensors(seed, dtype), state)
        params, state = result.params, result.state
        results.append(result)
    return results


class Blocking:
    """An AsyncClient with its own event loop. Tests call it like a Client."""

    def __init__(self, *given: Any, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = stepd.AsyncClient(*given, **options)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: Any) -> None:
        self._loop.run_until_complete(self._client.close())
        self._loop.close()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        return lambda *given, **options: self._loop.run_until_complete(
            method(*given, **options)
        )


both = pytest.mark.parametrize("kind", [stepd.Client, Blocking], ids=["sync", "async"])


@both
@pytest.mark.parametrize("dtype", [np.float16, stepd.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb"])
def test_same_bytes(
    kind: Any, dtype: Any, name: str, sharing: Server, folder: pathlib.Path
) -> None:
    optimizer = {"name": name, "lr": 0.01} | (
        {"momentum": 0.9} if name == "sgd" else {}
    )
    with stepd.Client(sharing.url) as plain:
        expected = steps(plain, optimizer, dtype)
    with kind(sharing.url, shared_dir=folder) as client:
        results = steps(client, optimizer, dtype)
        assert left(folder)
    # The results stay valid, although the folder is empty now.
    assert left(folder) == []
    assert all(map(agree, results, expected))


class Sent:
    """A record of a call that does not keep the memory of the call alive."""

    def __init__(self, call: Any) -> None:
        self.nbytes: int = call.nbytes
        self.files = {
            key: place["file"]
            for key, place in call.kept_alive.items()
            if isinstance(place, Place)
        }
        found = re.findall(rb"stepd-[0-9a-f]{32}", bytes(call.body[0]))
        self.written = {name.decode() for name in found} - set(self.files.values())


def sent(client: stepd.Client) -> list[Sent]:
    """Record all further calls."""
    calls: list[Sent] = []
    send = client._transport.send

    def spy(call: Any, *limits: Any) -> Any:
        calls.append(Sent(call))
        return send(call, *limits)

    client._transport.send = spy  # type: ignore[assignment]
    return calls


def test_only_missing_blobs_are_copied(sharing: Server, folder: pathlib.Path) -> None:
    adamw = {"name": "adamw"}
    with stepd.Client(sharing.url, shared_dir=folder) as client:
        calls = sent(client)
        result = client.step(adamw, tensors(1), tensors(2))
        files = set()
        for seed in range(8):
            result = client.step(adamw, result.params, tensors(seed), result.state)
            files |= set(left(folder))
            assert calls[-1].nbytes < 1000
        for last, call in itertools.pairwise(calls[1:]):
            # The call sends the file to which the last call's result was written.
            assert {call.files["params"], call.files["state"]} == last.written
        # There are at most two files each for parameters and state, and one for
        # gradients.
        assert len(files) <= 6
        # The same parameters in another order need another file.
        turned = dict(reversed(result.params.items()))
        one = client.step(adamw, turned, tensors(9), result.state)
        assert calls[-1].files["params"] not in calls[-2].written
        assert calls[-1].files["state"] in calls[-2].written
        other = client.step(adamw, result.params, tensors(9), result.state)
        assert one.state == other.state
        # A new array for one tensor needs another file too.
        result.params["v"] = result.params["v"] + 1
        expected = result.params["v"].copy()
        stepped = client.step(adamw, result.params, {}, result.state)
        assert calls[-1].files["params"] not in {*calls[-4].written, *calls[-3].written}
        assert np.array_equal(stepped.params["v"], expected)


@both
def test_changes_are_sent_and_change_nothing_else(
    kind: Any, sharing: Server, folder: pathlib.Path
) -> None:
    adamw = {"name": "adamw"}
    with (
        kind(sharing.url, shared_dir=folder) as client,
        stepd.Client(sharing.url) as plain,
    ):
        first = client.step(adamw, tensors(1), tensors(2))
        mirror = plain.step(adamw, tensors(1), tensors(2))
        second = client.step(adamw, first.params, tensors(3), first.state)
        kept = plain.step(adamw, mirror.params, tensors(3), mirror.state)
        for result in (first, mirror):
            result.params["w"][1] = 5
            result.params["b"] = np.full(7, 3, np.float32)
        assert agree(second, kept)
        third = client.step(adamw, first.params, tensors(4), first.state)
        assert agree(third, plain.step(adamw, mirror.params, tensors(4), mirror.state))
        # Only a view of one row keeps this result alive.
        row = third.params["w"][2, 5:9]
        value = row.copy()
        del first, third
        for seed in range(4):
            second = client.step(adamw, second.params, tensors(seed), second.state)
        assert np.array_equal(row, value)
        row[:] = 0
    assert not row.any()


def test_a_state_that_grows(sharing: Server, folder: pathlib.Path) -> None:
    results = []
    for options in options_of(folder):
        with stepd.Client(sharing.url, **options) as client:
            # The next optimizer adds momentum, so that the state grows.
            first = client.step({"name": "rmsprop"}, tensors(1), tensors(2))
            calls = sent(client)
            optimizer = {"name": "rmsprop", "momentum": 0.9}
            late = client.step(optimizer, first.params, tensors(3), first.state)
            results.append((late, len(calls)))
            again = client.step(optimizer, late.params, tensors(3), late.state)
            assert again.step == 3
    (plain, once), (grown, twice) = results
    assert agree(plain, grown)
    assert (once, twice) == (1, 2)


def drop_reply(url: str, then: Callable[[], None] = lambda: None) -> Any:
    """Return a fault that lets the server run the call, and drops the reply."""

    def fault(connection: socket.socket) -> None:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as upstream:
            upstream.sendall(read_request(connection))
            assert upstream.recv(65536).startswith(b"HTTP/1.1 200")
        then()

    return fault


@both
def test_a_lost_reply(kind: Any, sharing: Server, folder: pathlib.Path) -> None:
    adamw = {"name": "adamw"}
    with stepd.Client(sharing.url) as plain:
        expected = steps(plain, adamw, np.float32)
    faults = [drop_reply(sharing.url), drop_reply(sharing.url)]
    with (
        Proxy(sharing.url, faults) as proxy,
        kind(proxy.url, shared_dir=folder, retries=QUICK) as client,
    ):
        results = steps(client, adamw, np.float32, 1)
        for seed in range(1, 4):
            # Each step uses a new connection, whose first replies are lost.
            params, state = results[-1].params, results[-1].state
            before = {name: array.copy() for name, array in params.items()}
            results.append(client.step(adamw, params, tensors(seed), state))
            assert all(np.array_equal(before[name], params[name]) for name in params)
        assert proxy.connections > 2
    assert all(map(agree, results, expected))


def test_late_writer_does_no_harm(sharing: Server, folder: pathlib.Path) -> None:
    """A server whose reply was lost still writes, after the next steps."""
    adamw = {"name": "adamw"}
    requests: list[bytes] = []

    def lose(connection: socket.socket) -> None:
        requests.append(read_request(connection))

    with (
        Proxy(sharing.url, []) as proxy,
        stepd.Client(proxy.url, shared_dir=folder, retries=QUICK) as client,
    ):
        first = client.step(adamw, tensors(1), tensors(2))
        client._transport.close()
        proxy.faults.append(lose)
        second = client.step(adamw, first.params, tensors(3), first.state)
        del first
        third = client.step(adamw, second.params, tensors(4), second.state)
        del second
        fourth = client.step(adamw, third.params, tensors(5), third.state)
        file = fourth.state.to_bytes()
        names = set(left(folder))
        host, port = sharing.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as late:
            late.sendall(requests[0])
            late.recv(65536)
        assert fourth.state.to_bytes() == file
        # The folder no longer has the files to which the server would write.
        places = requests[0].split(b"into")[1]
        into = re.findall(rb"stepd-[0-9a-f]{32}", places)[:2]
        assert len(into) == 2 and not names & {name.decode() for name in into}


@both
def test_all_methods(kind: Any, sharing: Server, folder: pathlib.Path) -> None:
    adamw = {"name": "adamw"}
    found = []
    for options in options_of(folder):
        with kind(sharing.url, **options) as client:
            state = client.init(adamw, tensors(1))
            norms = client.norms(tensors(2), tensors(1))
            target = {"format": "torch", "names": list(tensors(1))}
            torch_state = client.convert(state, target=target)
            bytes_of = bytes(torch_state.file)
            found.append((state, norms, bytes_of, client.inspect(state)))
            with pytest.raises(stepd.NonFiniteGradient):
                client.step(adamw, tensors(1), {"w": np.full((3, 30_000), np.inf)})
            skipped = client.step(
                adamw,
                tensors(1),
                {"w": np.full((3, 30_000), np.inf)},
                state,
                non_finite="skip",
            )
            assert skipped.skipped and skipped.state == state
    assert found[0] == found[1]


def test_tokens(root: pathlib.Path, folder: pathlib.Path) -> None:
    tokens = root / "tokens.txt"
    tokens.write_text(f"trainer {TOKEN}\n")
    own = folder / "trainer"
    settings = {"STEPD_SHARED_DIR": str(root), "STEPD_TOKENS_FILE": str(tokens)}
    with Server(**settings) as server:
        results = []
        for options in options_of(own):
            with stepd.Client(server.url, TOKEN, **options) as client:
                results.append(steps(client, {"name": "adamw"}, np.float32))
        assert all(map(agree, *results))
        with (
            stepd.Client(server.url, TOKEN, shared_dir=folder) as client,
            pytest.raises(stepd.InvalidParams, match="none of that name"),
        ):
            client.step({"name": "adamw"}, tensors(1), tensors(1))
    tokens.unlink()
    assert left(own) == []


def test_server_without_a_shared_folder(server: Server, folder: pathlib.Path) -> None:
    with stepd.Client(server.url, shared_dir=folder) as client:
        with pytest.raises(stepd.InvalidParams, match="shares no folder"):
            client.step({"name": "adamw"}, tensors(1), tensors(1))
        # Small calls go over the connection.
        small = {"w": np.ones(9, np.float32)}
        assert client.step({"name": "adamw"}, small, small).step == 1


@pytest.mark.parametrize("kind", [stepd.Client, stepd.AsyncClient])
def test_invalid_folder(kind: Any, tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError, match="shared_dir: expected a folder"):
        kind("http://127.0.0.1:1", shared_dir=tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="shared_dir: expected a folder"):
        kind("http://127.0.0.1:1", shared_dir=tmp_path / "file")
    with pytest.raises(ValueError, match="http"):
        kind("ftp://x", shared_dir=tmp_path)


def test_a_full_folder(
    sharing: Server, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with stepd.Client(sharing.url, shared_dir=folder) as client:
        monkeypatch.setattr(os, "posix_fallocate", full)
        with pytest.raises(OSError, match="has no room for"):
            client.step({"name": "adamw"}, tensors(1), tensors(1))
        assert left(folder) == []


def test_files_are_private(sharing: Server, folder: pathlib.Path) -> None:
    with stepd.Client(sharing.url, shared_dir=folder) as client:
        client.step({"name": "adamw"}, tensors(1), tensors(1))
        for name in left(folder):
            assert re.fullmatch(r"stepd-[0-9a-f]{32}", name)
            assert (folder / name).stat().st_mode & 0o117 == 0


@pytest.mark.parametrize(
    "twin",
    [copy.copy, copy.deepcopy, lambda given: pickle.loads(pickle.dumps(given))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_copies_have_their_own_files(
    twin: Any, sharing: Server, folder: pathlib.Path
) -> None:
    adamw = {"name": "adamw"}
    with stepd.Client(sharing.url, shared_dir=folder) as client:
        result = client.step(adamw, tensors(1), tensors(2))
        copied = twin(client)
        before = set(left(folder))
        again = copied.step(adamw, result.params, tensors(3), result.state)
        assert set(left(folder)) > before
        assert agree(again, client.step(adamw, result.params, tensors(3), result.state))
        copied.close()
        pickled = pickle.loads(pickle.dumps(result))
        assert agree(pickled, result)
    assert agree(pickled, result)


SCRIPT = """
import os, sys
import numpy as np, stepd
client = stepd.Client(sys.argv[1], shared_dir=sys.argv[2])
w = {"w": np.ones(50_000, np.float32)}
result = client.step({"name": "adamw"}, w, w)
files = sorted(os.listdir(sys.argv[2]))
assert files
child = os.fork()
if child == 0:
    # The forked child opens its own files and connections.
    again = client.step({"name": "adamw"}, result.params, w, result.state)
    assert again.step == 2
    assert not sorted(os.listdir(sys.argv[2])) == files
    client.close()
    sys.exit()
assert os.waitpid(child, 0)[1] == 0
assert sorted(os.listdir(sys.argv[2])) == files
kept = result.params["w"].copy()
again = client.step({"name": "adamw"}, result.params, w, result.state)
assert again.step == 2
assert (result.params["w"] == kept).all()
"""


def test_the_end_of_a_process_and_a_fork(sharing: Server, folder: pathlib.Path) -> None:
    subprocess.run([sys.executable, "-c", SCRIPT, sharing.url, str(folder)], check=True)
    assert left(folder) == []


def test_unreachable_client(sharing: Server, folder: pathlib.Path) -> None:
    client = stepd.Client(sharing.url, shared_dir=folder)
    result = client.step({"name": "adamw"}, tensors(1), tensors(2))
    client._transport.close()
    del client
    gc.collect()
    value = result.params["w"].copy()
    assert np.array_equal(value, result.params["w"])
    del result
    gc.collect()
    assert left(folder) == []


def test_shards(sharing: Server, folder: pathlib.Path) -> None:
    with stepd.Client(sharing.url) as plain:
        expected = steps(plain, {"name": "adamw"}, np.float32)
    urls = [sharing.url, sharing.url]
    with stepd.ShardedClient(urls, shared_dir=folder, request_bytes=1) as client:
        assert all(map(agree, steps(client, {"name": "adamw"}, np.float32), expected))
        assert left(folder)


def test_torch(sharing: Server, folder: pathlib.Path) -> None:
    found = []
    for options in options_of(folder):
        with stepd.Client(sharing.url, **options) as client:
            torch.manual_seed(1)
            model = torch.nn.Linear(300, 200)
            optimizer = stepd.torch.RemoteOptimizer(model.parameters(), client)
            calls = sent(client)
            for _ in range(4):
                optimizer.zero_grad()
                model(torch.ones(2, 300)).square().mean().backward()
                optimizer.step()
            if options:
                # The state is sent from its own file, without a copy.
                assert calls[-1].files["state"] in calls[-2].written
            found.append([p.detach().clone() for p in model.parameters()])
    assert all(map(torch.equal, *found))
