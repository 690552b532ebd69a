"""Start again what this very run has stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from remediator.actions._service import start_held, wait_for_fit_cards
from remediator.actions.base import Intent, Outcome, Scope, StepContext
from remediator.actions.stop_service import should_return
from remediator.config.model import Permission
from remediator.config.strict import Seconds
from remediator.errors import RemediatorError
from remediator.store import Step
from remediator.store.inventory import HOLDER, RESTARTING, ServiceRecord


@dataclass(frozen=True)
class Parameters:
    """How long its cards may take to be fit, and starting."""

    fit_within: Seconds = 30.0
    within: Seconds = 60.0


def create(parameters: Parameters) -> StartService:
    """The action."""
    return StartService(parameters)


class StartService:
    """Undoes a stop of the same run; it needs no second key, for it interrupts nothing.

    What was down before that stop is not started, only no longer held, unless it was down for a run
    that would have started it; what somebody else holds stays as it is.
    """

    kind = "start_service"
    permission: Permission | None = None
    scope: Scope = "all_services"
    destructive = False
    safe_direction = False
    resumable = True

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters

    def describe(self, context: StepContext) -> str:
        """What the process manager would do."""
        service = context.on_service
        return (
            f"start {service.name} again, if it is this run that stopped it: "
            f"{service.manager.describe('start')}"
        )

    def intend(self, context: StepContext) -> Intent:
        """Find the stop that is to be undone."""
        service = context.on_service
        stop, record = self._stop(context), self._record(context)
        if stop is None:
            return Intent(f"{service.name} was not stopped by this run", nothing=True)
        if not _ours(record, stop):
            by = record.held_by or "nobody"
            why = f"{service.name} is held by {by} ({record.held_reason or 'released'})"
            return Intent(f"{why}, not by this run", nothing=True, reason="not_ours")
        if not should_return(stop):
            self._release(context, stop)
            why = f"{service.name} was down before; it is no longer held, and not started"
            return Intent(why, nothing=True, reason="was_down")
        what = f"start {service.name} by {service.manager.kind}"
        return Intent(what, {"stopped": stop.intent.get("before"), "since": stop.started_at})

    def begun(self, context: StepContext, intent: Mapping[str, Any]) -> bool:  # noqa: ARG002
        """Whether it runs already."""
        return context.on_service.manager.status().identity is not None

    def run(self, context: StepContext, intent: Mapping[str, Any]) -> Outcome:
        """Turn the hold into that of a restart, start, and end it.

        On unfit cards the hold stays as it is: somebody has to mend them first.
        """
        service, world = context.on_service, context.world
        wait_for_fit_cards(context, service, self._parameters.fit_within)
        with world.store.transaction() as tx:
            run = None if context.run is None else tx.runs.get(context.run)
            if run is None or run.cancel_reason is not None:
                # Whoever superseded this run found the service stopped, and wants it so.
                raise RemediatorError(f"{service.name} is not started: its run was asked to stop")
            record = tx.inventory.service(service.name)
            mine = record.held_by == HOLDER and (record.held_since or 0.0) >= intent["since"]
            if not mine and not (context.resumed and record.held_by is None):
                raise RemediatorError(
                    f"{service.name} was taken by {record.held_by or 'somebody'} meanwhile: "
                    f"{record.held_reason or 'released'}; it is not started"
                )
            tx.inventory.hold(service.name, HOLDER, RESTARTING, world.clock.now())
        identity = start_held(context, self._parameters.within)
        data = {"after": identity.to_json()}
        return Outcome("done", "started", f"{service.name} runs again ({identity.told})", data)

    @staticmethod
    def _record(context: StepContext) -> ServiceRecord:
        with context.world.store.reading() as tx:
            return tx.inventory.service(context.on_service.name)

    @staticmethod
    def _stop(context: StepContext) -> Step | None:
        """The journal entry of this run's stop of the service."""
        if context.run is None:
            return None
        with context.world.store.reading() as tx:
            steps = tx.runs.steps(context.run)
        name = context.on_service.name
        stops = [s for s in steps if s.action == "stop_service" and s.service == name]
        return stops[-1] if stops else None

    @staticmethod
    def _release(context: StepContext, stop: Step) -> None:
        with context.world.store.transaction() as tx:
            record = tx.inventory.service(context.on_service.name)
            if _ours(record, stop):
                tx.inventory.release(record.name)


def _ours(record: ServiceRecord, stop: Step) -> bool:
    """Whether the hold is the one that the stop took, or that an earlier start made of it."""
    return record.held_by == HOLDER and (record.held_since or 0.0) >= stop.started_at
