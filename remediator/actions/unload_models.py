"""Unload idle models, one after the other, until there is room; say what that really freed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from remediator.actions.base import Gentle, Intent, Outcome, StepContext
from remediator.config.strict import Seconds
from remediator.errors import NoEvidence, ServiceError, ServiceTimeout
from remediator.services import LoadedModel
from remediator.signals.memory import Level, Memory
from remediator.targets import THIS_HOST, Target
from remediator.world import Service, World

Bytes: TypeAlias = dict[str, int]

_GIB = 2**30
_POLL = 1.0
# The driver rounds, and a server keeps a little of what it says that it gave back.
_MOST_OF_IT = 0.9
# A server writes "for ever" as an instant centuries ahead.
_FOR_EVER = 365 * 86400.0


@dataclass(frozen=True)
class Parameters:
    """It ends once the memory is not above `level`, or `host_ratio` of the machine's.

    `within` is for one model, `settle_within` for the driver to give its memory back. What was
    unloaded and is loaded again is asked for: it is left alone for `again_after`.
    """

    level: Level = "warning"
    host_ratio: float = 0.85
    within: Seconds = 20.0
    settle_within: Seconds = 10.0
    again_after: Seconds = 3600.0


def create(parameters: Parameters) -> UnloadModels:
    """The action."""
    return UnloadModels(parameters)


@dataclass
class _Tally:
    """What became of each model."""

    unloaded: list[str]
    in_use: list[str]
    errors: dict[str, str]


class UnloadModels(Gentle):
    """Asks each server in its own words; no request is interrupted."""

    kind = "unload_models"

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self._memory = Memory(parameters.level, parameters.host_ratio)

    def describe(self, context: StepContext) -> str:
        """Whose models."""
        return f"unload idle models of {context.on_service.name} until there is room"

    def intend(self, context: StepContext) -> Intent:
        """Choose the models, and note what each card uses before."""
        service = context.on_service
        if not service.driver.can_unload:
            why = f"{service.name} ({service.driver.kind}) gives no memory back while it runs"
            return Intent(why, nothing=True, reason="cannot_unload")
        if self._enough(context):
            why = f"there is room again: {service.name} keeps its models"
            return Intent(why, nothing=True, reason="enough")
        probe = service.driver.probe()
        if probe.state != "ready":
            why = f"{service.name} does not say what it has loaded: {probe.detail}"
            return Intent(why, nothing=True, reason="not_ready")
        chosen, kept = self._choose(context.world, service, probe.models)
        data: dict[str, Any] = {"kept": kept}
        if not chosen:
            why = f"{service.name} has no model that may go{_list(kept)}"
            return Intent(why, data, nothing=True, reason="no_idle_model")
        data |= {
            "models": [{"name": one.name, "memory_bytes": one.memory_bytes} for one in chosen],
            "used_bytes": _used(context.world, service),
        }
        names = ", ".join(one.name for one in chosen)
        return Intent(f"unload as many as needed of {names} from {service.name}", data)

    def begun(self, context: StepContext, intent: Mapping[str, Any]) -> bool:
        """Whether one of the models is gone already: then what that freed is still to be recorded."""
        probe = context.on_service.driver.probe()
        loaded = {_plain(model.name) for model in probe.models}
        gone = any(_plain(one["name"]) not in loaded for one in intent["models"])
        return probe.state == "ready" and gone

    def run(self, context: StepContext, intent: Mapping[str, Any]) -> Outcome:
        """Unload one after the other; asked to stop, it says what it did so far."""
        before: Bytes = intent["used_bytes"]
        expected = {one["name"]: one["memory_bytes"] for one in intent["models"]}
        tally, after = _Tally([], [], {}), before
        for name in expected:
            if tally.unloaded and (context.stop.is_set() or self._enough(context)):
                break
            context.wait(0.0)
            self._unload(context, name, tally)
            if name in tally.unloaded:
                gone = [expected[one] for one in tally.unloaded]
                after = self._settle(context, before, gone)
        return _outcome(context.on_service.name, tally, expected, before, after)

    def _unload(self, context: StepContext, name: str, tally: _Tally) -> None:
        service, world = context.on_service, context.world
        try:
            service.driver.unload(name, self._parameters.within)
        except ServiceTimeout:
            tally.in_use.append(name)
        except ServiceError as error:
            tally.errors[name] = str(error)
        else:
            tally.unloaded.append(name)
            now = world.clock.now()
            with world.store.transaction() as tx:
                raw = tx.get_meta(_key(service))
                recent = _recent(raw, now - self._parameters.again_after)
                tx.set_meta(_key(service), json.dumps(recent | {name: now}))

    def _settle(self, context: StepContext, before: Bytes, gone: Sequence[int | None]) -> Bytes:
        """What each card uses once the driver has given back what the server let go of."""
        clock = context.world.clock
        deadline = clock.monotonic() + self._parameters.settle_within
        expected = None if None in gone else sum(size or 0 for size in gone)
        while True:
            after = _used(context.world, context.on_service)
            freed = sum(_freed(before, after).values())
            if expected is not None and freed >= _MOST_OF_IT * expected:
                return after
            if clock.monotonic() >= deadline or clock.wait(context.stop, _POLL):
                return after

    def _enough(self, context: StepContext) -> bool:
        target = THIS_HOST if context.gpu is None else Target("gpu", context.gpu)
        return self._memory.read(context.world, target).state == "absent"

    def _choose(
        self, world: World, service: Service, loaded: Sequence[LoadedModel]
    ) -> tuple[list[LoadedModel], dict[str, str]]:
        """The models that may go, the one used longest ago first, and why the others stay.

        What the configuration names goes last, and the one of them used last stays: it is what the
        service is there for.
        """
        with world.store.reading() as tx:
            since = world.clock.now() - self._parameters.again_after
            recent = _recent(tx.get_meta(_key(service)), since)
        named = {_plain(name) for name in service.config.models}
        configured = sorted((m for m in loaded if _plain(m.name) in named), key=_age)
        known = all(one.expires_at is not None for one in configured)
        stays = configured[-1:] if known else configured
        kept = {one.name: "the configuration names it" for one in stays}
        kept |= {m.name: "it was unloaded and asked for again" for m in loaded if m.name in recent}
        for_ever = world.clock.now() + _FOR_EVER
        pinned = [m for m in loaded if m.expires_at is not None and m.expires_at > for_ever]
        kept |= {m.name: "it was loaded to stay" for m in pinned}
        others = sorted((m for m in loaded if m not in configured), key=_age)
        return [m for m in (*others, *configured) if m.name not in kept], kept


def _age(model: LoadedModel) -> tuple[float, str]:
    return (float("inf") if model.expires_at is None else model.expires_at, model.name)


def _plain(model: str) -> str:
    """A name with no tag means the tag latest, on every server that has tags."""
    return model.removesuffix(":latest")


def _key(service: Service) -> str:
    return f"unloaded:{service.name}"


def _recent(raw: str | None, since: float) -> dict[str, float]:
    found = json.loads(raw) if raw else {}
    return {name: at for name, at in found.items() if at >= since}


def _used(world: World, service: Service) -> Bytes:
    """Bytes in use on each card of the service that gives a fresh reading."""
    try:
        readings = world.gpus.all()
    except NoEvidence:
        return {}
    max_age = world.config.timing.reading_max_age
    return {
        r.uuid: int(r.memory_used_bytes)
        for r in readings
        if service.uses(r.uuid) and r.fresh(max_age) and r.memory_used_bytes is not None
    }


def _freed(before: Bytes, after: Bytes) -> Bytes:
    return {uuid: before[uuid] - after[uuid] for uuid in before if uuid in after}


def _outcome(
    name: str, tally: _Tally, expected: Mapping[str, int | None], before: Bytes, after: Bytes
) -> Outcome:
    freed = _freed(before, after)
    sizes = [expected[model] for model in tally.unloaded]
    whole = None if None in sizes else sum(size or 0 for size in sizes)
    data = {
        "unloaded": tally.unloaded,
        "in_use": tally.in_use,
        "errors": tally.errors,
        "expected_bytes": whole,
        "used_bytes_before": before,
        "used_bytes_after": after,
        "freed_bytes": freed,
    }
    busy = f"; in use and left: {', '.join(tally.in_use)}" if tally.in_use else ""
    if tally.unloaded:
        what = f"{name} unloaded {', '.join(tally.unloaded)}; {_said(whole, freed)}"
        nothing = _freed_nothing(whole, freed)
        return Outcome("done", "freed_nothing" if nothing else "unloaded", what + busy, data)
    if tally.errors:
        return Outcome("failed", "error", f"{name} unloaded nothing{_list(tally.errors)}", data)
    return Outcome("nothing", "in_use", f"{name} unloaded nothing{busy}", data)


def _freed_nothing(expected: int | None, freed: Bytes) -> bool:
    """Whether the cards were read, and gave back none, or next to none, of what was expected."""
    enough = (1 - _MOST_OF_IT) * (expected or 0)
    return bool(freed) and sum(freed.values()) <= enough


def _said(expected: int | None, freed: Bytes) -> str:
    """What was freed, of what the server's own sizes had led to expect."""
    of = "" if expected is None else f" of the expected {_gib(expected)}"
    if not freed:
        return f"how much that freed{of} could not be read"
    really = max(0, sum(freed.values()))
    if expected is None:
        return f"freed {_gib(really)}; it does not say how much to expect"
    return f"freed {_gib(really) if really else 0}{of}"


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB"


def _list(models: Mapping[str, str]) -> str:
    return "".join(f"; {model}: {why}" for model, why in models.items())
