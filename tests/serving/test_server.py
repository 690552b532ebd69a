"""Serving: slow clients, what comes in one piece, and the end."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serving import crowd
from serving.channel import Patience
from tests.serving.door import CLIENTS, SERVER, Door, ask_again, clients, trusting


@pytest.fixture(params=["http", "https"])
def web_config(request, tmp_path: Path) -> Path | None:
    if request.param == "http":
        return None
    path = tmp_path / "web.yml"
    path.write_text(f"tls_server_config:\n{SERVER}")
    return path


@pytest.fixture
def opened(web_config) -> Iterator[Callable[..., Door]]:
    doors: list[Door] = []

    def make(**more) -> Door:
        doors.append(Door(web_config, **more))
        return doors[-1]

    yield make
    for door in doors:
        door.close()


def spoken(door: Door, sock: socket.socket) -> socket.socket:
    if door.scheme == "http":
        return sock
    return trusting().wrap_socket(sock, server_hostname="localhost")


def listening(door: Door) -> bool:
    with contextlib.suppress(OSError), door.connect():
        return True
    return False


def test_clients_that_say_nothing_do_not_keep_others_out(opened) -> None:
    door = opened()
    with clients(door):
        assert door.get()[0] == 200


def test_clients_that_never_finish_asking_do_not_keep_others_out(opened) -> None:
    door = opened()
    # Of TLS this is half a greeting; of HTTP, half a request.
    begun = b"\x16\x03\x01\x02\x00\x01" if door.scheme == "https" else b"GET /metrics HTTP/1.1\r\n"
    with clients(door) as slow:
        for sock in slow:
            sock.sendall(begun)
        assert door.get()[0] == 200


def test_clients_that_read_nothing_do_not_keep_others_out(opened) -> None:
    body = b"x" * 300_000

    def app(_environ, start_response):
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]

    door = opened(app=app)
    # A hundred answers a client would be more than waitress keeps before it holds a thread up.
    request = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 100
    with contextlib.ExitStack() as stack:
        for _ in range(CLIENTS):
            sock = stack.enter_context(socket.socket())
            sock.settimeout(20)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", door.port))
            stack.enter_context(spoken(door, sock)).sendall(request)
        assert door.get()[2] == body


def test_answers_that_nobody_reads_are_not_kept_without_end(
    opened, monkeypatch, eventually
) -> None:
    # More than the kernel keeps of one connection.
    body = b"x" * (8 * 2**20)
    monkeypatch.setattr(crowd, "_UNREAD_BYTES", 2 * len(body))

    def app(_environ, start_response):
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]

    door = opened(app=app)
    with contextlib.ExitStack() as stack:
        slow = []
        for _ in range(5):
            sock = stack.enter_context(socket.socket())
            sock.settimeout(20)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", door.port))
            slow.append(stack.enter_context(spoken(door, sock)))
            slow[-1].sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert door.get()[2] == body
        # Whether they read or not.
        eventually(lambda: door.server.connections <= 4)
        # The oldest has been closed, so that what it had not read is lost; the newest has not.
        with pytest.raises((OSError, EOFError)):
            whole(slow[0], len(body))
        assert whole(slow[-1], len(body)) >= len(body)


def test_an_answer_that_nobody_reads_has_a_deadline(opened, eventually) -> None:
    body = b"x" * (8 * 2**20)

    def app(_environ, start_response):
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]

    door = opened(app=app, patience=Patience(asking=20, answering=1))
    with door.connect() as plain, spoken(door, plain) as sock:
        sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert sock.recv(1) == b"H"
        eventually(lambda: door.server.connections == 0)


def whole(sock: socket.socket, length: int) -> int:
    """Read that many bytes; EOFError where they do not come."""
    read = 0
    while read < length:
        piece = len(sock.recv(65536))
        if not piece:
            raise EOFError
        read += piece
    return read


def test_a_client_that_drips_is_sent_away(opened, eventually) -> None:
    door = opened(patience=Patience(asking=0.3, answering=5))
    with door.connect() as sock:
        # waitress itself waits as long as a byte comes now and then.
        def gone() -> bool:
            try:
                sock.sendall(b"\x16" if door.scheme == "https" else b"G")
                sock.settimeout(0.05)
                return sock.recv(1) == b""
            except TimeoutError:
                return False
            except OSError:
                return True

        eventually(gone)


def test_a_connection_that_is_kept_alive_outlives_that(opened) -> None:
    door = opened(patience=Patience(asking=1, answering=20))
    with door.connect() as plain, spoken(door, plain) as sock:
        assert ask_again(sock).startswith(b"HTTP/1.1 200")
        threading.Event().wait(1.1)
        assert ask_again(sock).startswith(b"HTTP/1.1 200")


def test_connections_that_end_in_any_way_leave_nothing_behind(opened, eventually) -> None:
    door = opened()
    assert door.get("/-/healthy")[0] == 200
    eventually(lambda: door.server.connections == 0)
    for said in (b"", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\n", b"\xff" * 100, b"\r\n"):
        with door.connect() as sock:
            sock.sendall(said)
            eventually(lambda: door.server.connections)
    with door.connect() as plain, spoken(door, plain) as sock:
        sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    eventually(lambda: door.server.connections == 0)


def test_only_the_first_of_requests_that_come_in_one_piece_is_answered(opened) -> None:
    door = opened()
    with door.connect() as plain, spoken(door, plain) as sock:
        sock.sendall(b"GET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
        said = b"".join(iter(lambda: sock.recv(4096), b""))
    assert said.count(b"HTTP/1.1 200") == 1
    assert b"Connection: close" in said


def test_what_is_being_answered_at_the_end_is_answered(opened, eventually) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def app(_environ, start_response):
        begun.set()
        go_on.wait(20)
        start_response("200 OK", [("Content-Length", "4")])
        return [b"done"]

    door = opened(app=app)
    answers: list[bytes] = []
    asking = threading.Thread(target=lambda: answers.append(door.get("/")[2]))
    asking.start()
    assert begun.wait(20)
    door.server.stop()
    eventually(lambda: not listening(door))
    go_on.set()
    asking.join(20)
    assert answers == [b"done"]


def test_an_end_does_not_wait_for_those_who_say_nothing(web_config) -> None:
    door = Door(web_config)
    with clients(door) as silent:
        assert door.get("/-/healthy")[0] == 200
        door.close()
        assert silent[0].recv(1) == b""
