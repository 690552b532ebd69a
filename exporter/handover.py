"""When a second worker opens the driver beside the first one, and when it takes over."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from exporter.clock import Clock
from exporter.frames import Frame
from exporter.heard_worker import HeardWorker
from exporter.successor import Successor
from exporter.supervision import Limits

_log = logging.getLogger(__name__)


class Teller(Protocol):
    """Where lines for the log and failures go."""

    def apply(self, frame: Frame) -> None:
        """Take one frame."""
        ...

    def count_error(self, collector: str, reason: str) -> None:
        """Count a failure."""
        ...


class Handover:
    """At most one successor at a time, after pauses that double while it does not help.

    Attributes:
        given_up: a successor that does not come to read what is read now; whoever takes it has it end.
    """

    def __init__(
        self,
        start: Callable[[], HeardWorker | None],
        teller: Teller,
        limits: Limits,
        clock: Clock,
    ) -> None:
        """Begin without one; `start` starts a worker, or tells itself why it cannot."""
        self.given_up: HeardWorker | None = None
        self._start = start
        self._teller = teller
        self._limits = limits
        self._clock = clock
        self._successor: Successor | None = None
        self._pause = limits.backoff
        self._not_before = self._wanted_at = 0.0

    @property
    def worker(self) -> HeardWorker | None:
        """The successor, while it has not taken over."""
        return None if self._successor is None else self._successor.heard

    def step(self, current: HeardWorker | None, *, may_start: bool) -> Successor | None:
        """Do what is due; returns the successor that is to take over now.

        Args:
            current: the worker that reads the cards; None when it is gone.
            may_start: false while a worker is stuck or on its way out.
        """
        now = self._clock.monotonic()
        if self._successor is None:
            self._begin(current, now, may_start)
            return None
        successor = self._successor
        successor.read(self._teller.apply, self._teller.count_error)
        if current is None or successor.is_ready(current, self._limits.stuck_call):
            return self._end(successor, now)
        why = self._why_hopeless(successor.heard, now)
        if why:
            _log.warning("worker %d did not take over: %s", successor.heard.pid, why)
            self.give_up()
        return None

    def give_up(self) -> None:
        """Let the successor go, if there is one."""
        if self._successor is not None:
            self.given_up = self._end(self._successor, self._clock.monotonic()).heard

    def _why_hopeless(self, one: HeardWorker, now: float) -> str:
        code = one.worker.exit_code()
        if code is not None:
            self._teller.count_error("worker", "exited")
            return f"it ended with code {code}"
        # What wants a successor itself has found what it will find.
        settled = one.wants_since is not None and now - one.wants_since >= self._limits.settle
        if settled or now - one.started_at >= self._limits.handover:
            return "it does not read all that is read now"
        return ""

    def _begin(self, current: HeardWorker | None, now: float, may_start: bool) -> None:
        wants = current is not None and current.wants_since is not None
        # While a call of it does not come back, it cannot tell whether it wants one.
        if wants or (current is not None and current.longest_call() >= self._limits.stuck_call):
            self._wanted_at = now
        if current is None or not wants:
            if now - self._wanted_at >= self._limits.calm:
                self._pause = self._limits.backoff
            return
        if not may_start or now < self._not_before or current.asked_at is not None:
            return
        heard = self._start()
        if heard is None:
            self._wait(now)
        else:
            self._successor = Successor(heard, current.xids)

    def _end(self, successor: Successor, now: float) -> Successor:
        self._successor = None
        # The next one has not had the time to say whether it wants another.
        self._wanted_at = now
        self._wait(now)
        return successor

    def _wait(self, now: float) -> None:
        self._not_before = now + self._pause
        self._pause = min(self._pause * 2, self._limits.handover_limit)
