"""A bench with servers that count their tokens, probed every 5 s, and cards that draw power."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from remediator.engine.prober import Prober
from remediator.engine.progress_watch import ProgressWatch
from remediator.errors import ServiceTimeout
from remediator.services import LoadedModel, ServiceProbe
from remediator.targets import Target
from tests.remediator.engine.bench import Bench
from tests.remediator.engine.fakes import Card, FakeClock, FakeDriver, FakeManager

LIMIT = 400.0


@dataclass
class PoweredCard(Card):
    """A card that draws less than its limit; what hangs draws little."""

    draws: float = 80.0
    recovery_action: str | None = "none"

    def reading(self) -> dict[str, Any]:
        raw = super().reading()
        raw["power"] = {"draw_w": self.draws, "limit_w": self.watts}
        return raw | {"recovery_action": self.recovery_action}


class Engine(FakeDriver):
    """A server that works on its requests, unless it is stuck; a new process is well."""

    kind = "engine"

    def __init__(self, manager: FakeManager, clock: FakeClock) -> None:
        super().__init__(manager)
        self._clock = clock
        self._counted_at = clock.passed
        self._tokens = 0.0
        self.running = 1
        self.waiting = 0
        self.rate = 20.0
        self.stuck = False
        self.state = "ready"
        self.loads_at_start = True
        self.models = {"qwen"}

    def probe(self) -> ServiceProbe:
        if self.forced is not None:
            return self.forced
        if self._manager.identity is None:
            return ServiceProbe("refused", "the connection was refused")
        if self._manager.identity != self._seen:
            self._seen, self._tokens, self.stuck = self._manager.identity, 0.0, False
        self._count()
        models = tuple(LoadedModel(name, None) for name in sorted(self.models))
        return ServiceProbe(self.state, "", models, self.running, self.waiting, round(self._tokens))

    def canary(self, model: str, timeout: float) -> float:
        self.canaries.append(model)
        self.probe()
        if self.stuck:
            self._clock.advance(timeout)
            raise ServiceTimeout("no answer")
        self._tokens += 1
        return 0.1

    def _count(self) -> None:
        passed, self._counted_at = self._clock.passed - self._counted_at, self._clock.passed
        if not self.stuck and self.running:
            self._tokens += passed * self.rate


class Scene:
    """Saturated cards, services on all of them, and the prober's looks."""

    def __init__(self, bench: Bench, *, engines: tuple[str, ...] = ("vllm",)) -> None:
        self.bench = bench
        for uuid in bench.uuids:
            bench.cards[uuid] = PoweredCard(uuid, watts=LIMIT, saturated_seconds=45.0)
        for name in engines:
            bench.drivers[name] = Engine(bench.managers[name], bench.clock)
        self.wire()
        self._look()

    def wire(self) -> None:
        self.bench._wire()
        self.bench.prober = Prober(self.bench.world, (ProgressWatch(self.bench.world),))

    @property
    def engine(self) -> Engine:
        return self.bench.drivers["vllm"]

    @property
    def card(self) -> PoweredCard:
        return self.bench.card

    @property
    def calls(self) -> list[str]:
        return self.bench.managers["vllm"].calls

    @property
    def restarts(self) -> int:
        return sum(call.startswith("stop") for call in self.calls)

    def at(self, seconds: float, what: Callable[[], object]) -> None:
        """Let something happen so many seconds from now."""
        self.bench.clock.at(self.bench.clock.passed + seconds, what)

    def finding(self, target: Target | None = None) -> Any:
        evidence = self.bench.playbooks.by_name["recover-hang"].evidence
        return evidence.read(self.bench.world, target or Target("gpu", self.bench.uuids[0]))

    def _look(self) -> None:
        for service in self.bench.world.services.values():
            self.bench.prober.probe(service)
        self.at(5.0, self._look)


def stall(scene: Scene) -> None:
    scene.engine.stuck = True
    scene.engine.waiting = 3
