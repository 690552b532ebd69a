"""Never two canaries at once: a second one would only wait behind the first."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator

from remediator.clock import SystemClock
from remediator.errors import ServiceTimeout
from remediator.services.base import OurRequests


class OneAtATime:
    """The turn of one canary."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._begun = self._unanswered = 0
        self._ended_at = -math.inf

    @property
    def so_far(self) -> OurRequests:
        """How many there have been."""
        # Counted first: one that begins while this is read is either not quiet, or new at the next look.
        begun, unanswered = self._begun, self._unanswered
        quiet = 0.0 if self._turn.locked() else SystemClock().monotonic() - self._ended_at
        return OurRequests(begun, unanswered, quiet)

    @contextlib.contextmanager
    def wait(self, timeout: float) -> Iterator[float]:
        """Wait for the turn; what is left of `timeout` for the canary itself.

        Raises:
            ServiceTimeout: another canary was still waiting for its answer.
        """
        clock = SystemClock()
        deadline = clock.monotonic() + timeout
        if not self._turn.acquire(timeout=timeout):
            raise ServiceTimeout("another canary is still waiting for its answer")
        try:
            self._begun += 1
            yield max(0.001, deadline - clock.monotonic())
        except ServiceTimeout:
            self._unanswered += 1
            raise
        finally:
            self._ended_at = clock.monotonic()
            self._turn.release()
