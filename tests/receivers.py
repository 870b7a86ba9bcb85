"""Receivers on this machine that records are sent to: a web server and a small MQTT broker.

Both keep what they were sent, can be stopped and started again on the same port, and can be told
to misbehave. The broker speaks MQTT 3.1.1 as far as one publisher needs it.
"""

from __future__ import annotations

import json
import socket
import socketserver
import struct
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Record = dict[str, Any]


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    is_away = False


class WebReceiver:
    """A web server that takes POST requests."""

    def __init__(self) -> None:
        self.port = free_port()
        self.requests: list[tuple[dict[str, str], bytes]] = []
        """Headers and bodies of those that were answered with 200."""
        self.num_asked = 0
        self.answer: Callable[[Record], tuple[int, dict[str, str]]] = lambda _: (200, {})
        """Status and headers for a record."""
        self._server: _Server | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}/events?key=hush"

    @property
    def records(self) -> list[Record]:
        """What was taken, in its order."""
        return [json.loads(body) for _, body in self.requests]

    def start(self) -> WebReceiver:
        """Listen."""
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                # A connection that was there before stays open when nobody listens any more.
                if isinstance(self.server, _Server) and self.server.is_away:
                    self.close_connection = True
                    return
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.num_asked += 1
                status, headers = receiver.answer(json.loads(body))
                if status == 200:
                    receiver.requests.append((dict(self.headers), body))
                self.send_response(status)
                for name, value in {"Content-Length": "3", **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(b"ok\n")

            def log_message(self, format: str, *args: object) -> None:
                """Nothing."""

        self._server = _Server(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Be away."""
        server, self._server = self._server, None
        if server is not None:
            server.is_away = True
            server.shutdown()
            server.server_close()


class _Broker(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


class Broker:
    """An MQTT broker that keeps what is published."""

    def __init__(self) -> None:
        self.port = free_port()
        self.published: list[tuple[str, bytes]] = []
        """Topics and payloads, of those that it has acknowledged."""
        self.retained: dict[str, bytes] = {}
        self.credentials: list[tuple[str, str]] = []
        self.is_silent = False
        """Takes what is published and acknowledges nothing."""
        self.refuses = 0
        """The return code of CONNACK."""
        self._server: _Broker | None = None
        self._open: set[socket.socket] = set()

    @property
    def records(self) -> list[Record]:
        """What was published beside the status, in its order."""
        return [json.loads(payload) for topic, payload in self.published if topic[-7:] != "/status"]

    def start(self) -> Broker:
        """Listen."""
        broker = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                broker._open.add(self.request)
                try:
                    broker._serve(self.request)
                except (OSError, EOFError):
                    pass
                finally:
                    broker._open.discard(self.request)

        self._server = _Broker(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Be away, at once, as one that was killed."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
        for connection in list(self._open):
            connection.close() if connection.fileno() < 0 else connection.shutdown(socket.SHUT_RDWR)

    def _serve(self, connection: socket.socket) -> None:
        stream = connection.makefile("rb")
        will: tuple[str, bytes] | None = None
        try:
            while True:
                kind, content = _packet(stream)
                if kind >> 4 == 1:
                    will = self._connected(content)
                    connection.sendall(bytes([0x20, 2, 0, self.refuses]))
                    if self.refuses:
                        return
                elif kind >> 4 == 3:
                    assert kind >> 1 & 3 == 1, "quality of service 1 is what was asked for"
                    topic, rest = _text(content)
                    if self.is_silent:
                        continue
                    self.published.append((topic, rest[2:]))
                    if kind & 1:
                        self.retained[topic] = rest[2:]
                    connection.sendall(b"\x40\x02" + rest[:2])
                elif kind >> 4 == 12:
                    connection.sendall(b"\xd0\x00")
                elif kind >> 4 == 14:
                    will = None
                    return
        finally:
            if will is not None:
                self.retained[will[0]] = will[1]

    def _connected(self, content: bytes) -> tuple[str, bytes]:
        name, rest = _text(content)
        level, flags = rest[0], rest[1]
        assert (name, level) == ("MQTT", 4)
        _, rest = _text(rest[4:])
        topic, rest = _text(rest)
        size = struct.unpack(">H", rest[:2])[0]
        message, rest = rest[2 : 2 + size], rest[2 + size :]
        if flags & 0x80:
            user, rest = _text(rest)
            password, rest = _text(rest)
            self.credentials.append((user, password))
        return topic, message


def _packet(stream: Any) -> tuple[int, bytes]:
    kind = _exactly(stream, 1)[0]
    size = shift = 0
    while True:
        digit = _exactly(stream, 1)[0]
        size |= (digit & 0x7F) << shift
        shift += 7
        if not digit & 0x80:
            return kind, _exactly(stream, size)


def _exactly(stream: Any, size: int) -> bytes:
    found = stream.read(size)
    if len(found) < size:
        raise EOFError
    return bytes(found)


def _text(content: bytes) -> tuple[str, bytes]:
    size = struct.unpack(">H", content[:2])[0]
    return content[2 : 2 + size].decode(), content[2 + size :]
