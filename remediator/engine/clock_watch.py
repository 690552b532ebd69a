"""Notices that the wall clock was set, so that nothing waits for a time that is far away now."""

from __future__ import annotations

import logging

from remediator.durations import format_duration
from remediator.store import Draft
from remediator.world import World

log = logging.getLogger(__name__)

_STEP = 5.0
# Longer than anything waits before it is decided anew, unless a cooldown is configured that long.
_FAR = 3600.0


class ClockWatch:
    """Compares the wall clock with the monotonic one. Budgets and cooldowns do not depend on it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._offset: float | None = None

    def look(self) -> None:
        """Look now; whatever waits is decided anew where the clock has jumped.

        Raises:
            StorageError: it could not be kept; the next look tries again.
        """
        clock = self._world.clock
        offset = clock.now() - clock.monotonic()
        before = self._offset
        if before is not None and abs(offset - before) < _STEP:
            self._offset = offset
            return
        with self._world.store.transaction() as tx:
            # At the start nobody knows what the clock did meanwhile.
            tx.episodes.wake(clock.now(), beyond=_FAR if before is None else 0.0)
            if before is not None:
                step = offset - before
                way = "ahead" if step > 0 else "back"
                said = f"the machine's clock was set {way} by {format_duration(abs(step))}"
                tx.audit(
                    Draft(
                        "clock_stepped",
                        f"{said}; what waits is decided anew",
                        severity="warning",
                        data={"seconds": step},
                    )
                )
        self._offset = offset
