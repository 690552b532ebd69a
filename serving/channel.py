"""waitress's connections with a deadline, and with TLS whose handshakes hold nobody up.

waitress reads and writes all connections in one thread and answers in a few others, so a client that
sends nothing or reads nothing costs a descriptor and no thread. TLS is done in that same way, on a
socket that never blocks: a server with a thread a connection (cheroot, gunicorn) can be filled up by
as many silent clients as it has threads, and `ssl` around the listening socket by a single one.
"""

from __future__ import annotations

import contextlib
import logging
import math
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, TypeAlias

from waitress.channel import HTTPChannel
from waitress.task import WSGITask

from serving import tls as web_tls
from serving.certificate import names
from serving.clock import Clock
from serving.requests import ErrorAnswer, RequestParser
from serving.tls import TlsOffer

_log = logging.getLogger(__name__)

ChannelFactory: TypeAlias = "Callable[..., Channel | None]"
# A record of TLS has at most 16 KiB. Reading less would leave a rest that no poll announces.
_RECORD_BYTES = 32768
_PLAIN_HTTP = b"HTTP/1.0 400 Bad Request\r\n\r\nThis port speaks HTTPS.\n"


CLIENT_NAMES = "serving.client_names"
"""Key of the WSGI environment: the names in the verified certificate that the client showed."""

QUEUED_SECONDS = "serving.queued_seconds"
"""Key of the WSGI environment: how long the whole request waited for somebody to answer it."""


class Phase(Enum):
    """What a connection is waiting for."""

    ASKING = "the client to send its request"
    ANSWERING = "the answer to be made and read"
    IDLE = "another request"


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds that a phase may take, however steadily a byte now and then arrives."""

    asking: float = 15.0
    answering: float = 60.0


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for a connection."""

    clock: Clock
    patience: Patience
    allowed_sans: tuple[str, ...] = ()


class Task(WSGITask):  # type: ignore[misc]
    """A request that also says who asks."""

    def get_environment(self) -> dict[str, Any]:
        """The WSGI environment."""
        environ: dict[str, Any] = super().get_environment()
        environ[CLIENT_NAMES] = self.channel.client_names
        environ[QUEUED_SECONDS] = self.channel.quiet_seconds
        return environ


class Channel(HTTPChannel):  # type: ignore[misc]
    """One connection of plain HTTP."""

    parser_class = RequestParser
    task_class = Task
    error_task_class = ErrorAnswer
    client_names: tuple[str, ...] = ()

    def __init__(self, terms: Terms, *waitress_own: Any, **keywords: Any) -> None:
        self._terms = terms
        self._limits: Mapping[Phase, float] = {
            Phase.ASKING: terms.patience.asking,
            Phase.ANSWERING: terms.patience.answering,
            Phase.IDLE: math.inf,
        }
        self._phase = Phase.IDLE
        self._enter(Phase.ASKING)
        self._has_asked = False
        self._heard_at = terms.clock.monotonic()
        super().__init__(*waitress_own, **keywords)

    @property
    def is_answering(self) -> bool:
        """Whether a request is being answered, or its answer not yet read."""
        return bool(self.requests or self.total_outbufs_len)

    @property
    def quiet_seconds(self) -> float:
        """How long ago the client sent anything."""
        return self._terms.clock.monotonic() - self._heard_at

    @property
    def unread_bytes(self) -> int:
        """How much of answers the client has yet to take."""
        return int(self.total_outbufs_len)

    @property
    def unfinished_bytes(self) -> int:
        """How much is kept of a request of which a part is still to come."""
        request = self.request
        if request is None or self.requests:
            return 0
        return int(request.header_bytes_received + request.body_bytes_received)

    @property
    def is_asking(self) -> bool:
        """Whether a request has begun, or the first is awaited."""
        return self._phase is Phase.ASKING

    @property
    def peer(self) -> str:
        """The address of the client."""
        return str(self.addr[0])

    @property
    def since(self) -> float:
        """When its request began, or it began to wait for one (monotonic)."""
        return self._since

    def give_up(self) -> None:
        """Close it in the next round, whatever is still to be read."""
        self.will_close = True

    def readable(self) -> bool:
        """Asked in each round, so this is where the time is watched."""
        if self.requests or self.total_outbufs_len:
            phase = Phase.ANSWERING
        elif self.request is None and self._has_asked:
            phase = Phase.IDLE
        else:
            phase = Phase.ASKING
        if phase is not self._phase:
            self._enter(phase)
        elif self._terms.clock.monotonic() > self._deadline:
            self.give_up()
        return bool(super().readable())

    def received(self, data: bytes) -> bool:
        """Take bytes of a request."""
        self.server.received_bytes += len(data)
        # Before it can be answered: whoever answers asks for it.
        self._heard_at = self._terms.clock.monotonic()
        took = bool(super().received(data))
        self._has_asked = self._has_asked or self.request is None
        return took

    def _enter(self, phase: Phase) -> None:
        now = self._terms.clock.monotonic()
        if not (phase is Phase.ANSWERING and self._phase is Phase.ASKING):
            self._since = now
        self._phase = phase
        self._deadline = now + self._limits[phase]


class TlsChannel(Channel):
    """One connection of HTTPS.

    The worker threads write while the main thread reads; OpenSSL's object allows one at a time.
    """

    def __init__(self, terms: Terms, *waitress_own: Any, **keywords: Any) -> None:
        self._tls_lock = threading.Lock()
        self._is_greeting = True
        self._wants_to_write = False
        super().__init__(terms, *waitress_own, **keywords)

    def readable(self) -> bool:
        """Also while the handshake waits for the client."""
        ready = super().readable()
        return ready and not (self._is_greeting and self._wants_to_write)

    def writable(self) -> bool:
        """Also while the handshake waits for the network."""
        if self._is_greeting:
            return bool(self._wants_to_write or self.will_close)
        return bool(super().writable())

    def handle_read(self) -> None:
        """Go on with the handshake, or with the request."""
        if self._is_greeting:
            self._shake_hands()
            return
        data = self._receive()
        if data:
            self.last_activity = self._terms.clock.time()
            self.received(data)
        elif data is not None:
            self.handle_close()

    def handle_write(self) -> None:
        """Go on with the handshake, or with the answer."""
        if self._is_greeting and not self.will_close:
            self._shake_hands()
        else:
            super().handle_write()

    def handle_close(self) -> None:
        """Say goodbye, so that the client knows that nothing was cut off, and close."""
        if not self._is_greeting and self.connected:
            with self._tls_lock, contextlib.suppress(OSError, ValueError):
                # Does not wait for the client's own goodbye: the socket does not block.
                self.socket.unwrap()
        super().handle_close()

    def send(self, data: bytes, do_close: bool = True) -> int:
        """Send what the network takes; 0 where it takes nothing now.

        Raises:
            OSError: the connection is broken.
        """
        with self._tls_lock:
            try:
                return int(self.socket.send(data))
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                return 0
            except OSError:
                if not do_close:
                    raise
        self.handle_close()
        return 0

    def _receive(self) -> bytes | None:
        """Return what has arrived: nothing at the end, None where nothing has arrived yet."""
        with self._tls_lock:
            try:
                return bytes(self.socket.recv(_RECORD_BYTES))
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return None
            except OSError:
                return b""

    def _shake_hands(self) -> None:
        try:
            self.socket.do_handshake()
        except ssl.SSLWantReadError:
            self._wants_to_write = False
        except ssl.SSLWantWriteError:
            self._wants_to_write = True
        except OSError as error:
            self._refuse(error)
        else:
            self._is_greeting = False
            certificate = self.socket.getpeercert()
            self.client_names = names(certificate)
            if not web_tls.is_welcome(certificate, self._terms.allowed_sans):
                _log.debug("no TLS with %s: it is not one of client_allowed_sans", self.addr)
                self.handle_close()
            elif self.socket.pending():
                self.handle_read()

    def _refuse(self, error: OSError) -> None:
        reason = getattr(error, "reason", None)
        _log.debug("no TLS with %s: %s", self.addr, reason or error)
        if reason == "HTTP_REQUEST":
            with contextlib.suppress(OSError):
                # Past TLS, which has given up: a person with the wrong scheme reads why.
                socket.socket.send(self.socket, _PLAIN_HTTP)
        self.handle_close()


def factory(
    offer: Callable[[], TlsOffer | None], clock: Clock, patience: Patience | None = None
) -> ChannelFactory:
    """Return what waitress makes a connection with.

    Args:
        offer: asked for each connection; None is plain HTTP.
        clock: for the deadlines.
        patience: the deadlines.
    """
    terms = Terms(clock, patience or Patience())

    def accept(server: Any, sock: socket.socket, *more: Any, **keywords: Any) -> Channel | None:
        offered = offer()
        if offered is None:
            return Channel(terms, server, sock, *more, **keywords)
        sock.setblocking(False)
        try:
            wrapped = offered.context.wrap_socket(
                sock, server_side=True, do_handshake_on_connect=False
            )
        except OSError:
            # It has already gone. waitress would take an exception for one of its own socket.
            sock.close()
            return None
        its_terms = replace(terms, allowed_sans=offered.allowed_sans)
        return TlsChannel(its_terms, server, wrapped, *more, **keywords)

    return accept
