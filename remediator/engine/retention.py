"""What is over for long is forgotten, some of it at a time; the audit tells of all of it."""

from __future__ import annotations

import logging

from remediator.config import Config
from remediator.durations import format_duration
from remediator.engine import left_down
from remediator.engine.leases import CARD_GONE, FLAPPING
from remediator.store import Draft, Transaction
from remediator.world import World

log = logging.getLogger(__name__)

_DAY = 86400.0
_DELIVERIES_KEPT = 7 * _DAY
_EPISODES_KEPT = 30 * _DAY
# In a storm there are many, and deliveries must not wait for long.
_AT_ONCE = 5000
_RUNS_AT_ONCE = 500
_EVERY = 3600.0
# A clock that is found so far ahead may be wrong: somebody, or NTP, gets so long to set it right.
_JUMP = _DAY
_DOUBTED_FOR = 6 * 3600.0
_LOOKED_AT = "forgetting_looked_at"


class Forgetting:
    """Looks once an hour, and again at the next look while there is more."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._done_at: float | None = None
        # By how much the wall clock was ahead of the monotonic one at the last look.
        self._offset: float | None = None
        self._doubted_at: float | None = None

    def look(self) -> None:
        """Forget what may be forgotten now.

        Raises:
            StorageError: it could not be; the next look tries again.
        """
        now = self._world.clock.monotonic()
        if self._done_at is not None and now - self._done_at < _EVERY:
            return
        with self._world.store.transaction() as tx:
            sure = self._is_sure(tx)
            more = sure and self._forget(tx)
        self._done_at = None if more else now
        while sure and not more and self._world.store.retire_audit(self._world.config.audit.keep):
            pass

    def _is_sure(self, tx: Transaction) -> bool:
        """Whether the wall clock can be believed: it has not jumped ahead since somebody looked."""
        now, at = self._world.clock.now(), self._world.clock.monotonic()
        before, self._offset = self._offset, now - at
        if before is None:
            looked_at = tx.get_meta(_LOOKED_AT)
            before = self._offset if looked_at is None else float(looked_at) - at
        if self._offset - before > _JUMP:
            self._doubted_at = at
            ahead, wait = format_duration(self._offset - before), format_duration(_DOUBTED_FOR)
            log.warning("the wall clock is %s ahead: nothing is forgotten for %s", ahead, wait)
        if self._doubted_at is not None and at - self._doubted_at < _DOUBTED_FOR:
            return False
        self._doubted_at = None
        tx.set_meta(_LOOKED_AT, str(now))
        return True

    def _forget(self, tx: Transaction) -> bool:
        """One batch; whether there may be more."""
        now, kept, old = self._world.clock.now(), kept_for(self._world.config), tx.retention
        full = self._runs(tx, kept)
        leases = old.leases(now - kept, _AT_ONCE)
        for number in leases:
            for reason in (FLAPPING, CARD_GONE):
                tx.set_meta(f"{reason}:{number}", None)
        counts = (
            len(leases),
            old.incidents(now - kept, _AT_ONCE),
            old.deliveries(now - _DELIVERIES_KEPT, _AT_ONCE),
            old.episodes(now - _EPISODES_KEPT, _AT_ONCE),
        )
        return full or max(counts) >= _AT_ONCE

    def _runs(self, tx: Transaction, kept: float) -> bool:
        now, ages = self._world.clock.now(), self._world.ages
        found = tx.retention.forgettable(now - kept, _RUNS_AT_ONCE)
        # A clock that was set ahead makes nothing old.
        ended = {run.id: ages.dated(run, self._world.clock)[1] for run in found}
        old = sorted(one for one, at in ended.items() if at is not None and now - at > kept)
        if not old:
            return False
        tx.retention.runs(old)
        for number in old:
            tx.retention.notes(f"{left_down.REASON}:{number}:")
        why = f"they ended more than {format_duration(kept)} ago; what they did stays in the audit"
        tx.audit(
            Draft(
                "runs_forgotten",
                f"{len(old)} run(s), {old[0]} to {old[-1]}, are forgotten: {why}",
                data={"runs": len(old), "first": old[0], "last": old[-1]},
            )
        )
        return len(found) == _RUNS_AT_ONCE


def kept_for(config: Config) -> float:
    """How long runs are kept (seconds): as the audit, and at least while a gate counts them."""
    limits = config.limits
    counted = (limits.cooldown, limits.breaker_window, limits.breaker_relapse_window)
    return max(config.audit.keep, 2 * _DAY, *(_DAY + one for one in counted))
