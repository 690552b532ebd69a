"""waitress's connections with a deadline.

waitress reads and writes all connections in one thread and answers in a few others, so a client that
sends nothing or reads nothing costs a descriptor and no thread. TLS is done
in that same way, on a socket that never blocks (`tls_channel`): a server with a thread a connection
(cheroot, gunicorn) can be filled up by as many silent clients as it has threads, and `ssl` around the
listening socket by a single one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any, TypeAlias

from waitress.channel import HTTPChannel
from waitress.task import WSGITask

from serving.clock import Clock
from serving.requests import ErrorAnswer, RequestParser

ChannelFactory: TypeAlias = "Callable[..., Channel | None]"
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


def plain(clock: Clock, patience: Patience | None = None) -> ChannelFactory:
    """Return what waitress makes a connection of plain HTTP with."""
    return partial(Channel, Terms(clock, patience or Patience()))
