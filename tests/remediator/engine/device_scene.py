"""Cards with device faults on a bench: what the driver asks for, who holds them, and their reset."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from remediator.errors import ControlError
from remediator.gpu_reset import Check, Client
from tests.remediator.engine.bench import Bench
from tests.remediator.engine.fakes import Card, FakeManager

ALLOWED = ["service_restart", "service_stop", "gpu_reset"]
RECOVERY = "GPURecoveryActionRequired"
XID = "GPUXidCritical"
LOST = "GPULost"
HOT = "GPUTemperatureShutdown"
ALL_CHECKS = [
    "one_card",
    "device_fault",
    "first_reset",
    "others_cool",
    "control",
    "exporter_release",
    "strangers",
]

WHOLE = [
    ("preflight_reset", "done"),
    ("stop_service", "done"),
    ("reset_gpu", "done"),
    ("start_service", "done"),
    ("wait_ready", "done"),
    ("load_models", "done"),
    ("canary", "done"),
]


@dataclass
class FaultyCard(Card):
    """A card whose processes are those of the services that run, and of strangers."""

    recovery_action: str | None = "none"
    xids: list[dict[str, Any]] | None = field(default_factory=list)
    managers: dict[str, FakeManager] = field(default_factory=dict)
    strangers: dict[int, str] = field(default_factory=dict)
    released: bool = False
    model: str = "NVIDIA A100-SXM4-40GB"

    def reading(self) -> dict[str, Any]:
        fault = "released" if self.released else self.fault
        up = fault is None
        return super().reading() | {
            "name": self.model,
            "up": up,
            "fault": fault,
            "recovery_action": self.recovery_action if up else None,
            "xid_errors": self.xids,
        }

    def _processes(self) -> list[dict[str, Any]]:
        pids = {m.identity.pid: name for name, m in self.managers.items() if m.identity}
        return [{"pid": pid, "process": name} for pid, name in (pids | self.strangers).items()]


class FakeReset:
    """`CardReset` over those cards; what it does can be made to go wrong."""

    name = "fake"

    def __init__(self, bench: DeviceBench) -> None:
        self._bench = bench
        self.resets: list[str] = []
        self.does: Callable[[str], bool] | None = None
        self.refuses: Check | None = None
        self.holders: tuple[Client, ...] = ()

    def checks(self, uuid: str) -> tuple[Check, ...]:
        return (self.refuses or Check("control", passed=True, answer="the fake"),)

    def clients(self, uuid: str) -> tuple[Client, ...]:
        assert all(card.released for card in self._bench.faulty.values())
        return self.holders

    def reset(self, uuid: str, timeout: float) -> bool:
        assert all(card.released for card in self._bench.faulty.values())
        assert not any(m.identity for m in self._bench.managers.values()), "a service is up"
        self.resets.append(uuid)
        return (self.does or self.works)(uuid)

    def works(self, uuid: str) -> bool:
        card = self._bench.faulty[uuid]
        card.recovery_action, card.fault, card.watts = "none", None, 400.0
        return True

    def describe(self, uuid: str) -> str:
        return f"reset {uuid}"


class FakeRelease:
    """The exporter's release handshake."""

    def __init__(self, bench: DeviceBench) -> None:
        self._bench = bench
        self.refusal: str | None = None
        self.missing: str | None = None
        self.keeps = False
        self.calls: list[str] = []

    def why_not(self) -> str | None:
        return self.missing

    def let_go(self, seconds: float) -> None:
        self.calls.append("let go")
        if self.refusal:
            raise ControlError(self.refusal)
        self._set(released=True)

    def give_back(self) -> None:
        self.calls.append("give back")
        if self.keeps:
            raise ControlError("the exporter did not answer")
        self._set(released=False)

    def _set(self, *, released: bool) -> None:
        for card in self._bench.faulty.values():
            card.released = released


class DeviceBench(Bench):
    """A bench whose cards can be reset."""

    def __init__(self, directory: Path, **more: Any) -> None:
        more.setdefault("allow", ALLOWED)
        more.setdefault("services", ("ollama",))
        super().__init__(directory, **more)
        self.faulty = {uuid: FaultyCard(uuid, managers=self.managers) for uuid in self.uuids}
        self.cards.update(self.faulty)
        self.reset, self.release = FakeReset(self), FakeRelease(self)
        self.hardware = {"card_reset": self.reset, "release": self.release}
        for number, manager in enumerate(self.managers.values(), start=1):
            manager.renumber(1000 * number)
        for driver in self.drivers.values():
            driver.probe()
        # The machine was booted a while ago: what happened since is no old news.
        self.clock.advance(1000)
        self._wire()

    @property
    def card(self) -> FaultyCard:
        return self.faulty[self.uuids[0]]

    def asks_for(self, action: str | None, alert: str = RECOVERY) -> None:
        """The driver asks for it, and the alert fires."""
        self.card.recovery_action = action
        self.fire(alert)

    def had_xid(self, xid: int, action: str, ago: float = 5.0) -> None:
        """The card has reported an Xid so long ago; its driver gives no recovery action."""
        self.card.recovery_action = None
        seen = {"xid": xid, "last_timestamp": self.clock.now() - ago, "action": action}
        self.card.xids = [*(self.card.xids or []), seen]
        self.fire(XID)

    @property
    def done(self) -> list[tuple[str, str]]:
        """Action and outcome of each step of the only run."""
        return [(step.action, step.state) for step in self.steps()]

    def calls(self, name: str = "ollama") -> list[str]:
        """What its manager was asked to do, without pids."""
        return [call.split()[0] for call in self.managers[name].calls]

    def held(self, name: str = "ollama") -> str | None:
        with self.store.reading() as tx:
            return tx.inventory.service(name).held_reason


def refuse(words: str) -> Any:
    def refuses(uuid: str) -> bool:
        raise ControlError(words)

    return refuses


def end(bench: DeviceBench) -> tuple[str, str]:
    return bench.run.state, bench.run.reason


def later(bench: DeviceBench, seconds: float, what: Callable[[], object]) -> None:
    bench.clock.at(bench.clock.passed + seconds, what)


def heat(bench: DeviceBench, celsius: float, number: int = 0) -> None:
    bench.cards[bench.uuids[number]].celsius = celsius
