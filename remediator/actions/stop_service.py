"""Stop the service's process and hold it down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from remediator.actions.base import Intent, Outcome, StepContext
from remediator.config.model import Permission
from remediator.config.strict import Seconds
from remediator.managers.base import identity_from
from remediator.store import Step
from remediator.store.inventory import HOLDER

_DOWN = ("stopped", "exited", "failed")


@dataclass(frozen=True)
class Parameters:
    """`because` is what the hold says to whoever finds the service down."""

    because: str
    within: Seconds = 60.0


def create(parameters: Parameters) -> StopService:
    """The action."""
    return StopService(parameters)


class StopService:
    """The safe direction: every service on the card goes."""

    kind = "stop_service"
    permission: Permission | None = "service_stop"
    scope: Literal["all_services"] = "all_services"
    destructive = True
    safe_direction = True
    resumable = True

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters

    @property
    def because(self) -> str:
        """What the hold says."""
        return self._parameters.because

    def describe(self, context: StepContext) -> str:
        """What the process manager would do."""
        service = context.on_service
        return f"stop {service.name} and hold it down: {service.manager.describe('stop')}"

    def intend(self, context: StepContext) -> Intent:
        """Remember which process is to go. Even what is down already is to be held down."""
        service = context.on_service
        status = service.manager.status()
        before = status.identity.to_json() if status.identity else {}
        was_to_return = self._was_to_return(context)
        if status.state in _DOWN:
            what = f"hold {service.name} down ({status.detail})"
        else:
            what = f"stop {service.name} by {service.manager.kind} and hold it down"
        return Intent(what, {"before": before, "was_to_return": was_to_return})

    def begun(self, context: StepContext, intent: Mapping[str, Any]) -> bool:
        """Whether the process that is to go is gone."""
        status = context.on_service.manager.status()
        before = identity_from(intent.get("before"))
        return before is not None and not before.same(status.identity)

    def run(self, context: StepContext, intent: Mapping[str, Any]) -> Outcome:
        """Hold, then stop the process of the intent, and one that its manager put in its place."""
        service, world = context.on_service, context.world
        with world.store.transaction() as tx:
            record = tx.inventory.service(service.name)
            # Who holds it already wants it down for a reason of their own, which outlasts ours.
            ours = record.held_by == HOLDER and intent.get("was_to_return")
            if record.held_by is None or record.restarting or ours:
                tx.inventory.hold(service.name, HOLDER, self._parameters.because, world.clock.now())
        return self.carry_out(context, intent)

    def carry_out(self, context: StepContext, intent: Mapping[str, Any]) -> Outcome:
        """The stop itself, which needs no store."""
        service = context.on_service
        service.manager.stop(identity_from(intent.get("before")), self._parameters.within)
        after = service.manager.status()
        if after.state in ("running", "starting"):
            if context.resumed:
                # Since the crash somebody may have started it on purpose.
                return Outcome(
                    "failed",
                    "runs_again",
                    f"another process of {service.name} runs now ({after.detail}); it is left alone",
                )
            service.manager.stop(None, self._parameters.within)
        probe = service.driver.probe()
        if probe.is_up:
            return Outcome(
                "failed",
                "still_answers",
                f"{service.manager.kind} says that {service.name} is down, yet it answers",
            )
        return Outcome("done", "stopped", f"{service.name} is down and held down")

    def _was_to_return(self, context: StepContext) -> bool:
        """Whether it is down only until a run that is over, or makes way, would have started it.

        Otherwise nobody would: that run does not any more, and this one has not stopped it.
        """
        with context.world.store.reading() as tx:
            record = tx.inventory.service(context.on_service.name)
            stop = tx.runs.last_stop(record.name)
            run = None if stop is None else tx.runs.get(stop.run_id)
        if record.restarting:
            return True
        if record.held_by != HOLDER or stop is None or run is None:
            return False
        same = record.held_reason == self._parameters.because or run.cancel_reason is not None
        return same and should_return(stop) and (record.held_since or 0.0) >= stop.started_at


def should_return(stop: Step) -> bool:
    """Whether the service of this stop was up before, or would have been."""
    return bool(stop.intent.get("before") or stop.intent.get("was_to_return"))
