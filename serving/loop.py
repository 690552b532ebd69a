"""waitress's event loop with epoll: what a round costs depends on who does something, not on who is there.

waitress asks every connection in every round whether it wants to read or write. With thousands of
slow ones, each byte of each costs a look at all of them, and everybody waits for that.
"""

from __future__ import annotations

import contextlib
import select
from typing import Any

from waitress import wasyncore

from serving.channel import Channel
from serving.clock import Clock

# So often everybody is asked, for the sake of deadlines (seconds).
_SWEEP_SECONDS = 0.5
# Of a crowd that sends at the same moment only so many come before whoever is new.
_AT_ONCE = 64
_READ = select.EPOLLIN | select.EPOLLPRI


class Polled(dict[int, Any]):
    """waitress's map of what is polled, by descriptor; notes who came."""

    def __init__(self) -> None:
        super().__init__()
        self.touched: set[int] = set()

    def __setitem__(self, descriptor: int, polled: Any) -> None:
        """Called for each new connection."""
        self.touched.add(descriptor)
        super().__setitem__(descriptor, polled)


class Loop:
    """Waits for what is polled, and has it handle what happens.

    Attributes:
        answering: the connections that are being answered, or whose answer is not yet read.
    """

    def __init__(self, polled: Polled, clock: Clock) -> None:
        self._polled = polled
        self._clock = clock
        self._epoll = select.epoll()
        # Whom epoll knows, and what for.
        self._known: dict[int, tuple[Any, int]] = {}
        self._sweep_at = 0.0
        self.answering: list[Channel] = []

    def close(self) -> None:
        """Forget everybody."""
        self._epoll.close()

    def sweep_soon(self) -> None:
        """Ask everybody in the next round."""
        self._sweep_at = 0.0

    def round(self, timeout: float) -> None:
        """Wait until something happens, at most `timeout` seconds, and handle it."""
        now = self._clock.monotonic()
        if now >= self._sweep_at:
            self._sweep_at = now + _SWEEP_SECONDS
            self._polled.touched.update(self._known, self._polled)
        touched, self._polled.touched = self._polled.touched, set()
        self.answering = []
        for descriptor in touched:
            self._ask(descriptor)
        timeout = max(0.0, min(timeout, self._sweep_at - now))
        for descriptor, happened in self._epoll.poll(timeout, _AT_ONCE):
            polled = self._polled.get(descriptor)
            if polled is not None:
                # The constants of epoll are those of poll.
                wasyncore.readwrite(polled, happened)
                self._polled.touched.add(descriptor)

    def _ask(self, descriptor: int) -> None:
        """Find out what one of them waits for now."""
        polled = self._polled.get(descriptor)
        known, before = self._known.pop(descriptor, (None, 0))
        if polled is None:
            # The kernel has forgotten it with its socket.
            return
        wanted = _READ if polled.readable() else 0
        if polled.writable() and not polled.accepting:
            wanted |= select.EPOLLOUT
        if isinstance(polled, Channel) and polled.will_close:
            # waitress would wait until the client takes more of what it is not to get.
            polled.handle_close()
            return
        if known is not polled:
            before = 0
        with contextlib.suppress(OSError):
            self._tell(descriptor, before, wanted)
            if wanted:
                self._known[descriptor] = (polled, wanted)
        if isinstance(polled, Channel) and polled.is_answering:
            # A thread changes what it waits for, and wakes the loop.
            self._polled.touched.add(descriptor)
            self.answering.append(polled)

    def _tell(self, descriptor: int, before: int, wanted: int) -> None:
        # Who waits for nothing is taken out: the end of its client would be told again and again.
        if before and not wanted:
            self._epoll.unregister(descriptor)
        elif wanted and not before:
            self._epoll.register(descriptor, wanted)
        elif wanted != before:
            self._epoll.modify(descriptor, wanted)
