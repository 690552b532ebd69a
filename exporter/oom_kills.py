"""The processes that the kernel log says were killed for want of memory: the newest, for readers."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

from exporter.kernel_log import LogBatch, LoggedKill, LogSink

KEPT = 32


@dataclass(frozen=True, slots=True)
class OomKillLog:
    """What the kernel log of this boot says of them.

    Attributes:
        boot_id: what the kernel calls this boot; empty when it does not say.
        kills: oldest first; with `boot_id` its sequence number tells each from all others.
        lost: how often lines were overwritten before they were read, so that some may be missing.
    """

    boot_id: str
    kills: tuple[LoggedKill, ...] = ()
    lost: int = 0


class OomKills:
    """`LogSink` that keeps the newest kills, and passes everything on.

    Nothing is kept over a restart: the kernel's log is read from its beginning again, in which
    each has the number that it had before.
    """

    def __init__(self, boot_id: str, then: LogSink) -> None:
        """Pass on to `then`."""
        self._boot_id = boot_id
        self._then = then
        self._lock = threading.Lock()
        self._kills: deque[LoggedKill] = deque(maxlen=KEPT)
        self._lost = 0
        self._complete = False

    def take_log(self, batch: LogBatch) -> None:
        """Take what was read."""
        with self._lock:
            self._kills.extend(batch.kills)
            self._lost += batch.lost
            self._complete = self._complete or batch.caught_up
        self._then.take_log(batch)

    def log_unreadable(self, why: str) -> None:
        """Take that there is no kernel log, or none any more."""
        with self._lock:
            self._complete = False
        self._then.log_unreadable(why)

    def read(self) -> OomKillLog | None:
        """Return what is known; None where the log is not read, or not to its end yet."""
        with self._lock:
            if not self._complete:
                return None
            return OomKillLog(self._boot_id, tuple(self._kills), self._lost)
