"""How long ago something was, whatever has been done to the wall clock since it was first seen."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

from remediator.clock import Clock
from remediator.store import Run

_FORGOTTEN_AFTER = 3 * 86400.0


@dataclass(frozen=True)
class _Seen:
    """Ages in seconds at the monotonic moment `at`; `ended` is None while the run goes on.

    `wall` is what the wall clock said when the run was created.
    """

    at: float
    wall: float
    created: float
    ended: float | None


class Ages:
    """Ages of runs by the monotonic clock, from when this process first saw each.

    What lies ahead of the wall clock then counts as happening now: a clock that was set back neither
    frees a budget nor keeps it spent for longer than it lasts.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[int, _Seen] = {}

    def dated(self, run: Run, clock: Clock) -> tuple[float, float | None]:
        """When the run was created and when it ended, by what the wall clock says now."""
        now, at = clock.now(), clock.monotonic()
        with self._lock:
            seen = self._look(run, now, at)
            self._seen[run.id] = seen
        passed = at - seen.at
        ended = None if seen.ended is None else now - seen.ended - passed
        return now - seen.created - passed, ended

    def since(self, seconds: float, clock: Clock) -> float:
        """From which wall time on runs must be read, to find all that are no older than `seconds`."""
        now, at = clock.now(), clock.monotonic()
        with self._lock:
            self._seen = {
                run: seen
                for run, seen in self._seen.items()
                if seen.created + at - seen.at < _FORGOTTEN_AFTER
            }
            young = [
                seen.wall for seen in self._seen.values() if seen.created + at - seen.at < seconds
            ]
        return min([now - seconds, *young])

    def _look(self, run: Run, now: float, at: float) -> _Seen:
        before = self._seen.get(run.id)
        if before is None:
            created = max(0.0, now - run.created_at)
            ended = None if run.ended_at is None else min(created, max(0.0, now - run.ended_at))
            return _Seen(at, run.created_at, created, ended)
        if before.ended is not None or run.ended_at is None:
            return before
        # It has ended since the last look, so not longer ago than that look.
        passed = at - before.at
        ended = min(passed, max(0.0, now - run.ended_at))
        return replace(before, at=at, created=before.created + passed, ended=ended)
