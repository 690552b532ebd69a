"""Stop the service's process, if it runs, and start it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from remediator.actions._service import refuse_unfit_cards, start_held, wait_for_fit_cards
from remediator.actions.base import Intent, Outcome, StepContext
from remediator.cards import why_unfit
from remediator.config.model import Permission
from remediator.config.strict import Seconds
from remediator.errors import RemediatorError
from remediator.managers import ProcessIdentity
from remediator.managers.base import Replaces, identity_from
from remediator.store.inventory import HOLDER, RESTARTING


@dataclass(frozen=True)
class Parameters:
    """How long stopping, then cooling where a card is too hot to start on, and starting may take."""

    stop_within: Seconds = 60.0
    cool_within: Seconds = 120.0
    start_within: Seconds = 60.0


def create(parameters: Parameters) -> RestartService:
    """The action."""
    return RestartService(parameters)


class RestartService:
    """Pins the process that is to go, so that a resumed step never stops the new one."""

    kind = "restart_service"
    permission: Permission | None = "service_restart"
    scope: Literal["one_service"] = "one_service"
    destructive = True
    safe_direction = False
    resumable = True

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters

    def describe(self, context: StepContext) -> str:
        """What the process manager would do."""
        service = context.on_service
        return f"restart {service.name}: {service.manager.describe('restart')}"

    def intend(self, context: StepContext) -> Intent:
        """Remember which process is to be replaced; what is down on purpose stays down."""
        service = context.on_service
        status = service.manager.status()
        with context.world.store.reading() as tx:
            record = tx.inventory.service(service.name)
        unfinished = record.held_by == HOLDER and record.held_reason == RESTARTING
        if record.held_by is not None and not unfinished:
            raise RemediatorError(
                f"{service.name} is held down by {record.held_by} ({record.held_reason}); "
                "it is not started"
            )
        if status.state == "stopped" and not unfinished:
            raise RemediatorError(
                f"{service.name} was stopped on purpose ({status.detail}); it is not started"
            )
        refuse_unfit_cards(context.world, service, hot_too=status.identity is None)
        if status.identity is None and service.driver.probe().is_up:
            raise RemediatorError(
                f"{service.manager.kind} knows no process of {service.name}, yet it answers: "
                "a second one is not started beside it"
            )
        if status.identity is None:
            return Intent(f"start {service.name} by {service.manager.kind}", {"before": {}})
        data: dict[str, Any] = {"before": status.identity.to_json()}
        if isinstance(service.manager, Replaces):
            moment = datetime.fromtimestamp(context.world.clock.now(), UTC)
            data["mark"] = f"run {context.run}, {moment.isoformat(timespec='milliseconds')}"
        what = f"restart {service.name} ({status.identity.told})"
        return Intent(f"{what} by {service.manager.kind}", data)

    def begun(self, context: StepContext, intent: Mapping[str, Any]) -> bool:
        """Whether the process that is to go is gone, or the one that is to come is there."""
        manager = context.on_service.manager
        before = identity_from(intent.get("before"))
        if before is not None and isinstance(manager, Replaces) and "mark" in intent:
            return manager.replacing(before, intent["mark"])
        now = manager.status().identity
        return now is not None if before is None else not before.same(now)

    def run(self, context: StepContext, intent: Mapping[str, Any]) -> Outcome:
        """Stop exactly the process of the intent; then start, unless a new one runs already.

        Between the two the service is held as being restarted: a crash or a hot card in between
        leaves it known as one that should be up.
        """
        service, store = context.on_service, context.world.store
        before = identity_from(intent.get("before"))
        with store.transaction() as tx:
            record = tx.inventory.service(service.name)
            if record.held_by is not None and record.held_reason != RESTARTING:
                raise RemediatorError(
                    f"{service.name} was taken by {record.held_by} meanwhile: {record.held_reason}"
                )
            tx.inventory.hold(service.name, HOLDER, RESTARTING, context.world.clock.now())
        identity = self._replaced(context, before, intent)
        if identity is None:
            if before is not None:
                service.manager.stop(before, self._parameters.stop_within)
            wait_for_fit_cards(context, service, self._parameters.cool_within)
            identity = start_held(context, self._parameters.start_within)
        data = {"before": intent.get("before"), "after": identity.to_json()}
        return Outcome("done", "restarted", f"{service.name} runs again ({identity.told})", data)

    def _replaced(
        self, context: StepContext, before: ProcessIdentity | None, intent: Mapping[str, Any]
    ) -> ProcessIdentity | None:
        """By one request of its manager; None where it has none, or a card is unfit for the new one."""
        manager, mark = context.on_service.manager, intent.get("mark")
        if before is None or mark is None or not isinstance(manager, Replaces):
            return None
        if why_unfit(context.world, context.on_service) is not None:
            return None
        within = self._parameters.stop_within + self._parameters.start_within
        return start_held(context, within, lambda left: manager.replace(before, mark, left))
