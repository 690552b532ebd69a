"""A server that really listens, for the tests of what it says to whom."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from serving.answer import send
from serving.channel import Patience
from serving.crowd import Capacity
from serving.door import open_door
from serving.live import LiveConfig
from serving.password import Password
from serving.responses import Response

TLS = Path(__file__).parent / "tls"
CLIENTS = 50
CA = TLS / "ca.pem"
SERVER = f"  cert_file: {TLS}/server.pem\n  key_file: {TLS}/server.key\n"
# The password is "secret", at the least cost there is.
HASH = "$2b$04$dWTdjZkqm4GSLIZFkkEUyOipBue6O4/4e.oQIXnO8gN5BrlBlOpoi"


PAGES = {"/metrics": b"gpu_up 1\n" * 1000, "/-/healthy": b"healthy\n"}
OWN_TOKEN = "/-/own"
PASSWORD = Password("tests", frozenset({OWN_TOKEN}))


def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """A long page and a short one."""
    body = PAGES.get(environ["PATH_INFO"])
    found = Response(404, b"") if body is None else Response(200, body)
    return send(found, environ, start_response)


class Door:
    """A server in a thread, and requests to it."""

    def __init__(
        self,
        config: Path | None = None,
        app: WSGIApplication | None = None,
        patience: Patience | None = None,
        capacity: Capacity | None = None,
        password: Password = PASSWORD,
    ) -> None:
        self.server = open_door(
            app or application,
            "127.0.0.1:0",
            LiveConfig(config) if config else None,
            password,
            capacity=capacity,
            patience=patience,
        )
        self.port = self.server.addresses[0][1]
        self.scheme = (
            "http" if config is None or "tls_server" not in config.read_text() else "https"
        )
        self._thread = threading.Thread(target=self.server.run)
        self._thread.start()

    def close(self) -> None:
        self.server.stop()
        self._thread.join(20)
        assert not self._thread.is_alive()
        self.server.close()

    def connect(self) -> socket.socket:
        """A connection on which nothing was said yet, not even of TLS."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def get(
        self,
        path: str = "/metrics",
        headers: Mapping[str, str] | None = None,
        client: ssl.SSLContext | None = None,
        user: str = "",
    ) -> tuple[int, Mapping[str, str], bytes]:
        more = {"Authorization": basic(user)} if user else {}
        if self.scheme == "https":
            connection = http.client.HTTPSConnection(
                "127.0.0.1", self.port, timeout=20, context=client or trusting()
            )
        else:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("GET", path, headers={**more, **(headers or {})})
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()


def ask_again(connection: socket.socket) -> bytes:
    """One request on a connection that stays open, and its answer."""
    connection.sendall(b"GET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n")
    said = b""
    while not said.endswith(b"healthy\n"):
        piece = connection.recv(4096)
        assert piece, f"closed after {said!r}"
        said += piece
    return said


def basic(user: str) -> str:
    return "Basic " + b64encode(user.encode()).decode()


def trusting(certificate: str = "") -> ssl.SSLContext:
    """A client that trusts the CA of the tests and shows a certificate of it, if so named."""
    context = ssl.create_default_context(cafile=CA)
    if certificate:
        context.load_cert_chain(TLS / f"{certificate}.pem", TLS / f"{certificate}.key")
    return context


def ask(app, path: str = "/metrics", **headers: str):
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "REMOTE_ADDR": "a"}
    environ |= {f"HTTP_{name.upper()}": value for name, value in headers.items()}
    seen: list = []
    body = b"".join(app(environ, lambda status, head: seen.append((int(status[:3]), head))))
    ((status, headers),) = seen
    return status, headers, body


@contextlib.contextmanager
def clients(door: Door, count: int = CLIENTS) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(door.connect()) for _ in range(count)]
