"""What the service actions share: fit cards, the start of a held service, and what stays down."""

from __future__ import annotations

from collections.abc import Callable

from remediator.actions.base import StepContext
from remediator.cards import RELEASED, why_unfit
from remediator.errors import NoEvidence, RemediatorError
from remediator.managers import ProcessIdentity
from remediator.store.inventory import RESTARTING
from remediator.world import Service, World

_STOPPED_AGAIN_WITHIN = 60.0
# For so long at most the exporter lets go of the cards.
_LONGEST_RELEASE = 600.0


def wait_for_fit_cards(context: StepContext, service: Service, within: float) -> None:
    """Wait, at most `within` seconds, until the service may be started on its cards.

    Not counted is the time in which the exporter has let go of them, for the reset of another card.

    Raises:
        RemediatorError: one of its cards is still unfit.
    """
    clock = context.world.clock
    deadline, allowance = clock.monotonic() + within, _LONGEST_RELEASE
    while True:
        try:
            return refuse_unfit_cards(context.world, service)
        except RemediatorError:
            if clock.monotonic() >= deadline:
                raise
            if _is_let_go(context.world, service) and allowance > 0:
                allowance, deadline = allowance - 1.0, deadline + 1.0
        context.wait(1.0)


def _is_let_go(world: World, service: Service) -> bool:
    try:
        found = [reading for reading in world.gpus.all() if service.uses(reading.uuid)]
    except NoEvidence:
        return False
    return any(reading.fault == RELEASED for reading in found)


def refuse_unfit_cards(world: World, service: Service, *, hot_too: bool = True) -> None:
    """A service is not started on a card that is missing, hot, lost or faulted.

    Without `hot_too` heat does not count: stopping what heats a card is the way to cool it.

    Raises:
        RemediatorError: one of its cards is unfit, or none could be read.
    """
    why = why_unfit(world, service, hot_too=hot_too)
    if why is not None:
        raise RemediatorError(why)


def start_held(
    context: StepContext,
    within: float,
    start: Callable[[float], ProcessIdentity] | None = None,
) -> ProcessIdentity:
    """Start the service, which the caller holds as being restarted, and end that hold.

    Args:
        context: Of the step.
        within: How many seconds it may take.
        start: What starts it, where its manager's own start is not meant.

    Raises:
        RemediatorError: it did not come up in that time, or was to stop meanwhile.
    """
    service, store = context.on_service, context.world.store
    _still_wanted(context)
    found = service.manager.status().identity
    identity = (start or service.manager.start)(within)
    mark = f"{identity.pid} {identity.started_at} {identity.name}".rstrip()
    key = f"restarted:{service.name}"
    with store.transaction() as tx:
        # The process that came of it names the restart: a resumed step counts it once.
        if (context.resumed or not identity.same(found)) and tx.get_meta(key) != mark:
            tx.set_meta(key, mark)
            tx.inventory.count_restart(service.name)
        overtaken = tx.inventory.service(service.name).held_reason != RESTARTING
        if not overtaken:
            tx.inventory.release(service.name)
    if overtaken:
        # A stop came while the manager was starting it, and found nothing to stop.
        service.manager.stop(identity, _STOPPED_AGAIN_WITHIN)
        raise RemediatorError(f"{service.name} was to stop meanwhile; it is stopped again")
    return identity


def _still_wanted(context: StepContext) -> None:
    """A stop for heat, or a person, may have taken the service meanwhile."""
    context.wait(0.0)
    with context.world.store.reading() as tx:
        record = tx.inventory.service(context.on_service.name)
    if record.held_reason != RESTARTING:
        raise RemediatorError(
            f"{record.name} was taken by {record.held_by or 'somebody'} meanwhile: "
            f"{record.held_reason or 'released'}; it is not started"
        )


def why_left_down(context: StepContext) -> str | None:
    """Why this run has left the service down on purpose; None where it should be up."""
    service, world = context.on_service, context.world
    if context.run is None:
        return None
    with world.store.reading() as tx:
        starts = [
            step
            for step in tx.runs.steps(context.run)
            if step.action == "start_service" and step.service == service.name
        ]
    return next((step.sentence for step in starts if step.state == "nothing"), None)
