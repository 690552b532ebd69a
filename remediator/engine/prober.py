"""Asks every service how it is, beside everything else; what it says becomes `llm_service_*`."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from remediator.engine.watchers import ServiceView, Watcher
from remediator.errors import ManagerError, StorageError
from remediator.managers import ProcessStatus
from remediator.services import ServiceProbe
from remediator.store import Draft
from remediator.targets import Target
from remediator.world import Service, World

log = logging.getLogger(__name__)


class Prober:
    """One probing loop a service; the newest view of each."""

    def __init__(self, world: World, watchers: Sequence[Watcher] = ()) -> None:
        self._world = world
        self._watchers = watchers
        # By when each was seen: by the monotonic clock, for the other one may be set.
        self._views: dict[str, tuple[float, ServiceView]] = {}
        # Since when (monotonic seconds) each says that it comes up.
        self._loading_since: dict[str, float] = {}
        self._remembered: dict[str, tuple[str, ...]] = {}
        # What was last said of managers that do not answer: not again at every probe.
        self._complaints: dict[str, str] = {}

    @property
    def views(self) -> dict[str, ServiceView]:
        """The newest view of every service, where it is not too old to say how the service is."""
        since = self._world.clock.monotonic() - self._world.config.timing.probe_max_age
        return {name: view for name, (at, view) in dict(self._views).items() if at >= since}

    def run(self, service: Service, stopping: threading.Event) -> None:
        """Probe `service` until `stopping` is set."""
        while not stopping.is_set():
            try:
                self.probe(service)
            except StorageError:
                log.exception("a probe could not be kept service=%s", service.name)
            except Exception:
                # A driver's bug must not end the watch over its service.
                log.exception("a probe failed service=%s", service.name)
            self._world.clock.wait(stopping, self._world.config.timing.probe_interval)

    def probe(self, service: Service) -> ServiceView:
        """Look once."""
        probe = service.driver.probe()
        status = self._status(service)
        loading = self._loading_seconds(service.name, probe)
        view = ServiceView(probe, status, _up(probe, status), self._world.clock.now(), loading)
        self._views[service.name] = (self._world.clock.monotonic(), view)
        if probe.state == "ready":
            self._remember(service, tuple(sorted(model.name for model in probe.models)))
            self._release_if_started(service, status)
        for watcher in self._watchers:
            watcher.saw(service, view)
        return view

    def _status(self, service: Service) -> ProcessStatus | None:
        """What the manager says, None where it does not answer; the log hears of changes only."""
        try:
            status = service.manager.status()
        except ManagerError as error:
            if self._complaints.get(service.name) != str(error):
                self._complaints[service.name] = str(error)
                log.warning("the manager does not answer service=%s error=%s", service.name, error)
            return None
        if self._complaints.pop(service.name, None) is not None:
            log.info("the manager answers again service=%s", service.name)
        return status

    def _loading_seconds(self, name: str, probe: ServiceProbe) -> float | None:
        # One that is busy with loading may miss a look: that ends nothing.
        if probe.state == "silent":
            return None
        if probe.state != "loading":
            self._loading_since.pop(name, None)
            return 0.0
        now = self._world.clock.monotonic()
        return now - self._loading_since.setdefault(name, now)

    def _remember(self, service: Service, models: tuple[str, ...]) -> None:
        """What was loaded when it was last well; never while a run is at work on it."""
        if self._remembered.get(service.name) == models:
            return
        with self._world.store.transaction() as tx:
            if tx.runs.holders((Target("service", service.name),)):
                return
            tx.inventory.remember_models(service.name, models)
        self._remembered[service.name] = models

    def _release_if_started(self, service: Service, status: ProcessStatus | None) -> None:
        """A hold is over once somebody has started the service since; a run at work ends its own."""
        identity = None if status is None else status.identity
        if identity is None or not self._is_held_since_before(service.name, identity.started_at):
            return
        target = Target("service", service.name)
        with self._world.store.transaction() as tx:
            record = tx.inventory.service(service.name)
            if record.held_since is None or tx.runs.holders((target,)):
                return
            tx.inventory.release(service.name)
            tx.audit(
                Draft(
                    "released",
                    f"somebody started {service.name} ({identity.told}): it is no longer held "
                    f"by {record.held_by} ({record.held_reason})",
                    target=target.key,
                    reason="started",
                )
            )

    def _is_held_since_before(self, name: str, moment: float) -> bool:
        with self._world.store.reading() as tx:
            since = tx.inventory.service(name).held_since
        return since is not None and since < moment


def _up(probe: ServiceProbe, status: ProcessStatus | None) -> bool | None:
    """Refused, dead or exited is down; silent is not; a server's own error answer is up."""
    if probe.state in ("refused", "dead"):
        return False
    if probe.is_up or probe.state == "error":
        return True
    if status is not None and status.state in ("stopped", "exited", "failed"):
        return False
    return True if status is not None and status.running else None
