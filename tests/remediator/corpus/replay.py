"""Runs a trace through the real watchers, signals and verdicts, at the speed of the trace.

Of Prometheus the expressions' numbers are used, read from prometheus/rules.yml, and its intervals.
"""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from exporter.policy import SaturationPolicy
from exporter.xids import Xid
from exporter.xids import table as xids_table
from remediator.config import Config, ServiceConfig
from remediator.config.strict import build
from remediator.durations import parse_duration
from remediator.engine.power_watch import PowerWatch
from remediator.engine.progress_watch import ProgressWatch
from remediator.engine.watchers import ServiceView
from remediator.errors import ServiceError, ServiceTimeout
from remediator.managers import ProcessIdentity, ProcessStatus
from remediator.playbooks import load
from remediator.policy.power_bands import Conditions, Learned
from remediator.readings import GpuReading, Process, XidSeen
from remediator.services import LoadedModel, ServiceProbe
from remediator.signals.device_fault import DeviceFault
from remediator.signals.hang import Hang
from remediator.store import Store
from remediator.targets import Target
from remediator.world import Service, World
from tests.remediator.corpus.traces import Trace

ROOT = Path(__file__).resolve().parents[3]
START = 1_763_760_000.0
_MODELS = (LoadedModel("m", None),)
_TOTAL = 80 * 2**30


@dataclass(frozen=True)
class Rules:
    """The numbers of the rules that a trace may make fire, in seconds."""

    scrape: float
    evaluation: float
    saturated: float
    stalled: float
    device_for: float
    critical_xids: frozenset[int]
    xids: Mapping[int, Xid]
    recheck: float


def rules() -> Rules:
    """As shipped; fails where an expression has another form than is replayed here."""
    raw = yaml.safe_load((ROOT / "prometheus" / "rules.yml").read_text())
    alerts = [rule for group in raw["groups"] for rule in group["rules"] if "alert" in rule]
    by_name = {rule["alert"]: rule for rule in reversed(alerts)}
    hang = " ".join(by_name["GPUHang"]["expr"].split())
    assert hang == (
        "max by (job, instance, uuid) (gpu_saturated_duration_seconds) >= "
        "max by (job, instance, uuid) (gpu_saturation_threshold_seconds)"
    )
    stalled = " ".join(by_name["LLMServiceStalled"]["expr"].split())
    windows = set(re.findall(r"(?:\[|offset )(\w+)", stalled))
    assert len(windows) == 1, stalled
    assert "changes(llm_service_progress_total[" in stalled
    assert "min_over_time(llm_service:llm_service_requests:sum[" in stalled
    xids = re.search(r'xid=~"([\d|]+)"', by_name["GPUXidCritical"]["expr"])
    assert xids is not None
    prometheus = yaml.safe_load((ROOT / "prometheus" / "prometheus.yml").read_text())["global"]
    return Rules(
        scrape=parse_duration(prometheus["scrape_interval"]),
        evaluation=parse_duration(prometheus["evaluation_interval"]),
        saturated=SaturationPolicy().seconds,
        stalled=parse_duration(windows.pop()) + parse_duration(by_name["LLMServiceStalled"]["for"]),
        device_for=parse_duration(by_name["GPULost"]["for"]),
        critical_xids=frozenset(int(xid) for xid in xids[1].split("|")),
        xids=xids_table(),
        recheck=load({}).by_name["recover-hang"].recheck,
    )


@dataclass
class Outcome:
    """What came of a trace: when, in seconds after `began`; None where it did not."""

    restarted: str | None = None
    restart_at: float | None = None
    named_at: float | None = None
    paged_at: float | None = None
    device_at: float | None = None
    reads: int = 0


class _Clock:
    """Moves when somebody waits; the probing goes on meanwhile."""

    def __init__(self) -> None:
        self.passed = 0.0
        self.every: float = 5.0
        self._next = 0.0
        self.look: Any = lambda: None

    def now(self) -> float:
        return START + self.passed

    def monotonic(self) -> float:
        return self.passed

    def wait(self, event: threading.Event, seconds: float) -> bool:
        self.advance(max(0.0, seconds))
        return event.is_set()

    def advance(self, seconds: float) -> None:
        end = self.passed + seconds
        while self._next <= end:
            self.passed = max(self.passed, self._next)
            self._next += self.every
            self.look()
        self.passed = max(self.passed, end)


class _Scene:
    """What the cards and services of a trace show now."""

    def __init__(self, trace: Trace, clock: _Clock, known: Rules) -> None:
        self.trace = trace
        self._clock, self._rules = clock, known
        self._rng = random.Random(trace.id)
        self._index, self._end = 0, float(trace.phases[0]["for"])
        self.began_at = 0.0
        self.uuids = [f"GPU-{n}" for n in range(trace.cards)]
        self._saturated: dict[int, float | None] = dict.fromkeys(range(trace.cards))
        self.number = 1
        self._enter()

    def phase(self) -> None:
        """Enter the phase that it is time for; time only goes forward."""
        while self._clock.passed >= self._end and self._index + 1 < len(self.trace.phases):
            self._index += 1
            self.began_at = self._end
            self._end += float(self.trace.phases[self._index]["for"])
            self._enter()

    def is_steady(self) -> bool:
        """Whether tokens flow or nobody asks for any, for another minute at the least."""
        if self._end - self._clock.passed < 60.0:
            return False
        return all(
            one.get("rate", 0.0) >= 1.0 or not (one.get("running") or one.get("waiting"))
            for one in self._services.values()
        )

    def _enter(self) -> None:
        phase = self.trace.phases[self._index]
        if phase.get("new_process"):
            self.number += 1
        others, services = phase.get("cards", {}), phase.get("services", {})
        self._cards = [{**phase, **others.get(str(n), {})} for n in range(self.trace.cards)]
        names = [one["name"] for one in self.trace.services]
        self._services = {name: {**phase, **services.get(name, {})} for name in names}
        for n, card in enumerate(self._cards):
            if card.get("util", 0.0) < 0.99:
                self._saturated[n] = None
            elif self._saturated[n] is None:
                self._saturated[n] = self.began_at

    def card(self, n: int) -> Mapping[str, Any]:
        self.phase()
        return self._cards[n]

    def of(self, name: str) -> Mapping[str, Any]:
        self.phase()
        return self._services[name]

    def saturated(self, n: int) -> float | None:
        card, since = self.card(n), self._saturated[n]
        if card.get("fault"):
            return None
        return 0.0 if since is None else self._clock.passed - since

    def reading(self, n: int) -> GpuReading:
        card = self.card(n)
        up = not card.get("fault")
        watts = self._rng.uniform(*card["watts"]) if up else None
        xid = card.get("xid")
        recovery = card.get("recovery") or "none"
        seen = () if xid is None else (self._xid(xid),)
        processes = tuple(Process(100 + i, "", "", None) for i in range(card.get("processes", 1)))
        return GpuReading(
            uuid=self.uuids[n],
            index=n,
            name="card",
            up=up,
            fault=card.get("fault"),
            temperature=60.0,
            utilization_ratio=card.get("util", 0.0) if up else None,
            memory_used_bytes=card.get("memory", 0.8) * _TOTAL,
            memory_total_bytes=_TOTAL,
            power_watts=watts,
            power_limit_watts=card.get("cap", self.trace.limit) if up else None,
            power_default_watts=self.trace.limit,
            power_min_watts=None,
            health="healthy",
            error="none",
            error_message="",
            timestamp=self._clock.now() - 0.5,
            age_seconds=0.5,
            saturated_seconds=self.saturated(n),
            temperature_thresholds={},
            memory_thresholds={},
            saturation_seconds=self._rules.saturated,
            processes=processes,
            recovery_action=None if recovery == "unsaid" or not up else recovery,
            xid_errors=seen,
        )

    def _xid(self, xid: int) -> XidSeen:
        row = self._rules.xids[xid]
        at = START + self.began_at + 0.5
        return XidSeen(xid, at, str(row.action), row.meaning, row.contested)


class _Gpus:
    """`GpuReader` over a scene."""

    def __init__(self, scene: _Scene) -> None:
        self._scene = scene

    def all(self) -> tuple[GpuReading, ...]:
        return tuple(self._scene.reading(n) for n in range(self._scene.trace.cards))

    def one(self, uuid: str) -> GpuReading:
        return self._scene.reading(self._scene.uuids.index(uuid))


class _Server:
    """`ServiceDriver` and `ProcessManager` over a scene."""

    kind = unit = "trace"
    can_unload = False

    def __init__(self, name: str, metrics: bool, scene: _Scene, clock: _Clock) -> None:
        self._name, self._metrics, self._scene, self._clock = name, metrics, scene, clock
        self._number, self._tokens, self._counted_at = 1, 0.0, 0.0
        self._identity = ProcessIdentity(1, START - 3600)

    def status(self) -> ProcessStatus:
        if self._scene.of(self._name).get("state") == "down":
            return ProcessStatus("stopped", None, "")
        return ProcessStatus("running", self._identity, "")

    def probe(self) -> ServiceProbe:
        now = self._scene.of(self._name)
        if self._number != self._scene.number:
            self._number, self._tokens = self._scene.number, 0.0
            self._identity = ProcessIdentity(self._number, START + self._scene.began_at)
        passed, self._counted_at = self._clock.passed - self._counted_at, self._clock.passed
        self._tokens += passed * now.get("rate", 0.0)
        state = now.get("state", "ready")
        if state in ("silent", "loading", "refused", "down"):
            return ServiceProbe("refused" if state == "down" else state, "")
        if not self._metrics:
            return ServiceProbe(state, "", _MODELS)
        running, waiting = now.get("running", 0), now.get("waiting", 0)
        return ServiceProbe(state, "", _MODELS, running, waiting, int(self._tokens))

    def canary(self, model: str, timeout: float) -> float:
        said = self._scene.of(self._name).get("canary", "answered")
        if said == "overloaded":
            raise ServiceError("the canary failed (HTTP 503): server busy, please try again.")
        if said == "failed":
            raise ServiceError("the canary failed (HTTP 500): unexpected EOF")
        if said == "timed_out":
            self._clock.advance(timeout)
            if self._scene.of(self._name).get("canary", "answered") == "timed_out":
                raise ServiceTimeout("no answer in time")
        return 0.2


class _Stall:
    """LLMServiceStalled for one service, as Prometheus sees what is exported."""

    def __init__(self) -> None:
        self._progress: float | None = None
        self._same_since = 0.0
        self._demand_since: float | None = None
        self.since: float | None = None

    def scraped(self, probe: ServiceProbe, now: float) -> None:
        if probe.progress is None:
            # Where a sample is missing, neither changes() nor min_over_time() sees anything.
            self.since = None
            return
        if probe.progress != self._progress:
            self._progress, self._same_since = probe.progress, now
        if not probe.requests_in_flight:
            self._demand_since = None
        elif self._demand_since is None:
            self._demand_since = now
        demand = now if self._demand_since is None else self._demand_since
        self.since = max(self._same_since, demand) if self._demand_since is not None else None


@dataclass
class _Episode:
    first_seen: float
    refuted_at: float = 0.0
    due: float = 0.0


class Replay:
    """One trace."""

    def __init__(
        self, trace: Trace, store: Store, config: Config, known: Rules, steady: float | None = None
    ) -> None:
        """With `steady` it is looked only so often (seconds) where one look is as the other."""
        self._trace, self._rules = trace, known
        self._steady = steady
        self._clock = _Clock()
        self._clock.every = config.timing.probe_interval
        self._scene = _Scene(trace, self._clock, known)
        services = {}
        for raw in trace.services:
            server = _Server(raw["name"], raw["metrics"], self._scene, self._clock)
            cards = tuple(self._scene.uuids[n] for n in raw["cards"])
            one = ServiceConfig(raw["name"], "trace", "http://127.0.0.1:1", {}, gpus=cards)
            services[raw["name"]] = Service(one, server, server)
        gpus, control = _Gpus(self._scene), None
        self._world = World(config, self._clock, store, gpus, control, services, threading.Event())
        self._watchers = ProgressWatch(self._world), PowerWatch(self._world, str)
        self._clock.look = self._look
        self._probes: dict[str, ServiceProbe] = {}
        self._stalls = {name: _Stall() for name in services}
        self._hang, self._device = Hang(5.0), DeviceFault(600.0)
        self._episodes: dict[tuple[str, Target], _Episode] = {}
        self._since: dict[tuple[str, Target], float] = {}
        self.outcome = Outcome()
        self._know()

    def _know(self) -> None:
        if self._trace.learned is None:
            return
        rng = random.Random(self._trace.id)
        for uuid in self._scene.uuids:
            samples = {
                state: tuple(
                    (START - 3600 - 60 * (60 - n), rng.uniform(*self._trace.learned[state]))
                    for n in range(60)
                )
                for state in ("idle", "busy")
            }
            conditions = Conditions(round(self._trace.limit), "")
            self._world.power.keep(uuid, Learned(conditions, **samples))

    def run(self) -> Outcome:
        """Play it to its end, or to the first restart."""
        end, step = self._trace.seconds, self._rules.evaluation
        if self._steady is not None:
            step = self._steady / 2
        while self._clock.passed < end and self.outcome.restarted is None:
            self._clock.advance(step)
            self._evaluate()
        return self.outcome

    def _look(self) -> None:
        if self._steady is not None:
            interval = self._world.config.timing.probe_interval
            self._clock.every = self._steady if self._scene.is_steady() else interval
        for name, service in self._world.services.items():
            probe = service.driver.probe()
            self._probes[name] = probe
            view = ServiceView(probe, service.manager.status(), None, self._clock.now())
            for watcher in self._watchers:
                watcher.saw(service, view)
            self._stalls[name].scraped(probe, self._clock.passed)

    def _evaluate(self) -> None:
        """All rules, and what the remediator makes of those that fire."""
        for n, uuid in enumerate(self._scene.uuids):
            target = Target("gpu", uuid)
            saturated = self._scene.saturated(n)
            needed = self._rules.saturated + self._rules.scrape
            self._told("GPUHang", target, saturated is not None and saturated >= needed)
            self._told("device", target, self._faulty(n))
        for name, stall in self._stalls.items():
            late = self._clock.passed - self._rules.scrape - self._rules.stalled
            fires = stall.since is not None and stall.since <= late
            self._told("LLMServiceStalled", Target("service", name), fires)

    def _faulty(self, n: int) -> bool:
        card = self._scene.card(n)
        seen = self._clock.passed - self._scene.began_at - self._rules.scrape
        if card.get("xid") in self._rules.critical_xids:
            return seen >= 0
        asks = card.get("recovery") not in (None, "none", "unsaid")
        broken = card.get("fault") in ("lost", "reset_required") or asks
        return broken and seen >= max(self._rules.device_for, self._rules.evaluation)

    def _told(self, alert: str, target: Target, fires: bool) -> None:
        key, now = (alert, target), self._clock.passed
        if not fires:
            self._episodes.pop(key, None)
            return
        episode = self._episodes.setdefault(key, _Episode(now))
        if now < episode.due or self.outcome.restarted is not None:
            return
        if alert == "device":
            self._decide_device(target, episode)
        else:
            self._decide(target, episode, now)

    def _decide_device(self, target: Target, episode: _Episode) -> None:
        finding = self._device.read(self._world, target)
        if finding.state == "present" or finding.certain:
            self.outcome.device_at = self.outcome.device_at or self._clock.passed
        episode.due = self._clock.passed + 30.0

    def _decide(self, target: Target, episode: _Episode, now: float) -> None:
        """As the evaluator decides, of which only what follows from the evidence is needed."""
        finding = self._hang.read(self._world, target)
        self.outcome.reads += 1
        then = self._clock.passed
        episode.due = then + self._rules.recheck
        if finding.reason in ("stalling", "stalled", "hung") and self._past(finding):
            self.outcome.named_at = self.outcome.named_at or then
        if finding.state == "present":
            self.outcome.restarted = (*finding.services, target.name)[0]
            self.outcome.restart_at = then
        elif finding.state == "absent":
            episode.refuted_at = then
        elif finding.needs_human:
            since = max(episode.first_seen, episode.refuted_at)
            too_long = now - since >= self._world.config.timing.suspect_after
            if finding.certain or too_long:
                self.outcome.paged_at = self.outcome.paged_at or then
        else:
            # Sooner than the next probe it would see nothing new.
            episode.due = then + self._world.config.timing.probe_interval

    def _past(self, finding: Any) -> bool:
        """Whether it has stood still for as long as a stall has to."""
        services = finding.data.get("services") or (finding.data,)
        after = self._world.config.timing.stalled_after
        return any((one.get("still_seconds") or 0.0) >= after for one in services)


def configuration(directory: Path) -> Config:
    """The defaults."""
    return build(Config, {"state_dir": str(directory)}, "")
