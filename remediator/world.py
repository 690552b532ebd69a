"""The world as the remediator can read it: GPUs, services, their managers, and the clock."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from remediator.clock import Clock
from remediator.config import Config, ServiceConfig
from remediator.exporter_client import GpuReader
from remediator.exporter_release import NoRelease, Release
from remediator.gpu_control import GpuControl
from remediator.gpu_reset import CardReset, NoReset
from remediator.managers import ProcessManager
from remediator.power import PowerLog
from remediator.progress import ProgressLog
from remediator.run_ages import Ages
from remediator.services import ServiceDriver
from remediator.sightings import Sightings
from remediator.store import Store


@dataclass(frozen=True)
class Service:
    """One LLM service: its configuration, its server driver and its process manager."""

    config: ServiceConfig
    driver: ServiceDriver
    manager: ProcessManager

    @property
    def name(self) -> str:
        """The service's name in the inventory."""
        return self.config.name

    def uses(self, uuid: str) -> bool:
        """Whether the service is configured to use this card."""
        return self.config.gpus == "all" or uuid in self.config.gpus


class Knobs:
    """One writer a card: a cap and the undo of an earlier one never interleave."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}

    def of(self, uuid: str) -> threading.Lock:
        """The lock of the card `uuid`."""
        with self._guard:
            return self._locks.setdefault(uuid, threading.Lock())

    @contextlib.contextmanager
    def quiet(self, uuids: Iterable[str], timeout: float) -> Iterator[None]:
        """Let nobody of ours write to these cards meanwhile: a write holds the whole driver open.

        A writer that does not end within `timeout` seconds is not waited for any longer.
        """
        locks = [self.of(uuid) for uuid in sorted(uuids)]
        held = [lock for lock in locks if lock.acquire(timeout=timeout)]
        try:
            yield
        finally:
            for lock in held:
                lock.release()


@dataclass
class World:
    """Everything that can be read and acted on; `stopping` is set when the remediator shuts down.

    A reload changes it in place (`adopt`). Whoever must not see that in the middle of something, as
    a run or a decision, works on a `snapshot`.
    """

    config: Config
    clock: Clock
    store: Store
    gpus: GpuReader
    control: GpuControl
    services: Mapping[str, Service]
    stopping: threading.Event
    knobs: Knobs = field(default_factory=Knobs)
    card_reset: CardReset = field(default_factory=lambda: NoReset("no reset is configured"))
    release: Release = field(default_factory=NoRelease)
    progress: ProgressLog = field(default_factory=ProgressLog)
    power: PowerLog = field(default_factory=PowerLog)
    ages: Ages = field(default_factory=Ages)
    sightings: Sightings = field(default_factory=Sightings)
    _turn: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def snapshot(self) -> World:
        """The world as it is now, which no reload changes."""
        with self._turn:
            return copy.copy(self)

    def adopt(self, other: World) -> None:
        """Put the configuration of `other` in force, with what was built from it."""
        with self._turn:
            self.config, self.services = other.config, other.services
            self.gpus, self.control = other.gpus, other.control
            self.card_reset, self.release = other.card_reset, other.release

    def services_on(self, uuid: str) -> tuple[Service, ...]:
        """The configured services that use this card, by name."""
        return tuple(s for _, s in sorted(self.services.items()) if s.uses(uuid))
