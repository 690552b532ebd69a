"""What many clients together may cost, and who is sent away for it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from serving import crowd
from serving.answer import send
from serving.channel import Patience
from serving.crowd import Capacity
from serving.responses import Response
from tests.serving.door import Door, ask_again

BEGUN = b"GET /metrics HTTP/1.1\r\nX-Drip: "
BODY = 100_000


def taking(environ, start_response):
    """Answers how long the body was."""
    length = len(environ["wsgi.input"].read())
    return send(Response(200, str(length).encode()), environ, start_response)


@contextlib.contextmanager
def slow(door: Door, count: int, source: str, said: bytes = BEGUN) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(count):
            sock = socket.create_connection(
                ("127.0.0.1", door.port), timeout=20, source_address=(source, 0)
            )
            found.append(stack.enter_context(sock))
            with contextlib.suppress(OSError):
                sock.sendall(said)
        yield found


def is_closed(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


@pytest.fixture
def opened() -> Iterator:
    doors: list[Door] = []

    def make(**more) -> Door:
        doors.append(Door(**more))
        return doors[-1]

    yield make
    for door in doors:
        door.close()


def test_one_address_has_at_most_half_and_keeps_its_newest(opened, eventually) -> None:
    door = opened(capacity=Capacity(connections=40))
    with slow(door, 60, "127.0.0.2") as others, door.connect() as mine:
        assert ask_again(mine).startswith(b"HTTP/1.1 200")
        eventually(lambda: door.server.connections <= 21)
        assert sum(is_closed(one) for one in others[:40]) == 40
        assert not any(is_closed(one) for one in others[40:])
        # Nobody of another address is sent away for it, and who waits between requests is not.
        assert ask_again(mine).startswith(b"HTTP/1.1 200")


def test_who_shares_the_address_of_a_crowd_is_served(opened) -> None:
    door = opened(capacity=Capacity(connections=40))
    with slow(door, 100, "127.0.0.1"):
        for _ in range(10):
            assert door.get()[0] == 200


def test_many_addresses_leave_a_place_for_who_comes_next(opened, eventually) -> None:
    door = opened(capacity=Capacity(connections=40))
    with contextlib.ExitStack() as stack:
        for number in range(2, 12):
            stack.enter_context(slow(door, 8, f"127.0.0.{number}"))
        for _ in range(10):
            assert door.get()[0] == 200
        eventually(lambda: door.server.connections <= 36)


def test_requests_half_sent_are_not_kept_without_end(opened, monkeypatch, eventually) -> None:
    monkeypatch.setattr(crowd, "_UNFINISHED_BYTES", 2 * BODY)
    monkeypatch.setattr(crowd, "_LONGEST_BODIES", 1)
    monkeypatch.setattr(crowd, "_STEP_BYTES", BODY // 10)
    door = opened(app=taking, capacity=Capacity(body_bytes=BODY))
    head = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {BODY}\r\n\r\n".encode()
    with slow(door, 5, "127.0.0.1", head + b"x" * (BODY - 1)) as found:
        eventually(lambda: sum(map(is_closed, found)) >= 3)
        # The newest is among the others, and goes on where it was.
        found[-1].setblocking(True)
        found[-1].sendall(b"x")
        assert found[-1].recv(4096).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("length", [BODY, 10 * BODY], ids=["kept", "dropped"])
def test_a_body_that_drips_has_the_deadline_of_the_whole_request(
    opened, eventually, length
) -> None:
    patience = Patience(asking=0.3, answering=5)
    door = opened(app=taking, capacity=Capacity(body_bytes=BODY), patience=patience)
    head = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode()
    with slow(door, 1, "127.0.0.1", head) as (sock,):

        def gone() -> bool:
            with contextlib.suppress(OSError):
                sock.send(b"x")
            threading.Event().wait(0.02)
            return is_closed(sock)

        eventually(gone)


def test_a_long_body_that_comes_at_once_is_taken_whole(opened) -> None:
    door = opened(app=taking, capacity=Capacity(body_bytes=4 * 2**20))
    for length in (1, 8192, 4 * 2**20):
        with door.connect() as sock:
            head = f"POST / HTTP/1.0\r\nContent-Length: {length}\r\n\r\n".encode()
            sock.sendall(head + b"x" * length)
            said = b"".join(iter(lambda sock=sock: sock.recv(65536), b""))
        assert said.endswith(f"\r\n\r\n{length}".encode())
