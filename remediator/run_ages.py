"""How long ago something was, whatever has been done to the wall clock since it was first seen."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

from remediator.clock import Clock, boot_id
from remediator.store import Lease, Run, Transaction

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
    """Ages of runs and leases by the monotonic clock of their boot, while that goes on.

    Of those from an earlier boot the wall clock is believed once, when this process first sees each;
    from then on they grow old by the monotonic clock. What lies ahead of the wall clock then counts as
    happening now: a clock that was set back neither frees a budget nor keeps it spent for longer than
    it lasts.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[int, _Seen] = {}
        # The moment of each lease, by the monotonic clock of this boot; before it began, below zero.
        self._leased: dict[int, float] = {}

    def dated(self, run: Run, clock: Clock) -> tuple[float, float | None]:
        """When the run was created and when it ended, by what the wall clock says now."""
        now, at = clock.now(), clock.monotonic()
        with self._lock:
            seen = self._look(run, now, at)
            self._seen[run.id] = seen
        passed = at - seen.at
        ended = None if seen.ended is None else now - seen.ended - passed
        return now - seen.created - passed, ended

    def recent(self, tx: Transaction, seconds: float, clock: Clock) -> tuple[Run, ...]:
        """At least the runs that were created no more than `seconds` ago, oldest first."""
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
        since = min([now - seconds, *young])
        return tx.runs.recent(since, boot_id=boot_id(), monotonic=at - seconds)

    def of_lease(self, lease: Lease, clock: Clock) -> float:
        """How long ago the lease was opened (seconds)."""
        at = clock.monotonic()
        with self._lock:
            if lease.id not in self._leased:
                self._leased[lease.id] = at - _age(lease, clock.now(), at)
            return at - self._leased[lease.id]

    def _look(self, run: Run, now: float, at: float) -> _Seen:
        before = self._seen.get(run.id)
        if before is None:
            created = _age(run, now, at)
            ended = _since_end(run, now, at)
            if ended is not None:
                ended = min(created, ended)
            return _Seen(at, run.created_at, created, ended)
        ended = _since_end(run, now, at)
        if before.ended is not None or ended is None:
            return before
        # It has ended since the last look, so not longer ago than that look.
        passed = at - before.at
        return replace(before, at=at, created=before.created + passed, ended=min(passed, ended))


def _age(one: Run | Lease, now: float, at: float) -> float:
    """How long ago it was created (seconds), by the clock that is to be believed."""
    known = one.created_monotonic
    if known is not None and known <= at and _is_of_this(one.boot_id):
        return at - known
    return max(0.0, now - one.created_at)


def _since_end(run: Run, now: float, at: float) -> float | None:
    """How long ago it ended (seconds), in the same way; None while it goes on."""
    if run.ended_at is None:
        return None
    known = run.ended_monotonic
    if known is not None and known <= at and _is_of_this(run.ended_boot_id):
        return at - known
    return max(0.0, now - run.ended_at)


def _is_of_this(boot: str) -> bool:
    return bool(boot) and boot == boot_id()
