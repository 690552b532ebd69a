"""A remediator's engine on a bench: every part real but time, cards, servers and processes."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import Any

from remediator.alertmanager import Alert, Notification
from remediator.config import Config, ServiceConfig
from remediator.config.strict import build
from remediator.counters import Counters
from remediator.engine.emergency import EmergencyStop
from remediator.engine.evaluator import Evaluator
from remediator.engine.executor import Executor
from remediator.engine.housekeeping import Housekeeper
from remediator.engine.leases import LeaseKeeper
from remediator.engine.prober import Prober
from remediator.engine.worker import Worker
from remediator.errors import StorageError
from remediator.intake import Intake
from remediator.playbooks import Playbooks, load
from remediator.store import Incident, Lease, Run, Step, Store
from remediator.targets import Target
from remediator.world import Service, World
from tests.remediator.engine.fakes import (
    Card,
    Disk,
    FakeClock,
    FakeControl,
    FakeDriver,
    FakeGpus,
    FakeManager,
    FlakyStore,
)

GPU = "GPU-00000000-0000-0000-0000-000000000000"
KEY = b"k" * 64
EVERYTHING = ["service_restart", "service_stop"]
_LOADED: dict[str, Playbooks] = {}


def playbooks_of(config: Config) -> Playbooks:
    """Its playbooks; read once in a process for what so many benches have in common."""
    key = repr(config.playbooks)
    if key not in _LOADED:
        _LOADED[key] = load(config.playbooks)
    known = _LOADED[key]
    return Playbooks(dict(known.by_name), dict(known.by_alert))


class Bench:
    """The engine, step by step in the calling thread."""

    def __init__(
        self,
        directory: Path,
        *,
        mode: str = "auto",
        allow: list[str] | None = None,
        gpus: int = 1,
        services: tuple[str, ...] = (),
        playbooks: dict[str, Any] | None = None,
        timing: dict[str, str] | None = None,
        limits: dict[str, Any] | None = None,
    ) -> None:
        self.clock = FakeClock()
        self.uuids = [GPU[:-1] + str(index) for index in range(gpus)]
        self.cards = {uuid: Card(uuid) for uuid in self.uuids}
        self.gpus = FakeGpus(self.clock, self.cards)
        self.control = FakeControl(self.cards)
        raw = {
            "state_dir": str(directory),
            "mode": mode,
            "allow": EVERYTHING if allow is None else allow,
            "playbooks": playbooks or {},
            "timing": {"hold_down": "60s", **(timing or {})},
            "limits": limits or {},
        }
        self.config = build(Config, raw, "")
        self.managers = {name: FakeManager(self.clock) for name in services}
        self.drivers = {name: FakeDriver(self.managers[name]) for name in services}
        self.directory = directory
        self.disk = Disk()
        self._firing_since: dict[tuple[str | None, ...], float] = {}
        self.restarts_on_failure = False
        self.store: Store = FlakyStore(self.disk, directory, KEY, self.clock)
        # Further parts of the world, by their names there; they survive a restart.
        self.hardware: dict[str, Any] = {}
        self._wire()

    @property
    def card(self) -> Card:
        return self.cards[self.uuids[0]]

    def _wire(self) -> None:
        services = {
            name: Service(
                ServiceConfig(name, "fake", "http://127.0.0.1:1", {}, gpus="all"),
                self.drivers[name],
                self.managers[name],
            )
            for name in self.managers
        }
        self.world = World(
            self.config,
            self.clock,
            self.store,
            self.gpus,
            self.control,
            services,
            threading.Event(),
            **self.hardware,
        )
        self.playbooks = playbooks_of(self.config)
        self.counters = Counters()
        self.intake = Intake(self.store, self.clock, self.counters)
        self.evaluator = Evaluator(self.world, self.playbooks, self.counters)
        self.executor = Executor(self.world, self.playbooks, self.counters)
        self.leases = LeaseKeeper(self.world, self.counters)
        self.prober = Prober(self.world)
        self.housekeeper = Housekeeper(self.world, self.executor)
        self.emergency = EmergencyStop(self.world, self.evaluator)

    def restart(self) -> None:
        """A new process over the same state directory; nothing in memory survives."""
        self.store.close()
        self.store = FlakyStore(self.disk, self.directory, KEY, self.clock)
        self._wire()

    def worker(self) -> Worker:
        return Worker(
            self.world, self.evaluator, self.executor, self.leases, self.prober, self.counters
        )

    # what Alertmanager says

    def fire(
        self,
        alertname: str,
        *,
        uuid: str | None = None,
        service: str | None = None,
        ago: float | None = None,
        job: str = "gpu-exporter",
    ) -> None:
        """It fires since so many seconds; without that, since when it fired before, or since 5 s."""
        key = (alertname, uuid, service, job)
        if ago is not None or key not in self._firing_since:
            self._firing_since[key] = self.clock.now() - (5 if ago is None else ago)
        self._notify("firing", alertname, uuid, service, self._firing_since[key], None, job)

    def resolve(
        self, alertname: str, *, uuid: str | None = None, service: str | None = None
    ) -> None:
        now = self.clock.now()
        started = self._firing_since.pop((alertname, uuid, service, "gpu-exporter"), now - 60)
        self._notify("resolved", alertname, uuid, service, started, now)

    def _notify(
        self,
        status: Any,
        alertname: str,
        uuid: str | None,
        service: str | None,
        starts_at: float,
        ends_at: float | None,
        job: str = "gpu-exporter",
    ) -> None:
        labels = {"alertname": alertname, "severity": "warning", "job": job}
        labels |= {"llm_service": service} if service else {"uuid": uuid or self.uuids[0]}
        fingerprint = hashlib.sha256(repr(sorted(labels.items())).encode()).hexdigest()[:16]
        alert = Alert(fingerprint, status, labels, {}, starts_at, ends_at)
        notification = Notification("remediator", "", 0, (alert,), "digest")
        try:
            self.intake.accept(notification)
        except StorageError:
            self.emergency.told(notification)
            raise

    # one look of each loop

    def evaluate(self) -> list[int]:
        """Decide about every due episode; the runs to execute."""
        with self.store.reading() as tx:
            due = tx.episodes.due(self.clock.now())
        found = (self.evaluator.evaluate(episode) for episode in due)
        return [run for run in found if run is not None]

    def execute(self) -> None:
        """Carry every run on that may go on."""
        with self.store.reading() as tx:
            active = tx.runs.active()
        for run in active:
            self.executor.execute(run.id)

    def act(self) -> None:
        """Decide, and carry out what was decided."""
        self.evaluate()
        self.execute()

    def tick_leases(self) -> None:
        self.leases.tick()

    def tick_housekeeper(self) -> None:
        self.housekeeper.tick()

    def tick_emergency(self) -> None:
        self.emergency.tick()

    def pass_time(self, seconds: float, *, step: float = 1.0) -> None:
        """Let every loop look once a second for so long; a failing store is tried again."""
        for _ in range(round(seconds / step)):
            self.clock.advance(step)
            for look in ("act", "tick_leases", "tick_housekeeper", "tick_emergency"):
                try:
                    getattr(self, look)()
                except StorageError:
                    if self.restarts_on_failure:
                        self.restart()

    # what is kept

    @property
    def runs(self) -> list[Run]:
        with self.store.reading() as tx:
            return list(reversed(tx.runs.latest(1000)))

    @property
    def run(self) -> Run:
        (one,) = self.runs
        return one

    def run_of(self, number: int) -> Run:
        return next(run for run in self.runs if run.id == number)

    def steps(self, run_id: int | None = None) -> list[Step]:
        wanted = self.run.id if run_id is None else run_id
        with self.store.reading() as tx:
            return list(tx.runs.steps(wanted))

    @property
    def open_leases(self) -> list[Lease]:
        with self.store.reading() as tx:
            return list(tx.leases.open_all())

    def incident(self, alertname: str, target: Target | None = None) -> Incident | None:
        with self.store.reading() as tx:
            return tx.incidents.open_for(alertname, target or Target("gpu", self.uuids[0]))

    @property
    def audit(self) -> list[dict[str, Any]]:
        with self.store.reading() as tx:
            return [dict(record.record) for record in tx.audit_records(limit=100_000)]

    def events(self, name: str) -> list[dict[str, Any]]:
        return [record for record in self.audit if record["event"] == name]

    @property
    def decisions(self) -> list[str]:
        return [
            f"{record['data']['decision']}:{record['reason']}" for record in self.events("decision")
        ]

    def audit_holds(self) -> bool:
        with self.store.reading() as tx:
            return tx.verify_audit().broken_at is None

    @property
    def written_watts(self) -> list[float]:
        return [write.milliwatts / 1000 for write in self.control.writes]

    def close(self) -> None:
        self.store.close()
