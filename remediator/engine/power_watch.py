"""Learns what each card draws at work and at rest, from moments in which that is known."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from remediator.engine.watchers import ServiceView
from remediator.errors import NoEvidence
from remediator.policy.power_bands import Conditions, Learned, State
from remediator.power import limit_of
from remediator.readings import GpuReading
from remediator.world import Service, World

log = logging.getLogger(__name__)

_DRIVER = Path("/sys/module/nvidia/version")
# Between two tokens a card rests, so only one that is all but saturated shows what work draws; and
# one whose counter is latched does not show what rest draws.
_AT_WORK = 0.9
_AT_REST = 0.05
# Requests and tokens, or neither, for as long as this: two looks at the usual interval.
_LASTING = 10.0
# What a restart of the remediator may lose of hours of samples.
_EVERY_SAVE = 1800.0


@dataclass(frozen=True)
class _Seen:
    """What a service was doing when it was last seen; `at` by the monotonic clock."""

    at: float
    doing: Literal["working", "resting", "unknown"]


class PowerWatch:
    """`Watcher` that keeps `World.power`; comes after the one that keeps `World.progress`.

    A card is at work where it is all but saturated while a server on it has requests and its
    counter moves; at rest where it is hardly used and either no process is on it or no server on it
    has a request. A server without engine metrics proves neither.
    """

    def __init__(self, world: World, driver_version: Callable[[], str] | None = None) -> None:
        self._world = world
        self._driver_version = driver_version or _driver_version
        self._turn = threading.Lock()
        self._seen: dict[str, _Seen] = {}
        self._looked_at: float | None = None
        self._saved_at = world.clock.monotonic()
        self._unsaved: set[str] = set()

    def saw(self, service: Service, view: ServiceView) -> None:
        """Note what the service does, and look at the cards unless that was done a moment ago."""
        at = self._world.clock.monotonic()
        self._seen[service.name] = _Seen(at, self._doing(service, view))
        # An exporter that is slow to answer delays the probing of one service only.
        if not self._turn.acquire(blocking=False):
            return
        try:
            half = self._world.config.timing.probe_interval / 2
            if self._looked_at is None or not 0 <= at - self._looked_at < half:
                self._looked_at = at
                self._look(at)
                self._save(at)
        finally:
            self._turn.release()

    def _doing(
        self, service: Service, view: ServiceView
    ) -> Literal["working", "resting", "unknown"]:
        if view.probe.state in ("refused", "dead"):
            gone = view.status is not None and view.status.identity is None
            return "resting" if gone else "unknown"
        standing = self._world.progress.kept(service.name)
        if view.probe.state != "ready" or view.probe.progress is None or standing is None:
            return "unknown"
        if view.probe.requests_in_flight == 0 and standing.still_seconds >= _LASTING:
            return "resting"
        lasting = (standing.demand_seconds or 0.0) >= _LASTING
        return "working" if lasting and (standing.moved or 0.0) > 0 else "unknown"

    def _look(self, at: float) -> None:
        timing = self._world.config.timing
        try:
            readings = self._world.gpus.all()
        except NoEvidence as error:
            log.debug("no power was read why=%s", error)
            return
        driver = self._driver_version()
        for reading in readings:
            limit = limit_of(reading)
            if reading.fresh(timing.reading_max_age) and limit is not None:
                self._recall(reading.uuid)
                conditions = Conditions(limit, driver)
                now = self._world.clock.now()
                self._world.power.saw(reading, conditions, now, at, timing.probe_max_age)
                self._learn(reading, now, at)

    def _learn(self, reading: GpuReading, now: float, at: float) -> None:
        learned, state = self._world.power.learned(reading.uuid), self._state(reading, at)
        if state is None or learned is None or reading.power_watts is None:
            return
        more = learned.with_sample(state, now, reading.power_watts)
        if more is not learned:
            self._world.power.keep(reading.uuid, more)
            self._unsaved.add(reading.uuid)

    def _state(self, reading: GpuReading, at: float) -> State | None:
        used = reading.utilization_ratio
        if used is None:
            return None
        doing = [self._now(service, at) for service in self._world.services_on(reading.uuid)]
        if used >= _AT_WORK:
            return "busy" if "working" in doing else None
        if used > _AT_REST:
            return None
        rests = bool(doing) and all(one == "resting" for one in doing)
        return "idle" if rests or reading.processes == () else None

    def _now(self, service: Service, at: float) -> str:
        seen = self._seen.get(service.name)
        recent = seen is not None and at - seen.at <= 2 * self._world.config.timing.probe_interval
        return seen.doing if seen is not None and recent else "unknown"

    def _recall(self, uuid: str) -> None:
        """What was learned before the remediator was started; another limit discards it later."""
        if self._world.power.learned(uuid) is not None:
            return
        with self._world.store.reading() as tx:
            text = tx.get_meta(_key(uuid))
        if text is None:
            return
        try:
            self._world.power.keep(uuid, Learned.from_json(json.loads(text)))
        except (KeyError, TypeError, ValueError):
            log.warning("what was learned of the power of %s cannot be used; it begins anew", uuid)

    def _save(self, at: float) -> None:
        if not self._unsaved or at - self._saved_at < _EVERY_SAVE:
            return
        self._saved_at = at
        known = {uuid: self._world.power.learned(uuid) for uuid in self._unsaved}
        with self._world.store.transaction() as tx:
            for uuid, learned in known.items():
                if learned is not None:
                    tx.set_meta(_key(uuid), json.dumps(learned.to_json()))
        self._unsaved.clear()


def _driver_version() -> str:
    """The version of the driver that is loaded; empty where it is not NVIDIA's, or not told."""
    try:
        return _DRIVER.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def _key(uuid: str) -> str:
    return f"power_bands:{uuid}"
