"""What the signal `hang` reads: the cards of a service, what they draw, the whole machine, and a canary."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from remediator.error_signatures import classify
from remediator.errors import ManagerError, ServiceError, ServiceRefused, ServiceTimeout
from remediator.managers import ProcessStatus
from remediator.policy.verdict import Canary, CardEvidence, ServiceState
from remediator.progress import Standing
from remediator.readings import GpuReading
from remediator.services import ServiceProbe
from remediator.world import Service, World

_REBOOTS = ("reboot", "system_reboot")
_BEYOND_RESETS = ("reboot_host",)
_BEYOND_APPLICATIONS = ("reset_gpu", *_BEYOND_RESETS)
# As long as the verdict on a device counts them (seconds).
_XID_WINDOW = 600.0
_ANSWERED_WITH = re.compile(r"\(HTTP (\d{3})\)")
_OVERLOADED = 503
# Between two canaries of which the first one failed (seconds).
_ONCE_MORE = 5.0
_IN_PASSING = 10.0
# Services that began to stand still within so many seconds of each other did so at once.
_AT_ONCE = 60.0


def fault_of(world: World, reading: GpuReading) -> str | None:
    """What the driver says is wrong with the card; let go on request it is not.

    An Xid error that asks for a reset counts where the driver does not say what it wants.
    """
    if reading.fault is not None and reading.fault != "released":
        return reading.fault
    action = reading.recovery_action
    if action not in (None, "none"):
        return f"the driver asks for {action}"
    serious = _BEYOND_APPLICATIONS if action is None else _BEYOND_RESETS
    for xid in reading.xid_errors or ():
        if xid.action in serious and (xid.last_seen or 0.0) > _since_when(world, reading):
            return f"Xid {xid.xid}, {xid.action}"
    return None


def _since_when(world: World, reading: GpuReading) -> float:
    """Since when an Xid error counts: never beyond a reset of the card or a reboot."""
    with world.store.reading() as tx:
        reset_at = tx.runs.last_reset(reading.uuid)
    now = world.clock.now()
    return max(now - _XID_WINDOW, now - world.clock.monotonic(), reset_at or 0.0)


def node_fault(readings: Collection[GpuReading]) -> str | None:
    """What is wrong with the whole machine: no card of several answers, or it is to be rebooted."""
    asks = next((one for one in readings if one.recovery_action in _REBOOTS), None)
    if asks is not None:
        return f"the driver of {asks.label} asks for a reboot of the machine"
    faults = [one.fault for one in readings if one.fault not in (None, "released")]
    if len(readings) > 1 and len(faults) == len(readings):
        said = ", ".join(sorted({str(fault) for fault in faults}))
        return f"none of the machine's {len(readings)} cards answers ({said})"
    return None


def cards_of(world: World, service: Service, readings: Mapping[str, GpuReading]) -> CardEvidence:
    """The cards of a service, and their power against their own bands."""
    timing = world.config.timing
    mine = [reading for reading in readings.values() if service.uses(reading.uuid)]
    missing = service.config.gpus != "all" and len(mine) < len(service.config.gpus)
    fresh = [one.fresh(timing.reading_max_age) for one in mine]
    ratios = [
        reading.power_watts / reading.power_limit_watts
        for reading in mine
        if reading.power_watts is not None and reading.power_limit_watts
    ]
    now, at = world.clock.now(), world.clock.monotonic()
    return CardEvidence(
        fault=next((fault for one in mine if (fault := fault_of(world, one)) is not None), None),
        readable=all(fresh) and not missing,
        power_ratio=max(ratios) if ratios and len(ratios) == len(mine) else None,
        each=tuple(world.power.of(one, now, at, timing.probe_max_age) for one in mine),
    )


def together(world: World, service: Service, standing: Standing) -> tuple[str, ...]:
    """Services on other cards that have stood still, with requests, for about as long."""
    return tuple(
        other.name
        for _, other in sorted(world.services.items())
        if _apart(service, other) and _stands_as(world, other, standing)
    )


def _apart(one: Service, other: Service) -> bool:
    """Whether both have cards, and none in common."""
    cards, others = one.config.gpus, other.config.gpus
    if cards == "all" or others == "all" or not cards or not others:
        return False
    return not set(cards) & set(others)


def _stands_as(world: World, other: Service, standing: Standing) -> bool:
    age = world.progress.age(other.name, world.clock.monotonic())
    kept = world.progress.kept(other.name)
    if kept is None or age is None or age > world.config.timing.probe_max_age:
        return False
    still = min(kept.still_seconds, kept.demand_seconds or 0.0)
    mine = min(standing.still_seconds, standing.demand_seconds or 0.0)
    return still > 0 and abs(still - mine) <= _AT_ONCE and mine >= _AT_ONCE


def status_of(service: Service) -> ProcessStatus | None:
    """What its manager says; None where it does not answer."""
    try:
        return service.manager.status()
    except ManagerError:
        return None


def state_of(
    world: World, service: Service, probe: ServiceProbe, status: ProcessStatus | None
) -> ServiceState:
    """What the server does; one that nobody started lately and that refuses is down."""
    with world.store.reading() as tx:
        if tx.inventory.service(service.name).held:
            return "held"
    if probe.state in ("loading", "sleeping"):
        return probe.state
    if probe.state == "ready":
        return "serving"
    if probe.state in ("silent", "error"):
        return "silent"
    identity = None if status is None else status.identity
    if identity is None:
        return "down"
    young = abs(world.clock.now() - identity.started_at) < service.config.start_grace
    return "loading" if young else "down"


def ask(world: World, service: Service, model: str, *, stands_still: bool) -> tuple[Canary, str]:
    """What a canary says; one that failed is asked once more, for a first failure proves nothing.

    With what it failed. Where a counter has proven that it `stands_still`, an answer is not waited
    for as long as behind a queue: what works moves the counter. A server that does not take it (it
    is overloaded, wants a key, or does not know the model) is well; one without memory, or on a
    broken card, is not mended by this.
    """
    timeout = world.config.timing.canary_timeout
    if stands_still:
        timeout = min(timeout, _IN_PASSING)
    said: tuple[Canary, str] = "not_asked", ""
    for last in (False, True):
        said = _once(service, model, timeout)
        if said[0] != "failed" or last:
            break
        if world.clock.wait(world.stopping, _ONCE_MORE):
            return "refused", said[1]
    return said


def _once(service: Service, model: str, timeout: float) -> tuple[Canary, str]:
    try:
        service.driver.canary(model, timeout)
    except ServiceTimeout as error:
        return "timed_out", str(error)
    except ServiceRefused as error:
        return "refused", str(error)
    except ServiceError as error:
        return ("failed" if _is_failure(str(error)) else "refused"), str(error)
    return "answered", ""


def _is_failure(text: str) -> bool:
    answered = _ANSWERED_WITH.search(text)
    status = int(answered[1]) if answered else None
    if status is not None and (status < 500 or status == _OVERLOADED):
        return False
    found = classify(text)
    return found.kind != "out_of_memory" and not found.needs_hands
