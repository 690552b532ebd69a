"""Is the service down, or does it answer and yet fail each request for want of memory?"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

from remediator.durations import format_duration
from remediator.error_signatures import ErrorClass, classify
from remediator.errors import ServiceError, ServiceTimeout, StorageError
from remediator.load_advice import advice
from remediator.oom_events import OFTEN, OFTEN_WITHIN, lately
from remediator.services import ServiceDriver
from remediator.signals.base import Finding
from remediator.signals.service_down import ServiceDown
from remediator.targets import Target
from remediator.world import Service, World

ALERT = "LLMServiceOutOfMemory"
# How long a model that its server dropped when it ran out of memory is asked for again.
_ASK_AGAIN_WITHIN = 300.0
_TRIES = 2
# An event so long before is taken for what it died of.
_CAUSE_WITHIN = 600.0
# What proved nothing is asked no more often: while it is unknown the signal is read every second.
_ASK_UNCLEAR_AFTER = 15.0


@dataclass(frozen=True)
class Parameters:
    """Nothing to set."""


@dataclass(frozen=True)
class Failure:
    """A request of ours that found no memory: when (monotonic seconds), for what, and the answer."""

    at: float
    model: str
    text: str


_failures: MutableMapping[ServiceDriver, Failure] = WeakKeyDictionary()
# When (monotonic seconds) a server was last asked in vain, and what that showed.
_unclear: MutableMapping[ServiceDriver, tuple[float, Finding]] = WeakKeyDictionary()
# The episode whose alert was looked into last, and how often it had run out of memory at first.
_counted: MutableMapping[ServiceDriver, tuple[int, int]] = WeakKeyDictionary()


def last_failure(driver: ServiceDriver) -> Failure | None:
    """The last request to this server that failed for memory, and was not answered since."""
    return _failures.get(driver)


def create(parameters: Parameters) -> OutOfMemory:  # noqa: ARG001 - the contract
    """The signal."""
    return OutOfMemory()


class OutOfMemory:
    """What `service_down` says; where an alert speaks of memory, one that answers is asked for a token.

    Twice at most.
    """

    reasons = (*ServiceDown.reasons, "out_of_memory", "device_error", "keeps_happening")

    def __init__(self) -> None:
        self._down = ServiceDown()

    def read(self, world: World, target: Target) -> Finding:
        """Look at the manager, the server and the desired state, then ask for a token."""
        service = world.services.get(target.name) if target.kind == "service" else None
        if service is None:
            return Finding("unknown", "cannot_tell", f"{target.name} is no configured service")
        finding = self._down.read(world, target)
        try:
            if finding.reason == "down":
                return _with_cause(world, service, finding)
            times = _suspected(world, service) if finding.reason == "healthy" else None
        except StorageError as error:
            return Finding("unknown", "cannot_tell", f"{service.name}: {error}", finding.data)
        if times is None:
            return finding
        if finding.data.get("probe") == "loading":
            why = f"{service.name} is coming up ({finding.data['probe_detail']}): it is asked then"
            return Finding("unknown", "starting", why, finding.data)
        if times:
            why = f"{finding.sentence}, but ran out of memory {times} more times meanwhile"
            finding = replace(finding, reason="out_of_memory", sentence=why)
        at, unclear = _unclear.get(service.driver, (0.0, None))
        if unclear is not None and world.clock.monotonic() - at < _ASK_UNCLEAR_AFTER:
            return unclear
        model = _model_to_ask(world, service)
        asked = None if model is None else _ask(world, service, model, finding.data)
        if asked is None:
            asked = _too_often(world, service, finding)
        if asked is not None and asked.state == "unknown":
            _unclear[service.driver] = (world.clock.monotonic(), asked)
        if asked is not None and asked.state == "present":
            # That is answered by more than looking on; what comes of it is counted anew.
            _counted.pop(service.driver, None)
        return asked or finding


def _with_cause(world: World, service: Service, finding: Finding) -> Finding:
    """The same, with what it died of where that is known."""
    now = world.clock.now()
    with world.store.reading() as tx:
        events = lately(tx, service.name, now)
    if not events or events[-1].at < now - _CAUSE_WITHIN:
        return finding
    cause, ago = events[-1].cause, format_duration(max(0.0, now - events[-1].at))
    why = f"{finding.sentence}. {ago} ago it ran out of {cause}"
    return replace(finding, sentence=why, data={**finding.data, "out_of_memory": cause})


def _too_often(world: World, service: Service, finding: Finding) -> Finding | None:
    """A person's, where it answers again but goes on running out of memory; else None."""
    try:
        with world.store.reading() as tx:
            events = lately(tx, service.name, world.clock.now())
    except StorageError as error:
        return Finding("unknown", "cannot_tell", f"{service.name}: {error}", finding.data)
    if len(events) < OFTEN:
        return None
    within = format_duration(OFTEN_WITHIN)
    last = events[-1]
    why = (
        f"{service.name} answers, but ran out of {last.cause} and the like {len(events)} times "
        f"within {within}; {advice(world, service, last.where)}"
    )
    told = {**finding.data, "out_of_memory": last.cause, "times": len(events)}
    return Finding("unknown", "keeps_happening", why, told, needs_human=True, certain=True)


def _suspected(world: World, service: Service) -> int | None:
    """How often it has run out of memory since an alert speaks of that; None where none does.

    Without one a canary is not asked: it may queue for long, and proves nothing.
    """
    with world.store.reading() as tx:
        episodes = tx.episodes.open_of(ALERT)
        count = tx.inventory.service(service.name).out_of_memory
    found = [one.id for one in episodes if one.labels.get("llm_service") == service.name]
    if not found:
        return None
    episode, first = _counted.get(service.driver, (None, 0))
    if episode != found[0]:
        _counted[service.driver] = (found[0], count)
        return 0
    return count - first


def _model_to_ask(world: World, service: Service) -> str | None:
    """A loaded one: another would be loaded by asking.

    Else the one that the server dropped when our last request found no memory: asking for it again
    restores what was there before. One that sleeps was emptied on purpose, and may break.
    """
    probe = service.driver.probe()
    if probe.state != "ready":
        return None
    if probe.models:
        return probe.models[0].name
    failure = _failures.get(service.driver)
    if failure is None or world.clock.monotonic() - failure.at > _ASK_AGAIN_WITHIN:
        return None
    return failure.model


def _ask(world: World, service: Service, model: str, data: Mapping[str, Any]) -> Finding | None:
    """What two canaries say; None where one was answered."""
    name, told = service.name, dict(data) | {"model": model}
    for _ in range(_TRIES):
        try:
            service.driver.canary(model, world.config.timing.canary_timeout)
        except ServiceTimeout as error:
            why = f"{name} did not answer a canary in time ({error}): it may only be queued"
            return Finding("unknown", "busy", why, told)
        except ServiceError as error:
            text = str(error)
        else:
            _failures.pop(service.driver, None)
            return None
        found = classify(text)
        told |= {"canary": text, "signature": found.signature}
        if found.kind != "out_of_memory":
            return _other_fault(name, found, text, told)
        _failures[service.driver] = Failure(world.clock.monotonic(), model, text)
    why = f"{name} answers, but has no memory to work with: {text}"
    return Finding("present", "out_of_memory", why, told)


def _other_fault(name: str, found: ErrorClass, text: str, told: Mapping[str, Any]) -> Finding:
    if found.needs_hands:
        why = (
            f"{name} fails because of its card or driver ({text}): "
            "starting it again cannot mend that"
        )
        return Finding("unknown", "device_error", why, told, needs_human=True, certain=True)
    why = f"{name} answers, though with a failure that is not for want of memory: {text}"
    return Finding("unknown", "server_error", why, told)
