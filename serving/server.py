"""Serving with waitress until a signal comes."""

from __future__ import annotations

import contextlib
import errno
import logging
import resource
import signal
from collections.abc import Callable
from typing import Any
from wsgiref.types import WSGIApplication

import waitress.server
from waitress import wasyncore

from serving.address import parse_address
from serving.channel import Channel, ChannelFactory
from serving.clock import Clock
from serving.crowd import CONNECTIONS, Capacity, Crowd
from serving.errors import ListenError
from serving.loop import Loop, Polled

_log = logging.getLogger(__name__)
# It warns of each request that waits for a thread, which anybody can bring about.
logging.getLogger("waitress.queue").setLevel(logging.ERROR)

# For everything else that has a descriptor: the worker, the logs, the state.
_OTHER_DESCRIPTORS = 128
# What is being answered when the signal comes is answered, unless its client reads slowly.
_GRACE_SECONDS = 3.0

_SETTINGS: dict[str, Any] = {
    "channel_timeout": 30,
    "ident": None,
    "max_request_header_size": 16384,
    "clear_untrusted_proxy_headers": True,
    # A client that goes away is no error of ours.
    "log_socket_errors": False,
}


class Server:
    """Listens from the start, and answers while `run` runs.

    Attributes:
        addresses: host and port of each socket that it listens on.
    """

    def __init__(
        self,
        app: WSGIApplication,
        address: str,
        channels: ChannelFactory,
        scheme: str,
        clock: Clock,
        capacity: Capacity,
    ) -> None:
        """Listen.

        Args:
            app: the application.
            address: HOST:PORT.
            channels: what makes a connection.
            scheme: `http` or `https`.
            clock: for the time that is left to the last answers.
            capacity: how much is served at once.

        Raises:
            ConfigError: the address is malformed.
            ListenError: it cannot be had.
        """
        self._clock = clock
        self._stopping = False
        # Everything that is polled, by descriptor: listeners, their triggers, connections.
        self._map = Polled()
        connections = min(capacity.connections, _raise_limit())
        _listen(app, address, scheme, self._map, capacity, connections)
        self._loop = Loop(self._map, clock)
        self._listeners = [
            one for one in self._map.values() if isinstance(one, waitress.server.BaseWSGIServer)
        ]
        self.addresses = tuple(
            (str(one.effective_host), int(one.effective_port)) for one in self._listeners
        )
        for listener in self._listeners:
            listener.channel_class = channels
            listener.on_too_large = capacity.on_too_large
            listener.received_bytes = 0
        self._crowd = Crowd(capacity, connections)
        for host, port in self.addresses:
            _log.info("listening on %s://%s:%s", scheme, f"[{host}]" if ":" in host else host, port)

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._channels())

    def run(self) -> None:
        """Answer until `stop` is called; then finish what was begun."""
        while not self._stopping:
            self._round(1.0)
        self._drain()

    def close(self) -> None:
        """Let go of the port and of every connection."""
        self._listeners[0].task_dispatcher.shutdown(timeout=1)
        wasyncore.close_all(self._map, ignore_all=True)
        self._loop.close()

    def stop(self) -> None:
        """Have `run` end; a signal handler may call this."""
        if not self._stopping:
            self._stopping = True
            self._listeners[0].pull_trigger()

    def _round(self, timeout: float) -> None:
        self._loop.round(timeout)
        came = self._accept_waiting()
        received = sum(listener.received_bytes for listener in self._listeners)
        if self._crowd.must_look(self._loop.answering, received, came=came) and self._crowd.bound(
            self._channels()
        ):
            self._loop.sweep_soon()

    def _accept_waiting(self) -> bool:
        """Accept whoever waits; whether anybody did."""
        # waitress accepts one in a round: whoever came behind a crowd would wait for many.
        before = len(self._map)
        for listener in self._listeners:
            known = -1
            while len(self._map) != known and listener.readable():
                known = len(self._map)
                listener.handle_accept()
        return len(self._map) > before

    def _channels(self) -> list[Channel]:
        return [one for one in list(self._map.values()) if isinstance(one, Channel)]

    def _drain(self) -> None:
        for listener in self._listeners:
            # Only the socket: the threads still need the trigger to say that an answer is there.
            wasyncore.dispatcher.close(listener)
        deadline = self._clock.monotonic() + _GRACE_SECONDS
        while self._clock.monotonic() < deadline:
            if not any(channel.is_answering for channel in self._channels()):
                return
            self._round(0.1)


def serve(server: Server, on_listening: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT; a second one changes nothing.

    Args:
        server: which listens already.
        on_listening: called once, before the first answer.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop())
    try:
        on_listening()
        server.run()
    finally:
        server.close()


def _raise_limit() -> int:
    """Let this process have as many descriptors as it may serve connections; return how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS + _OTHER_DESCRIPTORS
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return CONNECTIONS
    more = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    # A filter of system calls may forbid it: then it is as many as there are.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))
        soft = more
    return max(soft - _OTHER_DESCRIPTORS, soft // 2)


def _listen(
    app: WSGIApplication,
    address: str,
    scheme: str,
    polled: Polled,
    capacity: Capacity,
    connections: int,
) -> None:
    """Put the listeners, one for each family of addresses, among what is polled."""
    host, port = parse_address(address)
    try:
        waitress.server.create_server(
            app,
            map=polled,
            listen=f"[{host}]:{port}" if ":" in host else f"{host or '*'}:{port}",
            url_scheme=scheme,
            connection_limit=connections,
            threads=capacity.threads,
            # waitress refuses what is as long as this.
            max_request_body_size=capacity.body_bytes + 1,
            **_SETTINGS,
        )
    except (OSError, ValueError) as error:
        # What was opened before it failed.
        wasyncore.close_all(polled, ignore_all=True)
        raise ListenError(_why(address, error)) from error


def _why(address: str, error: OSError | ValueError) -> str:
    if not isinstance(error, OSError):
        return f"cannot listen on {address}: that is not the name of a host"
    if error.errno == errno.EADDRINUSE:
        return (
            f"{address} is in use: stop what listens there, or choose another --web.listen-address"
        )
    if error.errno == errno.EACCES:
        return f"not permitted to listen on {address}; choose a port above 1023"
    return f"cannot listen on {address}: {error.strerror or error}"
