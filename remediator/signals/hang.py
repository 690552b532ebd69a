"""Is a saturated card, or a service with requests, hung? Gathers evidence for `policy.verdict`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Literal

from remediator.config.strict import Seconds
from remediator.errors import NoEvidence
from remediator.hang_evidence import (
    ask,
    cards_of,
    fault_of,
    node_fault,
    state_of,
    status_of,
    together,
)
from remediator.managers import ProcessStatus
from remediator.policy.verdict import (
    HangEvidence,
    Judgement,
    ServiceEvidence,
    Verdict,
    judge,
    judge_service,
)
from remediator.progress import Look
from remediator.readings import GpuReading
from remediator.services import ServiceProbe
from remediator.signals.base import Finding
from remediator.targets import Target
from remediator.world import Service, World

_ABSENT: tuple[Judgement, ...] = (
    "busy",
    "no_demand",
    "held",
    "sleeping",
    "ghost",
    "not_saturated",
)
_PRESENT: tuple[Judgement, ...] = ("stalled", "hung")
_UNKNOWN: tuple[Judgement, ...] = (
    "stalling",
    "suspect",
    "loading",
    "device_fault",
    "node_fault",
    "no_service",
    "unknown",
)


@dataclass(frozen=True)
class Parameters:
    """`progress_window`: for so long at least a counter is watched before it stands still."""

    progress_window: Seconds = 5.0


def create(parameters: Parameters) -> Hang:
    """The signal."""
    return Hang(parameters.progress_window)


@dataclass(frozen=True)
class _Looked:
    """What a service showed, and a model that it has loaded; None where it has none."""

    service: Service
    evidence: ServiceEvidence
    model: str | None

    def asked(self, world: World, verdicts: Collection[Judgement]) -> _Looked:
        """With what a canary said, where the service is judged as one of `verdicts`."""
        verdict = judge_service(self.evidence, world.config.timing.stalled_after)
        if verdict.judgement not in verdicts or self.model is None:
            return self
        stuck = verdict.judgement in _PRESENT
        canary, says = ask(world, self.service, self.model, stands_still=stuck)
        return replace(self, evidence=replace(self.evidence, canary=canary, canary_says=says))


class Hang:
    """Aimed at a card it finds which service there is stuck; aimed at a service, whether that is."""

    reasons = (*_ABSENT, *_PRESENT, *_UNKNOWN)

    def __init__(self, progress_window: float) -> None:
        self._window = progress_window

    def read(self, world: World, target: Target) -> Finding:
        """Look at the cards, at the services, and at what is known of their progress."""
        service = world.services[target.name] if target.kind == "service" else None
        if service is not None and service.config.gpus == ():
            return self._of_service(world, service, {})
        try:
            readings = {reading.uuid: reading for reading in world.gpus.all()}
        except NoEvidence as error:
            return Finding("unknown", "unknown", str(error))
        if service is not None:
            return self._of_service(world, service, readings)
        if target.name not in readings:
            return Finding("unknown", "unknown", f"the exporter does not list {target.name}")
        return self._of_card(world, readings[target.name], readings)

    def _of_card(
        self, world: World, reading: GpuReading, readings: Mapping[str, GpuReading]
    ) -> Finding:
        used, total = reading.memory_used_bytes, reading.memory_total_bytes
        evidence = HangEvidence(
            fresh=reading.fresh(world.config.timing.reading_max_age),
            fault=fault_of(world, reading),
            saturated_seconds=reading.saturated_seconds,
            required_seconds=reading.saturation_seconds,
            processes=None if reading.processes is None else len(reading.processes),
            memory_ratio=None if used is None or not total else used / total,
            services=(),
            stalled_after=world.config.timing.stalled_after,
            reading_age_seconds=reading.age_seconds,
            node=node_fault(readings.values()),
        )
        verdict = judge(evidence)
        if verdict.judgement in ("ghost", "no_service", "node_fault"):
            evidence, verdict = self._with_services(world, reading, readings, evidence)
        data = asdict(evidence) | {
            "power_watts": reading.power_watts,
            "power_limit_watts": reading.power_limit_watts,
            "utilization_ratio": reading.utilization_ratio,
        }
        return _finding(verdict, f"{reading.label}: {verdict.sentence}", data)

    def _with_services(
        self,
        world: World,
        reading: GpuReading,
        readings: Mapping[str, GpuReading],
        evidence: HangEvidence,
    ) -> tuple[HangEvidence, Verdict]:
        """With the services of the card. A canary is asked only where its answer decides.

        One that is stalling is looked at every second: its neighbours are not asked that often.
        """
        services = world.services_on(reading.uuid)
        looked = [self._look(world, service, readings) for service in services]
        for verdicts in (_PRESENT, ("suspect", "no_demand")):
            evidence = replace(evidence, services=tuple(one.evidence for one in looked))
            if judge(evidence).judgement in verdicts:
                looked = [one.asked(world, verdicts) for one in looked]
        evidence = replace(evidence, services=tuple(one.evidence for one in looked))
        return evidence, judge(evidence)

    def _of_service(
        self, world: World, service: Service, readings: Mapping[str, GpuReading]
    ) -> Finding:
        asks = ("suspect", *_PRESENT)
        evidence = self._look(world, service, readings).asked(world, asks).evidence
        verdict = judge_service(evidence, world.config.timing.stalled_after)
        return _finding(verdict, verdict.sentence, asdict(evidence))

    def _look(self, world: World, service: Service, readings: Mapping[str, GpuReading]) -> _Looked:
        at = world.clock.monotonic()
        probe = service.driver.probe()
        status = status_of(service)
        evidence = ServiceEvidence(
            name=service.name,
            state=state_of(world, service, probe, status),
            demand=probe.requests_in_flight,
            cards=cards_of(world, service, readings),
            node=node_fault(readings.values()),
        )
        evidence = self._with_progress(world, service, evidence, _look_of(at, probe, status))
        return _Looked(service, evidence, next((model.name for model in probe.models), None))

    def _with_progress(
        self, world: World, service: Service, evidence: ServiceEvidence, look: Look | None
    ) -> ServiceEvidence:
        if look is None or evidence.state != "serving":
            return evidence
        standing = world.progress.standing(service.name, look, world.config.timing.probe_max_age)
        age = world.progress.age(service.name, look.at)
        moved, unwatched = standing.moved, self._window - standing.still_seconds
        if moved is None or (moved == 0 and unwatched > 0):
            # So short a stop says nothing: between two tokens every counter stands still.
            world.clock.wait(world.stopping, unwatched)
            moved = _moved_since(look, service)
        return replace(
            evidence,
            progress_delta=moved,
            still_seconds=standing.still_seconds,
            demand_seconds=standing.demand_seconds,
            look_age_seconds=age,
            together=together(world, service, standing),
        )


def _finding(verdict: Verdict, sentence: str, data: Mapping[str, object]) -> Finding:
    state: Literal["present", "absent", "unknown"] = "unknown"
    if verdict.judgement in _PRESENT:
        state = "present"
    elif verdict.judgement in _ABSENT:
        state = "absent"
    return Finding(
        state,
        verdict.judgement,
        sentence,
        {"verdict": verdict.judgement, "allowed": verdict.allowed, **data},
        needs_human=verdict.allowed == "page",
        services=verdict.services,
        certain=verdict.judgement == "node_fault",
        critical=state == "present" or verdict.judgement == "node_fault",
    )


def _look_of(at: float, probe: ServiceProbe, status: ProcessStatus | None) -> Look | None:
    if probe.progress is None or status is None or status.identity is None:
        return None
    return Look(at, status.identity, probe.progress, probe.requests_in_flight)


def _moved_since(first: Look, service: Service) -> float | None:
    """How far the counter has gone since `first`; one that went back was restarted."""
    second = service.driver.probe().progress
    return None if second is None or second < first.progress else second - first.progress
