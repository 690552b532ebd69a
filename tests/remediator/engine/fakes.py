"""In-memory stand-ins for time, cards, their control, servers and process managers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from remediator.errors import (
    ControlError,
    ManagerError,
    NoEvidence,
    OutcomeUnknown,
    ServiceError,
    ServiceTimeout,
    StorageError,
)
from remediator.gpu_control import PowerState
from remediator.host_reading import HostReading, parse_host
from remediator.managers import ProcessIdentity, ProcessStatus
from remediator.readings import GpuReading, parse_gpu
from remediator.services import LoadedModel, ServiceProbe
from remediator.store import Transaction
from tests.remediator.quick_store import QuickStore

START = 1_763_760_000.0


class FakeClock:
    """Stands still until somebody waits; what is due while they wait happens first."""

    def __init__(self) -> None:
        self.passed = 0.0
        self.set_by = 0.0
        """By how much somebody has set the wall clock (seconds)."""
        self._due: list[tuple[float, Callable[[], object]]] = []

    def now(self) -> float:
        return START + self.passed + self.set_by

    def monotonic(self) -> float:
        return self.passed

    def at(self, seconds: float, what: Callable[[], object]) -> None:
        """Let something happen when so many seconds have passed since the start."""
        self._due.append((seconds, what))
        self._due.sort(key=lambda due: due[0])

    def advance(self, seconds: float) -> None:
        end = self.passed + seconds
        while self._due and self._due[0][0] <= end:
            moment, what = self._due.pop(0)
            self.passed = max(self.passed, moment)
            what()
        self.passed = max(self.passed, end)

    def wait(self, event: threading.Event, seconds: float) -> bool:
        if event.is_set():
            return True
        self.advance(max(0.0, seconds))
        return event.is_set()


@dataclass
class Card:
    """One card; its temperature may follow its power limit."""

    uuid: str
    celsius: float | Callable[[float], float] = 60.0
    watts: float = 400.0
    fault: str | None = None
    age: float = 0.4
    health: str = "healthy"
    saturated_seconds: float | None = 0.0
    memory_used: int = 10 * 2**30
    memory_held_for: float = 3600.0
    memory_of: dict[int, int] | None = None
    budget: bool = False
    processes: int = 1

    def heat_by_power(self, *, full: float, capped: float, below_watts: float = 330.0) -> None:
        self.celsius = lambda watts: full if watts > below_watts else capped

    @property
    def temperature(self) -> float:
        return self.celsius(self.watts) if callable(self.celsius) else self.celsius

    def reading(self) -> dict[str, Any]:
        up = self.fault is None
        return {
            "index": 0,
            "uuid": self.uuid,
            "name": "NVIDIA A100-SXM4-40GB",
            "up": up,
            "fault": self.fault,
            "temperature": self.temperature if up else None,
            "utilization": 99.0 if up else None,
            "memory": {"used_bytes": self.memory_used if up else None, "total_bytes": 40 * 2**30},
            "power": {"draw_w": self.watts if up else None, "limit_w": self.watts if up else None},
            "health": self.health,
            "age_seconds": self.age,
            "thresholds": {
                "temperature_celsius": {"warning": 83, "critical": 85, "shutdown": 90},
                "memory_bytes": {"warning": 36 * 2**30, "critical": 38 * 2**30}
                | ({"max": 40 * 2**30} if self.budget else {}),
                "saturation": {"ratio": 0.99, "seconds": 30},
            },
            "saturated_seconds": self.saturated_seconds if up else None,
            "processes": self._processes(),
        }

    def _processes(self) -> list[dict[str, Any]]:
        """The memory of each pid of `memory_of`, or else processes that nothing is said of."""
        if self.memory_of is None:
            return [{"pid": 100 + i, "process": "ollama"} for i in range(self.processes)]
        return [
            {"pid": pid, "process": "ollama", "memory_used_bytes": used}
            for pid, used in self.memory_of.items()
        ]


class FakeGpus:
    """`GpuReader` over cards; `silent` is an exporter that does not answer."""

    def __init__(self, clock: FakeClock, cards: dict[str, Card]) -> None:
        self.clock = clock
        self.cards = cards
        self.silent = False
        self.host_used_ratio: float | None = 0.5
        self.host_age = 0.0

    def all(self) -> tuple[GpuReading, ...]:
        self._answer()
        return tuple(self._read(card) for card in self.cards.values())

    def one(self, uuid: str) -> GpuReading:
        self._answer()
        if uuid not in self.cards:
            raise NoEvidence(f"the exporter does not know the GPU {uuid}")
        return self._read(self.cards[uuid])

    def _read(self, card: Card) -> GpuReading:
        return parse_gpu({**card.reading(), "timestamp": self.clock.now() - card.age})

    def temperatures(self, uuid: str, window: float) -> tuple[tuple[float, float], ...]:
        celsius = self.one(uuid).temperature
        now = self.clock.now()
        seconds = range(int(window), 0, -1)
        return () if celsius is None else tuple((now - second, celsius) for second in seconds)

    def memory_used(self, uuid: str, window: float) -> tuple[tuple[float, float], ...]:
        used = self.one(uuid).memory_used_bytes
        if used is None:
            return ()
        now, held = self.clock.now(), self.cards[uuid].memory_held_for
        seconds = range(int(window), 0, -1)
        return tuple((now - second, used if second <= held else 0.0) for second in seconds)

    def host(self) -> HostReading:
        self._answer()
        if self.host_used_ratio is None:
            raise NoEvidence("the exporter has no reading of the host")
        total = 256 * 2**30
        memory = {
            "total_bytes": total,
            "available_bytes": total * (1 - self.host_used_ratio),
            "used_ratio": self.host_used_ratio,
        }
        return parse_host({"memory": memory, "timestamp": self.clock.now() - self.host_age})

    def _answer(self) -> None:
        if self.silent:
            raise NoEvidence("the exporter did not answer")


@dataclass(frozen=True)
class Write:
    uuid: str
    milliwatts: int


class FakeControl:
    """`GpuControl` over the same cards; says afterwards what was written."""

    name = "fake"

    def __init__(self, cards: dict[str, Card]) -> None:
        self.cards = cards
        self.writes: list[Write] = []
        self.before_write: Callable[[Write], object] = lambda write: None
        self.ignores = False
        self.refusal: str | None = None
        self.hangs = False

    def power(self, uuid: str) -> PowerState:
        card = self.cards[uuid]
        if self.hangs:
            raise ControlError("the driver call did not end")
        if card.fault == "lost":
            raise ControlError(f"NVML: GPU is lost ({uuid})")
        return PowerState(round(card.watts * 1000), 400_000, 100_000, 400_000)

    def set_power_limit(self, uuid: str, milliwatts: int) -> None:
        write = Write(uuid, milliwatts)
        self.before_write(write)
        self.writes.append(write)
        if self.hangs:
            raise OutcomeUnknown("the driver call did not end within 1 s")
        if self.refusal:
            raise ControlError(self.refusal)
        if not self.ignores:
            self.cards[uuid].watts = milliwatts / 1000

    def describe_set_power_limit(self, uuid: str, milliwatts: int) -> str:
        return f"set {uuid} to {milliwatts} mW"


class FakeManager:
    """`ProcessManager` over a process that exists only here."""

    kind = "fake"
    unit = "fake"

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self._next_pid = 1001
        # It has been running for an hour: what it does is not the doing of a start.
        self.identity: ProcessIdentity | None = ProcessIdentity(1001, clock.now() - 3600)
        self.state = "running"
        self.calls: list[str] = []
        self.fails: str | None = None

    def renumber(self, pid: int) -> None:
        """Let its process have another pid than that of the next manager has."""
        self._next_pid = pid
        self.identity = ProcessIdentity(pid, self._clock.now() - 3600)

    def status(self) -> ProcessStatus:
        if self.fails:
            raise ManagerError(self.fails)
        return ProcessStatus(self.state, self.identity, self.state)

    def stop(self, identity: ProcessIdentity | None, timeout: float) -> None:
        if self.identity is None or (identity is not None and not identity.same(self.identity)):
            return
        self.calls.append(f"stop {self.identity.pid}")
        self.identity, self.state = None, "stopped"

    def start(self, timeout: float) -> ProcessIdentity:
        if self.identity is None:
            self._next_pid += 1
            self.identity = ProcessIdentity(self._next_pid, self._clock.now())
            self.state = "running"
            self.calls.append(f"start {self.identity.pid}")
        return self.identity

    def die(self) -> None:
        self.identity, self.state = None, "exited"

    def describe(self, verb: str) -> str:
        return f"{verb} it"


class FakeDriver:
    """`ServiceDriver` of a server that answers while its process runs."""

    kind = "fake"
    can_unload = False

    def __init__(self, manager: FakeManager) -> None:
        self._manager = manager
        self.models: set[str] = set()
        self.loads: list[str] = []
        self.canaries: list[str] = []
        self.canary_error: ServiceError | None = None
        self.forced: ServiceProbe | None = None
        self.sizes: dict[str, int] = {}
        self.expires: dict[str, float] = {}
        self.in_use: set[str] = set()
        self.unloads: list[str] = []
        self.when_unloaded: Callable[[str], object] = lambda model: None
        self.when_loaded: Callable[[str], object] = lambda model: None
        self._seen = manager.identity

    def probe(self) -> ServiceProbe:
        if self.forced is not None:
            return self.forced
        if self._manager.identity is None:
            return ServiceProbe("refused", "the connection was refused")
        if self._manager.identity != self._seen:
            self._seen = self._manager.identity
            self.models = set()
        models = tuple(
            LoadedModel(name, self.sizes.get(name), self.expires.get(name))
            for name in sorted(self.models)
        )
        return ServiceProbe("ready", f"{len(models)} model(s) loaded", models)

    def load(self, model: str, timeout: float) -> None:
        self.probe()
        self.loads.append(model)
        self.models.add(model)
        self.when_loaded(model)

    def unload(self, model: str, timeout: float) -> None:
        if not self.can_unload:
            raise ServiceError("this server cannot unload")
        self.unloads.append(model)
        if model in self.in_use:
            raise ServiceTimeout(f"{model} is still loaded; most likely it is in use")
        self.models.discard(model)
        self.when_unloaded(model)

    def canary(self, model: str, timeout: float) -> float:
        self.canaries.append(model)
        if self.canary_error is not None:
            raise self.canary_error
        return 0.1


class Disk:
    """Counts transactions, also over restarts; those in `fail_at` cannot be committed: it is full."""

    def __init__(self) -> None:
        self.transactions = 0
        self.fail_at: set[int] = set()


class FlakyStore(QuickStore):
    """A store on such a disk."""

    def __init__(self, disk: Disk, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._disk = disk

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Transaction]:
        self._disk.transactions += 1
        fails = self._disk.transactions in self._disk.fail_at
        with super().transaction() as tx:
            yield tx
            if fails:
                self.failing = True
                raise StorageError("the store could not commit: database or disk is full")
