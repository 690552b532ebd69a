"""Connections of HTTPS, whose handshakes hold nobody up.

It is a module of its own because who serves plain HTTP need not load TLS, which takes 1.5 MiB.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from serving import tls as web_tls
from serving.certificate import names
from serving.channel import Channel, ChannelFactory, Patience, Terms
from serving.clock import Clock
from serving.tls import TlsOffer

_log = logging.getLogger(__name__)

# A record of TLS has at most 16 KiB. Reading less would leave a rest that no poll announces.
_RECORD_BYTES = 32768
_PLAIN_HTTP = b"HTTP/1.0 400 Bad Request\r\n\r\nThis port speaks HTTPS.\n"


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
