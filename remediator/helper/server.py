"""The helper's socket: who may ask, one request a connection, bounded in every way."""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass

from remediator import runner
from remediator.clock import Clock
from remediator.helper.desk import Desk
from remediator.helper.protocol import (
    MAX_REQUEST,
    VERBS,
    Reply,
    Request,
    RequestError,
    encode_reply,
    greeting,
    parse_request,
)
from remediator.log import printable

log = logging.getLogger(__name__)

_REQUEST_WITHIN = 5.0
_ANSWER_WITHIN = 5.0
_MOST_AT_ONCE = 16
_CREDENTIALS = struct.Struct("3i")
_LINES_PER_MINUTE = 30


@dataclass(frozen=True)
class Peer:
    """Who is at the other end, as the kernel says."""

    pid: int
    uid: int

    def __str__(self) -> str:
        return f"pid={self.pid} uid={self.uid}"


class Server:
    """Serves one listening socket until it is told to stop; then waits for what is under way."""

    def __init__(
        self,
        listener: socket.socket,
        desk: Desk | str,
        uid: int | None,
        clock: Clock,
        idle_exit: float | None = None,
    ) -> None:
        """`desk` is the sentence of a refusal where the helper cannot work; `uid` may ask, None nobody.

        After `idle_exit` seconds without a client it ends by itself; None never.
        """
        self._listener = listener
        self._desk = desk
        self._uid = uid
        self._clock = clock
        self._idle_exit = idle_exit
        self._wake, self._woken = socket.socketpair()
        self._busy: set[threading.Thread] = set()
        self._talk = _Throttle(clock)

    def stop(self) -> None:
        """Take nothing more; safe in a signal handler."""
        with contextlib.suppress(OSError):
            self._wake.send(b"x")

    def run(self) -> None:
        """Serve until `stop` or idleness, and until the last verb has ended."""
        self._listener.setblocking(False)
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        while True:
            wait = None if self._idle_exit is None else round(self._idle_exit * 1000)
            ready = [descriptor for descriptor, _ in poll.poll(wait)]
            self._busy = {one for one in self._busy if one.is_alive()}
            runner.reap()
            if self._woken.fileno() in ready or not (ready or self._busy):
                break
            if ready:
                self._accept()
        if self._busy:
            log.info("stopping: what is under way is ended first calls=%d", len(self._busy))
        for one in self._busy:
            one.join()
        self._wake.close()
        self._woken.close()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        connection.settimeout(_ANSWER_WITHIN)
        peer = _peer(connection)
        refusal = self._why_not(peer) or self._begin(connection, peer)
        if refusal:
            self._talk.warning("refused %s: %s", peer, refusal)
            with connection, contextlib.suppress(OSError):
                connection.sendall(greeting(refusal))

    def _begin(self, connection: socket.socket, peer: Peer) -> str:
        """Serve the connection in a thread of its own; why not, where there can be no more."""
        thread = threading.Thread(target=self._serve, args=(connection, peer))
        try:
            thread.start()
        except RuntimeError as error:
            return str(error)
        self._busy.add(thread)
        return ""

    def _why_not(self, peer: Peer) -> str:
        if self._uid is None or peer.uid != self._uid:
            if isinstance(self._desk, str):
                return self._desk
            return f"uid {peer.uid} may not ask: helper.yml names another user"
        if len(self._busy) >= _MOST_AT_ONCE:
            return "too many calls at once"
        return self._desk if isinstance(self._desk, str) else ""

    def _serve(self, connection: socket.socket, peer: Peer) -> None:
        desk = self._desk
        assert isinstance(desk, Desk)  # noqa: S101 - the other kind was refused at the door
        with connection:
            try:
                connection.sendall(greeting())
                request = parse_request(self._line(connection))
            except RequestError as error:
                self._talk.warning("refused %s: %s", peer, error)
                with contextlib.suppress(OSError):
                    connection.sendall(encode_reply(Reply("refused", str(error))))
                return
            except OSError:
                return
            self._answer(desk, connection, peer, request)

    def _answer(self, desk: Desk, connection: socket.socket, peer: Peer, request: Request) -> None:
        writes = VERBS[request.verb].writes
        say: Callable[..., None] = log.info if writes else self._talk.info
        asked = f"verb={request.verb} uuid={request.uuid or '-'}"
        if writes:
            asked += f" number={request.number}"
            say("asked %s %s", peer, asked)
        begun = self._clock.monotonic()
        reply = desk.answer(request, lambda: _is_there(connection))
        heard = _is_there(connection)
        try:
            connection.sendall(encode_reply(reply))
        except OSError:
            heard = False
        took = self._clock.monotonic() - begun
        end = "" if heard else " client=gone"
        say(
            "answered %s %s outcome=%s seconds=%.1f%s%s",
            peer, asked, reply.outcome, took, end, reply.said and f" | {printable(reply.said)}",
        )  # fmt: skip
        if heard:
            desk.told(request, reply)

    def _line(self, connection: socket.socket) -> bytes:
        """The request without its end; nothing may follow it.

        Raises:
            RequestError: it is too long, more than one line, or not there in time.
        """
        deadline = self._clock.monotonic() + _REQUEST_WITHIN
        found = b""
        while b"\n" not in found:
            left = deadline - self._clock.monotonic()
            if left <= 0 or len(found) > MAX_REQUEST:
                raise RequestError("a request is one line of at most 512 bytes, sent at once")
            connection.settimeout(left)
            try:
                part = connection.recv(MAX_REQUEST + 1 - len(found))
            except TimeoutError:
                continue
            if not part:
                raise RequestError("the line has no end")
            found += part
        connection.settimeout(_ANSWER_WITHIN)
        line, _, rest = found.partition(b"\n")
        if rest:
            raise RequestError("one request a connection")
        return line


class _Throttle:
    """Keeps whoever may ask from flooding the log, and so from hiding in it what was done."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._since = clock.monotonic()
        self._count = 0

    def warning(self, text: str, *arguments: object) -> None:
        self._say(logging.WARNING, text, *arguments)

    def info(self, text: str, *arguments: object) -> None:
        self._say(logging.INFO, text, *arguments)

    def _say(self, level: int, text: str, *arguments: object) -> None:
        with self._lock:
            now = self._clock.monotonic()
            if now - self._since >= 60:
                if self._count > _LINES_PER_MINUTE:
                    log.warning("%d more lines were not written", self._count - _LINES_PER_MINUTE)
                self._since, self._count = now, 0
            self._count += 1
            if self._count <= _LINES_PER_MINUTE:
                log.log(level, text, *arguments)


def _peer(connection: socket.socket) -> Peer:
    size = _CREDENTIALS.size
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    return Peer(pid, uid)


def _is_there(connection: socket.socket) -> bool:
    """Whether the client still waits."""
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return not poll.poll(0)
