"""Where a service keeps running out of memory: have it start with less load, or say what to change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from remediator.actions.base import Gentle, Intent, Outcome, Scope, StepContext
from remediator.config.strict import Seconds
from remediator.degraded import degrade, degraded_since
from remediator.durations import format_duration
from remediator.load_advice import advice
from remediator.oom_events import LOG, OFTEN, OFTEN_WITHIN, OutOfMemoryEvent, events_of


@dataclass(frozen=True)
class Parameters:
    """So many out of memory `within` that time are too many."""

    after: int = OFTEN
    within: Seconds = OFTEN_WITHIN


def create(parameters: Parameters) -> LowerLoad:
    """The action."""
    return LowerLoad(parameters)


class LowerLoad(Gentle):
    """Only says which of its managers the next start uses; a restart is a step of its own.

    What only a log tells of does not count here: a user may have had a hand in it.
    """

    kind = "lower_load"
    scope: Scope = "one_service"

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters

    def describe(self, context: StepContext) -> str:
        """When it would do what."""
        service, limits = context.on_service, self._parameters
        often = f"{limits.after} times within {format_duration(limits.within)}"
        if service.config.degraded:
            return f"have {service.name} start with less load if it ran out of memory {often}"
        return f"say how {service.name} can be given less load if it ran out of memory {often}"

    def intend(self, context: StepContext) -> Intent:
        """Count."""
        service, limits = context.on_service, self._parameters
        since = context.world.clock.now() - limits.within
        with context.world.store.reading() as tx:
            events = [one for one in events_of(tx, service.name) if one.at >= since]
            lowered = degraded_since(tx, service.name) is not None
        seen = [one for one in events if one.reason != LOG]
        if len(seen) < limits.after:
            why = f"{service.name} ran out of memory {len(seen)} time(s) lately: not too often"
            return Intent(why, nothing=True, reason="not_often")
        often = f"{service.name} ran out of memory {len(seen)} times lately"
        if service.config.degraded and not lowered:
            return Intent(f"{often}: have it start with less load")
        return self._only_say(context, seen[-1], often, lowered=lowered)

    def begun(self, context: StepContext, intent: Mapping[str, Any]) -> bool:  # noqa: ARG002
        """Whether that is kept already."""
        with context.world.store.reading() as tx:
            return degraded_since(tx, context.on_service.name) is not None

    def run(self, context: StepContext, intent: Mapping[str, Any]) -> Outcome:  # noqa: ARG002
        """Keep that the next start is the one with less load."""
        name, world = context.on_service.name, context.world
        with world.store.transaction() as tx:
            if degraded_since(tx, name) is None:
                degrade(tx, name, world.clock.now())
        why = (
            f"{name} is started with less load from now on; who starts it as usual takes that back"
        )
        return Outcome("done", "lowered", why)

    @staticmethod
    def _only_say(
        context: StepContext, event: OutOfMemoryEvent, often: str, *, lowered: bool
    ) -> Intent:
        said = "it has less load already" if lowered else "no degraded manager is configured"
        why = f"{often}, and {said}: {advice(context.world, context.on_service, event.where)}"
        return Intent(why, nothing=True, reason="nothing_to_lower")
