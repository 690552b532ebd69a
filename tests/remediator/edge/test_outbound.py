"""Whom a request of ours reaches: the one whose address is configured, and nobody whom that one names."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from remediator import http
from remediator.errors import ServiceError


class Peer(ThreadingHTTPServer):
    """Answers as it is told, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status, self.headers, self.body = 200, {}, b"{}"
        self.asked: list[tuple[str, str | None]] = []
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Peer

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.server.body)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def peers() -> Iterator[tuple[Peer, Peer]]:
    both = Peer(), Peer()
    yield both
    for one in both:
        one.close()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_no_redirect_is_followed(peers: tuple[Peer, Peer], method: str, status: int) -> None:
    asked, canary = peers
    asked.status, asked.headers = status, {"Location": f"{canary.url}/latest/meta-data"}
    answer = http.call(method, asked.url, timeout=30, token="t" * 20)
    assert answer.status == status
    assert len(asked.asked) == 1
    assert canary.asked == []


def test_nothing_in_the_environment_sends_it_elsewhere_or_adds_a_password(
    peers: tuple[Peer, Peer],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    asked, canary = peers
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, canary.url)
    netrc = tmp_path_factory.mktemp("home") / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    assert http.call("GET", asked.url, timeout=30).status == 200
    assert canary.asked == []
    assert asked.asked == [("/", None)]


def test_an_answer_without_end_is_not_read_to_its_end(peers: tuple[Peer, Peer]) -> None:
    asked, _ = peers
    asked.body = b"x" * (http.MAX_BYTES + 1)
    with pytest.raises(ServiceError, match="larger than"):
        http.call("GET", asked.url, timeout=30)


def test_a_name_that_nobody_knows_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ServiceError, match="the name of the host cannot be resolved"):
        http.call("GET", "http://ollama.llm.svc:11434/", timeout=5)
