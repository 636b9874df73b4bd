"""Tests failing and slow connections, TLS and Unix sockets, with both clients."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import json
import pathlib
import pickle
import socket
import ssl
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any

import msgpack
import numpy as np
import pytest
from conftest import Server
from proxy import Proxy, answer, cut, hang_up, never_reply, read_request, reply

import stepd

ADAMW = {"name": "adamw"}
W = {"w": np.ones(40_000, np.float32)}
QUICK = stepd.Retry(attempts=4, first=0.01)

Run = Callable[..., Any]


def run_sync(url: str, method: str, *given: Any, **options: Any) -> Any:
    with stepd.Client(url, **options) as client:
        return getattr(client, method)(*given)


def run_async(url: str, method: str, *given: Any, **options: Any) -> Any:
    async def run() -> Any:
        async with stepd.AsyncClient(url, **options) as client:
            return await getattr(client, method)(*given)

    return asyncio.run(run())


both = pytest.mark.parametrize("run", [run_sync, run_async], ids=["sync", "async"])


@both
@pytest.mark.parametrize(
    "fault",
    [
        hang_up,
        cut,
        never_reply,
        answer("502 Bad Gateway", b"<h1>no backend</h1>"),
        answer("503 Service Unavailable"),
        answer("200 OK", b"\xc1", "Content-Type: application/vnd.msgpack"),
    ],
    ids=["hang up", "cut", "never_reply", "502", "503", "nonsense"],
)
def test_retries(run: Run, fault: Any, server: Server) -> None:
    expected = run_sync(server.url, "step", ADAMW, W, W)
    with Proxy(server.url, [fault, fault]) as proxy:
        timeout = stepd.Timeout(connect=5, read=0.3)
        result = run(proxy.url, "step", ADAMW, W, W, retries=QUICK, timeout=timeout)
        assert proxy.connections == 3
    assert result.state == expected.state
    assert np.array_equal(result.params["w"], expected.params["w"])


PROBLEM = {
    "type": "urn:stepd:error:OVERLOADED",
    "title": "The server has no room for this call now",
    "status": 429,
    "detail": "full",
    "code": -32020,
    "name": "OVERLOADED",
    "retry_after": 1,
}


@both
def test_waits_for_retry_after(run: Run, server: Server) -> None:
    overloaded = answer("429 Too Many Requests", json.dumps(PROBLEM).encode())
    with Proxy(server.url, [overloaded]) as proxy:
        start = time.monotonic()
        assert run(proxy.url, "step", ADAMW, W, W, retries=QUICK).step == 1
        assert 1 <= time.monotonic() - start < 3
    with Proxy(server.url, [overloaded]) as proxy:
        with pytest.raises(stepd.Overloaded) as caught:
            run(proxy.url, "step", ADAMW, W, W, retries=0)
        assert caught.value.retry_after == 1
        assert proxy.connections == 1
    # A proxy sends this reply, with the wait in its header.
    busy = answer("503 Service Unavailable", b"busy", "Retry-After: 1")
    with Proxy(server.url, [busy]) as proxy:
        start = time.monotonic()
        assert run(proxy.url, "step", ADAMW, W, W, retries=QUICK).step == 1
        assert time.monotonic() - start >= 1


PAST = "Wed, 21 Oct 2015 07:28:00 GMT"


@both
@pytest.mark.parametrize("after", ["-5", "nan", "inf", "1_0", "soon", "", PAST])
def test_ignores_invalid_retry_after(run: Run, after: str, server: Server) -> None:
    busy = answer("503 Service Unavailable", b"busy", f"Retry-After: {after}")
    with Proxy(server.url, [busy]) as proxy:
        start = time.monotonic()
        assert run(proxy.url, "step", ADAMW, W, W, retries=QUICK).step == 1
        assert time.monotonic() - start < 5


@both
@pytest.mark.parametrize("after", ["-5", "NaN", "true"])
def test_ignores_invalid_retry_after_in_a_problem(
    run: Run, after: str, server: Server
) -> None:
    body = json.dumps(PROBLEM).replace('"retry_after": 1', f'"retry_after": {after}')
    with Proxy(server.url, [answer("429 X", body.encode())]) as proxy:
        assert run(proxy.url, "step", ADAMW, W, W, retries=QUICK).step == 1
    with Proxy(server.url, [answer("429 X", body.encode())]) as proxy:
        with pytest.raises(stepd.Overloaded) as caught:
            run(proxy.url, "step", ADAMW, W, W, retries=0)
        assert caught.value.retry_after is None


@both
def test_waits_until_the_retry_after_date(run: Run, server: Server) -> None:
    # HTTP dates have whole seconds.
    date = datetime.now(timezone.utc) + timedelta(seconds=2)
    after = format_datetime(date.replace(microsecond=0), usegmt=True)
    busy = answer("503 Service Unavailable", b"busy", f"Retry-After: {after}")
    with Proxy(server.url, [busy]) as proxy:
        start = time.monotonic()
        assert run(proxy.url, "step", ADAMW, W, W, retries=QUICK).step == 1
        assert 0.9 < time.monotonic() - start < 4


@both
def test_raises_the_last_error(run: Run, server: Server) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(stepd.ConnectError, match="not reached"):
            run(nowhere, "info", retries=0)
        assert run(nowhere, "ready", retries=0) is False
    timed_out = pytest.raises(stepd.TimeoutError, match="in time")
    with Proxy(server.url, [never_reply]) as proxy, timed_out:
        run(proxy.url, "step", ADAMW, W, W, retries=0, timeout=0.2)
    with Proxy(server.url, [answer("404 Not Found", b"nginx")]) as proxy:
        with pytest.raises(stepd.TransportError, match="nginx") as caught:
            run(proxy.url, "info")
        assert (caught.value.status, proxy.connections) == (404, 1)
    for error in (stepd.ConnectError("x"), stepd.TimeoutError("x")):
        assert isinstance(error, (stepd.TransportError, OSError))


def drip(head: bytes, body: bytes) -> Callable[[socket.socket], None]:
    """Return a fault that answers with ``head`` at once, then ``body`` byte by byte."""

    def fault(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(head)
        for byte in body:
            time.sleep(0.05)
            connection.sendall(bytes([byte]))

    return fault


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"
READY = json.dumps({"optimizers": ["x" * 200]}).encode()
PACKED = msgpack.packb({"optimizers": ["x" * 200], "state": bytes(3000)})


def read_slowly(connection: socket.socket) -> None:
    """Read a request in small pieces, and answer at its end."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    for _ in range(200):
        time.sleep(0.05)
        if not connection.recv(1000):
            return
    reply(connection, "200 OK", b"{}", "Content-Type: application/json")


@both
@pytest.mark.parametrize(
    "fault",
    [
        drip(HEAD % (b"application/json", len(READY)), READY),
        drip(HEAD % (b"application/vnd.msgpack", len(PACKED)), PACKED),
        drip(b"HTTP/1.1 200 OK\r\n", b"X: " + b"x" * 200 + b"\r\n\r\n"),
        drip(b"HTTP/1.1 503 Busy\r\nContent-Length: 200\r\n\r\n", b"x" * 200),
    ],
    ids=["json", "msgpack", "headers", "refusal"],
)
def test_dripping_reply_times_out(run: Run, fault: Any) -> None:
    late = pytest.raises(stepd.TimeoutError, match="in time")
    with Proxy("http://127.0.0.1:1", [fault]) as proxy, late:
        run(proxy.url, "optimizers", retries=0, timeout=0.5)


# asyncio closes a connection only after the peer has read all bytes.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@both
@pytest.mark.parametrize(
    "fault", [read_slowly, lambda _: time.sleep(5)], ids=["slow", "none"]
)
def test_stalled_upload_times_out(run: Run, fault: Any) -> None:
    large = {"w": np.ones(2**23, np.float32)}
    late = pytest.raises(stepd.TimeoutError, match="in time")
    with Proxy("http://127.0.0.1:1", [fault]) as proxy, late:
        run(proxy.url, "step", ADAMW, large, large, retries=0, timeout=0.5)
    gc.collect()


@both
def test_long_call_has_only_requested_limits(run: Run) -> None:
    body = json.dumps({"optimizers": []}).encode()
    fault = drip(HEAD % (b"application/json", len(body)), body)
    with Proxy("http://127.0.0.1:1", [fault]) as proxy:
        timeout = stepd.Timeout(read=1)
        assert run(proxy.url, "optimizers", retries=0, timeout=timeout) == []


def run_sharded(url: str, method: str, *given: Any, **options: Any) -> Any:
    with stepd.ShardedClient([url, url], request_bytes=1, **options) as client:
        return getattr(client, method)(*given)


all_three = pytest.mark.parametrize(
    "run", [run_sync, run_async, run_sharded], ids=["sync", "async", "sharded"]
)


@contextlib.contextmanager
def restarting(port: int, seconds: float) -> Iterator[None]:
    """Return a server that starts on the port after some seconds."""
    servers: list[Server] = []
    timer = threading.Timer(
        seconds, lambda: servers.append(Server(STEPD_PORT=str(port)))
    )
    timer.start()
    try:
        yield
    finally:
        timer.join()
        for started in servers:
            started.kill()


def unused_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port: int = unused.getsockname()[1]
        return port


@all_three
def test_waits_for_a_restarting_server(
    run: Run, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    port = unused_port()
    two = {**W, "b": W["w"]}
    with restarting(port, 1.5):
        result = run(f"http://127.0.0.1:{port}", "step", ADAMW, two, two)
    assert result.state == run_sync(server.url, "step", ADAMW, two, two).state
    refused = [one for one in caplog.records if "refuse" in one.getMessage()]
    assert refused and {one.name for one in refused} == {"stepd"}
    assert "trying again for 30 s" in refused[0].getMessage()


@all_three
@pytest.mark.parametrize(
    "options",
    [
        {"retries": 0},
        {"retries": stepd.Retry(attempts=9, refused=0.2)},
        {"timeout": stepd.Timeout(deadline=0.5)},
    ],
    ids=["none", "0.2 s", "deadline"],
)
def test_gives_up_an_address_where_nothing_listens(
    run: Run, options: dict[str, Any]
) -> None:
    start = time.monotonic()
    with pytest.raises(stepd.ConnectError) as caught:
        run(f"http://127.0.0.1:{unused_port()}", "step", ADAMW, W, W, **options)
    assert caught.value.refused
    assert time.monotonic() - start < 20


@all_three
def test_refused_connections_do_not_use_up_retries(run: Run, server: Server) -> None:
    faults = [hang_up] * 4
    with Proxy(server.url, faults) as proxy:
        with pytest.raises(stepd.ConnectError) as caught:
            run(proxy.url, "norms", W, retries=stepd.Retry(attempts=1, first=0.01))
        assert not caught.value.refused
        assert proxy.connections == (4 if run is run_sharded else 2)


@all_three
def test_deadline_limits_all_attempts(run: Run, server: Server) -> None:
    busy = answer("503 Service Unavailable", b"busy", "Retry-After: 3")
    with Proxy(server.url, [busy] * 8) as proxy:
        with pytest.raises(stepd.TransportError, match="busy"):
            run(proxy.url, "norms", W, timeout=stepd.Timeout(deadline=1))
        assert proxy.connections == (2 if run is run_sharded else 1)
    late = pytest.raises(stepd.TimeoutError)
    with Proxy(server.url, [never_reply] * 8) as proxy, late:
        run(proxy.url, "norms", W, timeout=stepd.Timeout(deadline=0.5))


@both
def test_reads_errors_in_messagepack(run: Run, server: Server) -> None:
    packed = msgpack.packb(PROBLEM)
    for kind in ("application/vnd.msgpack", "application/problem+json"):
        fault = answer("429 Too Many", packed, f"Content-Type: {kind}")
        with Proxy(server.url, [fault]) as proxy:
            with pytest.raises(stepd.Overloaded, match="full") as caught:
                run(proxy.url, "info", retries=0)
            assert caught.value.retry_after == 1
    strange = pytest.raises(stepd.TransportError, match="no reply of stepd")
    with Proxy(server.url, [answer("502 Bad", b"\x81\xa1a\x92")]) as proxy, strange:
        run(proxy.url, "info", retries=0)


@both
def test_does_not_retry_wrong_calls(run: Run, server: Server) -> None:
    with Proxy(server.url, []) as proxy:
        with pytest.raises(stepd.InvalidParams):
            run(proxy.url, "step", {"name": "adamw", "lr": -1}, W, W)
        assert proxy.connections == 1


@both
def test_all_methods_agree(run: Run, server: Server) -> None:
    state = run_sync(server.url, "init", ADAMW, W)
    schedule = {"name": "exponential", "gamma": 0.5}
    calls: list[tuple[str, tuple[Any, ...]]] = [
        ("init", (ADAMW, W)),
        ("norms", (W, W)),
        ("plan", (ADAMW, W)),
        ("inspect", (state,)),
        ("evaluate_schedule", (schedule,)),
        ("optimizers", ()),
        ("describe", ("lamb",)),
        ("info", ()),
        ("ready", ()),
    ]
    for method, given in calls:
        found = run(server.url, method, *given)
        assert found == run_sync(server.url, method, *given), method


@both
def test_unix_socket(run: Run, tmp_path: pathlib.Path) -> None:
    with Server(STEPD_SOCKET=str(tmp_path / "stepd.sock")) as server:
        assert server.url.startswith("unix:///")
        assert run(server.url, "step", ADAMW, W, W).step == 1
        with pytest.raises(stepd.ConnectError):
            run(f"unix://{tmp_path}/other.sock", "info", retries=0)


@both
def test_sends_the_token(run: Run) -> None:
    seen: list[bytes] = []

    def fault(connection: socket.socket) -> None:
        seen.append(read_request(connection))
        kind = "Content-Type: application/json"
        reply(connection, "200 OK", b'{"ready":true}', kind)

    with Proxy("http://127.0.0.1:1", [fault]) as proxy:
        assert run(f"{proxy.url}/below/", "ready", token="secret")
    assert b"\r\nAuthorization: Bearer secret" in seen[0]
    assert seen[0].startswith(b"GET /below/health/ready HTTP/1.1\r\n")


@both
def test_tls(run: Run, server: Server, tmp_path: pathlib.Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(
        [*make.split(), *names, "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    trusting = ssl.create_default_context(cafile=str(certificate))
    with Proxy(server.url, [], context) as proxy:
        assert run(proxy.url, "step", ADAMW, W, W, ssl_context=trusting).step == 1
        with pytest.raises(stepd.ConnectError, match=r"(?i)certificate"):
            run(proxy.url, "step", ADAMW, W, W, retries=0)


def test_closed_idle_connection_is_not_used(server: Server) -> None:
    with Proxy(server.url, []) as proxy:
        client = stepd.Client(proxy.url, retries=0)
        assert client.step(ADAMW, W, W).step == 1
        assert client.step(ADAMW, W, W).step == 1
        assert proxy.connections == 1
        (idle,) = client._transport._idle
        idle.sock.shutdown(socket.SHUT_RDWR)
        assert client.step(ADAMW, W, W).step == 1
        assert proxy.connections == 2
        client.close()


def test_a_call_that_outlives_its_client_leaves_no_connection(server: Server) -> None:
    client = stepd.Client(server.url)
    assert client.step(ADAMW, W, W).step == 1
    transport = client._transport
    connection = transport._take()
    assert connection is not None
    client.close()
    transport._return_idle(connection)
    assert connection.sock is None


@pytest.mark.parametrize("asked", [59, 60, 61, 1e12])
def test_waits_at_most_a_minute_that_a_server_asks_for(asked: float) -> None:
    error = stepd.StepdError("busy")
    pause = stepd.Retry().pause(0, error)
    assert pause is not None and 0.025 <= pause <= 0.05
    error.retry_after = asked  # type: ignore[attr-defined]
    pause = stepd.Retry().pause(0, error)
    assert pause is not None and 0.025 <= pause - min(asked, 60) <= 0.05 + 1e-9


def test_waits_of_its_own_grow_up_to_five_seconds() -> None:
    retry = stepd.Retry(attempts=100)
    pauses = [retry.pause(99, stepd.StepdError("lost")) or 0 for _ in range(200)]
    assert min(pauses) >= 2.5 and 4 < max(pauses) <= 5
    assert retry.pause(100, stepd.StepdError("lost")) is None


def test_overload_of_a_real_server() -> None:
    big = {"w": np.ones(1_000_000, np.float32)}
    # A server that has not stepped yet asks for a wait of 30 s.
    retry = stepd.Retry(attempts=100, longest_asked=0.1)
    server = Server(STEPD_ARENA_MIB="24")
    with server, stepd.Client(server.url, retries=retry) as client:
        with pytest.raises(stepd.PayloadTooLarge):
            client.step(ADAMW, {"w": np.ones(10_000_000, np.float32)}, {})
        threads = [
            threading.Thread(target=client.step, args=(ADAMW, big, big))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert client.step(ADAMW, big, big).step == 1


@pytest.mark.parametrize("url", ["127.0.0.1:80", "ftp://x", "http://", "unix://x/y"])
def test_refuses_other_urls(url: str) -> None:
    for kind in (stepd.Client, stepd.AsyncClient):
        with pytest.raises(ValueError, match="http"):
            kind(url)


PASSWORDS = [
    "http://user:hunter2@127.0.0.1:80",
    "http://hunter2@127.0.0.1",
    "https://user:hunter2@[::1",
    "http://user:hunter2/x@127.0.0.1",
    "http://user:x@hunter2@127.0.0.1",
    "ftp://user:hunter2@127.0.0.1",
    "user:hunter2@127.0.0.1",
]


@pytest.mark.parametrize("url", PASSWORDS)
def test_refuses_passwords_in_urls_without_repeating_them(url: str) -> None:
    for make in (
        stepd.Client,
        stepd.AsyncClient,
        lambda url: stepd.ShardedClient([url]),
    ):
        with pytest.raises(ValueError, match=r"\*\*\*@") as caught:
            make(url)
        assert "hunter2" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "token", ["secret\n", "secr\u20acet", "secr et", "\0secret", ""]
)
def test_refuses_tokens_that_a_header_cannot_hold(token: str) -> None:
    for make in (
        stepd.Client,
        stepd.AsyncClient,
        lambda url, token: stepd.ShardedClient([url], token),
    ):
        with pytest.raises(ValueError, match="token: expected visible") as caught:
            make("http://127.0.0.1:80", token)
        assert "secr" not in str(caught.value)


@pytest.mark.parametrize(
    "twin",
    [copy.copy, copy.deepcopy, lambda given: pickle.loads(pickle.dumps(given))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_copies_of_clients(twin: Any, server: Server) -> None:
    seen: list[bytes] = []

    def fault(connection: socket.socket) -> None:
        seen.append(read_request(connection))

    with Proxy(server.url, [fault]) as proxy:
        client = stepd.Client(proxy.url, "secret", retries=QUICK, pool_size=1)
        copied = twin(client)
        assert copied.step(ADAMW, W, W).step == 1
        assert b"Authorization: Bearer secret" in seen[0]
        assert len(copied._transport._idle) == 1 and not client._transport._idle
        copied.close()

    async def run() -> Any:
        async with twin(stepd.AsyncClient(server.url)) as client:
            return await client.step(ADAMW, W, W)

    assert asyncio.run(run()).step == 1
    with twin(stepd.ShardedClient([server.url], request_bytes=1)) as sharded:
        assert sharded.step(ADAMW, W, W).step == 1


# The event loop ends before the client is closed, and leaves sockets behind.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_an_async_client_outlives_its_loop(server: Server) -> None:
    client = stepd.AsyncClient(server.url)

    async def step() -> tuple[stepd.StepResult, int]:
        result = await client.step(ADAMW, W, W)
        return result, len(client._sessions)

    for _ in range(3):
        result, sessions = asyncio.run(step())
        assert (result.step, sessions) == (1, 1)

    async def close() -> None:
        await client.step(ADAMW, W, W)
        await client.close()

    asyncio.run(close())
    assert not client._sessions
    gc.collect()


def test_concurrent_async_steps(server: Server) -> None:
    async def run() -> list[stepd.StepResult]:
        async with stepd.AsyncClient(server.url, pool_size=3) as client:
            steps = [client.step(ADAMW, W, {"w": W["w"] * i}) for i in range(1, 9)]
            return await asyncio.gather(*steps)

    with stepd.Client(server.url) as client:
        for i, result in enumerate(asyncio.run(run()), 1):
            alone = client.step(ADAMW, W, {"w": W["w"] * i})
            assert alone.state == result.state
