"""A proxy that breaks some connections on purpose."""

from __future__ import annotations

import re
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlsplit

Fault = Callable[[socket.socket], None]


class Proxy:
    """Breaks the first connections, one with each of ``faults``. Pipes all others.

    A test may append to ``faults`` later.

    With a TLS context, callers connect by https://.
    """

    def __init__(
        self, url: str, faults: Iterable[Fault], tls: ssl.SSLContext | None = None
    ) -> None:
        parts = urlsplit(url)
        target = (parts.hostname or "", parts.port or 80)
        self.faults = list(faults)
        self.connections = 0
        proxy = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                proxy.connections += 1
                if tls is not None:
                    try:
                        self.request.do_handshake()
                    except OSError:
                        return
                if proxy.faults:
                    proxy.faults.pop(0)(self.request)
                    return
                with socket.create_connection(target) as upstream:
                    back = threading.Thread(target=pipe, args=(upstream, self.request))
                    back.start()
                    pipe(self.request, upstream)
                    back.join()

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True

            def get_request(self) -> tuple[socket.socket, Any]:
                connection, address = super().get_request()
                if tls is not None:
                    connection = tls.wrap_socket(
                        connection, server_side=True, do_handshake_on_connect=False
                    )
                return connection, address

        self._server = Server(("127.0.0.1", 0), Handler)
        scheme = "http" if tls is None else "https"
        self.url = f"{scheme}://localhost:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def pipe(source: socket.socket, target: socket.socket) -> None:
    try:
        while chunk := source.recv(65536):
            target.sendall(chunk)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def hang_up(connection: socket.socket) -> None:
    """Close the connection before the first byte of the reply."""
    connection.recv(1)


def never_reply(connection: socket.socket) -> None:
    """Read everything, and send nothing until the caller has closed the connection."""
    while connection.recv(65536):
        pass


def cut(connection: socket.socket) -> None:
    """Close the connection in the middle of a reply."""
    connection.recv(65536)
    connection.sendall(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.msgpack\r\n"
        b"Content-Length: 1000\r\n\r\n\x82\xa6params\xc6\0\0\1\0half of it"
    )


def read_request(connection: socket.socket) -> bytes:
    """Read a whole request. Closing with unread bytes would cut the reply."""
    request = b""
    while b"\r\n\r\n" not in request:
        request += connection.recv(65536)
    head, _, body = request.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
    while length and len(body) < int(length[1]):
        body += connection.recv(65536)
    return head + body


def answer(status: str, body: bytes = b"", *headers: str) -> Fault:
    """Return a fault that reads the request, answers, and closes the connection."""

    def fault(connection: socket.socket) -> None:
        read_request(connection)
        reply(connection, status, body, *headers)

    return fault


def reply(
    connection: socket.socket, status: str, body: bytes = b"", *headers: str
) -> None:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    connection.sendall("\r\n".join([*head, "", ""]).encode() + body)
