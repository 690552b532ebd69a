"""What many clients together may cost: connections, requests half sent, answers not read.

Nobody is refused for it. Who has waited longest is sent away, of the address that has most: a client
that means to be answered asks within milliseconds, so it is never the one, and an Alertmanager behind
the same address as a crowd is served like everybody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from serving.channel import Channel

# Many slow connections must not keep Prometheus out.
CONNECTIONS = 4000
# Answers that nobody reads are kept up to here; a page is a few hundred kilobytes at most.
_UNREAD_BYTES = 64 * 2**20
# Requests of which a part is still to come are kept up to here, or so many of the longest.
_UNFINISHED_BYTES = 64 * 2**20
_LONGEST_BODIES = 16
# So much must have come before anybody is looked at again.
_STEP_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True)
class Capacity:
    """How much is served at once.

    Attributes:
        threads: that answer; reading and writing has one of its own.
        body_bytes: the longest body of a request; a longer one is answered with 413.
        on_too_large: called with the path and the peer's address of each such request.
        connections: at most; half of them may be of one address.
    """

    threads: int = 4
    body_bytes: int = 1024
    on_too_large: Callable[[str, str], None] | None = None
    connections: int = CONNECTIONS


class Crowd:
    """Sends away whoever costs too much."""

    def __init__(self, capacity: Capacity, connections: int) -> None:
        """Allow `connections`, which may be fewer than were asked for."""
        self._of_one_peer = connections // 2
        # Below the limit, so that there is always a place for who comes next.
        self._of_all = connections * 9 // 10
        self._unfinished_bytes = max(_UNFINISHED_BYTES, _LONGEST_BODIES * capacity.body_bytes)
        self._received = 0

    def must_look(self, answering: Iterable[Channel], received: int, *, came: bool) -> bool:
        """Whether there may be too much now.

        Args:
            answering: who is being answered.
            received: bytes that have come, ever.
            came: somebody has come.
        """
        if received - self._received >= _STEP_BYTES:
            self._received = received
            return True
        return came or sum(channel.unread_bytes for channel in answering) > _UNREAD_BYTES

    def bound(self, channels: Sequence[Channel]) -> bool:
        """Send away as many as must go; whether any had to."""
        gone = [
            *_costliest(channels, lambda one: one.unread_bytes, _UNREAD_BYTES),
            *_costliest(channels, lambda one: one.unfinished_bytes, self._unfinished_bytes),
            *self._surplus(channels),
        ]
        for channel in gone:
            channel.give_up()
        return bool(gone)

    def _surplus(self, channels: Sequence[Channel]) -> list[Channel]:
        if len(channels) <= self._of_one_peer:
            return []
        peers = Counter(channel.peer for channel in channels)
        most, its = peers.most_common(1)[0]
        surplus = max(its - self._of_one_peer, min(len(channels) - self._of_all, its))
        if surplus <= 0:
            return []
        waiting = (one for one in channels if one.peer == most and not one.is_answering)
        # Who has yet to ask before who may ask again, and the oldest of each first.
        return sorted(waiting, key=lambda one: (not one.is_asking, one.since))[:surplus]


def _costliest(
    channels: Sequence[Channel], cost: Callable[[Channel], int], limit: int
) -> list[Channel]:
    """The oldest, until what all cost is within the limit."""
    surplus = sum(map(cost, channels)) - limit
    if surplus <= 0:
        return []
    gone = []
    # Who reads or sends at all is done within milliseconds, and never the oldest.
    for channel in sorted(channels, key=lambda one: one.since):
        if surplus > 0 and cost(channel):
            surplus -= cost(channel)
            gone.append(channel)
    return gone
