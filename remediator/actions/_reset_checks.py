"""What must hold before a card is reset; every answer is recorded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psutil

from remediator import signals
from remediator.actions.base import StepContext
from remediator.cards import RELEASED
from remediator.durations import format_duration
from remediator.errors import ManagerError, NoEvidence
from remediator.gpu_reset import Check
from remediator.managers import ProcessIdentity
from remediator.readings import GpuReading, Process
from remediator.signals import Finding
from remediator.targets import Target
from remediator.world import Service, World

# As long as a reset and the answer of its card may take.
_TURN_WITHIN = 300.0
# The exporter opens the driver anew, which takes seconds without persistence mode.
_SEEN_AGAIN_WITHIN = 30.0


def checks(world: World, uuid: str, again_after: float) -> tuple[Check, ...]:
    """Every precondition that can be told while services still run; changes nothing.

    Args:
        world: What is looked at.
        uuid: The card.
        again_after: Seconds after a try in which the card is not reset again.
    """
    return (
        _one_card(world, uuid),
        _fault(world, uuid),
        _history(world, uuid, again_after),
        _others_cool(world, uuid),
        *world.card_reset.checks(uuid),
        _release(world),
    )


def why_no_longer(context: StepContext) -> str:
    """What has changed since those were asked, when the turn has come; empty when nothing has.

    A card that is not seen yet, because another one was reset, is looked at again.
    """
    world, uuid = context.world, context.on_gpu
    deadline = world.clock.monotonic() + _SEEN_AGAIN_WITHIN
    while True:
        failed = [
            one for one in (_fault(world, uuid), _others_cool(world, uuid)) if one.passed is False
        ]
        if not failed or world.clock.monotonic() >= deadline:
            return "; ".join(one.answer for one in failed)
        if world.clock.wait(context.stop, 1.0):
            return "it was to stop while it waited for its turn"


@contextlib.contextmanager
def turn(context: StepContext) -> Iterator[bool]:
    """Nobody else's reset meanwhile; False where another card still has the turn after minutes.

    The exporter lets go of all cards at once, so that nothing is known of any while one is reset.
    """
    clock, lock = context.world.clock, context.world.knobs.of("reset")
    deadline = clock.monotonic() + _TURN_WITHIN
    mine = lock.acquire(timeout=0)
    while not mine and clock.monotonic() < deadline and not clock.wait(context.stop, 1.0):
        mine = lock.acquire(timeout=0)
    try:
        yield mine
    finally:
        if mine:
            lock.release()


def wait_until_seen(context: StepContext) -> None:
    """Wait for the end of another card's reset, and until this card is seen again after it.

    Raises:
        Interrupted: the run was asked to stop meanwhile.
    """
    world = context.world
    with turn(context) as mine:
        deadline = world.clock.monotonic() + _SEEN_AGAIN_WITHIN
        while mine and world.clock.monotonic() < deadline and _is_let_go(context):
            context.wait(1.0)
    context.wait(0.0)


def _is_let_go(context: StepContext) -> bool:
    try:
        return context.world.gpus.one(context.on_gpu).fault == RELEASED
    except NoEvidence:
        return False


def strangers(world: World, uuid: str) -> Check:
    """Whether only the card's configured services use it: nobody else is ever stopped."""
    try:
        processes = world.gpus.one(uuid).processes
    except NoEvidence as error:
        return Check("strangers", passed=False, answer=str(error))
    if processes is None:
        return Check("strangers", passed=None, answer="the card does not say who uses it")
    families = [_Family(service) for service in world.services_on(uuid)]
    others = [one for one in processes if not any(family.has(one) for family in families)]
    if others:
        named = ", ".join(f"{one.name or 'a process'} (pid {one.pid})" for one in others)
        return Check("strangers", passed=False, answer=f"no service of ours: {named}")
    return Check("strangers", passed=True, answer=f"{len(processes)} process(es), all of ours")


def _one_card(world: World, uuid: str) -> Check:
    try:
        found = [reading for reading in world.gpus.all() if reading.uuid == uuid]
    except NoEvidence as error:
        return Check("one_card", passed=False, answer=str(error))
    if len(found) != 1:
        return Check("one_card", passed=False, answer=f"{len(found)} cards have this uuid")
    return _reachable(found[0])


def _reachable(reading: GpuReading) -> Check:
    there = reading.fault in (None, "reset_required")
    return Check("one_card", there, reading.label if there else f"fault {reading.fault}")


def fault_of(world: World, uuid: str) -> Finding:
    """What is known of the card's fault now."""
    signal = signals.create({"signal": "device_fault"}, "preflight")
    return signal.read(world, Target("gpu", uuid))


def _fault(world: World, uuid: str) -> Check:
    finding = fault_of(world, uuid)
    return Check("device_fault", finding.state == "present", finding.sentence)


def _history(world: World, uuid: str, again_after: float) -> Check:
    with world.store.reading() as tx:
        tried = tx.runs.last_reset_tried(uuid)
    if tried is None:
        return Check("first_reset", passed=True, answer="none was tried before")
    # From the beginning of its run, whose age no clock that is set changes.
    ago = world.clock.now() - world.ages.dated(tried, world.clock)[0]
    answer = f"one was tried {format_duration(ago)} ago"
    if ago < again_after:
        answer += ": a card that needs another so soon is most likely broken"
    return Check("first_reset", ago >= again_after, answer)


def _others_cool(world: World, uuid: str) -> Check:
    """While the exporter has let go nobody sees the other cards: not while one of them is hot."""
    try:
        others = [reading for reading in world.gpus.all() if reading.uuid != uuid]
    except NoEvidence as error:
        return Check("others_cool", passed=False, answer=str(error))
    for reading in others:
        celsius, critical = reading.temperature, reading.temperature_thresholds.get("critical")
        if celsius is not None and critical is not None and celsius > critical:
            answer = f"{reading.label} is at {celsius:.1f} °C, and would not be seen"
            return Check("others_cool", passed=False, answer=answer)
    return Check("others_cool", passed=True, answer=f"{len(others)} other card(s)")


def _release(world: World) -> Check:
    why = world.release.why_not()
    return Check("exporter_release", why is None, why or "the exporter can let go of the card")


class _Family:
    """The processes of a service: its unit or container, its process and all that came of it."""

    def __init__(self, service: Service) -> None:
        self._unit = service.manager.unit
        identity = _identity(service)
        self._pids = frozenset(_pids(identity))
        self._name = identity.name

    def has(self, process: Process) -> bool:
        return (
            process.pid in self._pids
            or (bool(self._unit) and self._unit in (process.unit, process.container))
            or process.is_of(self._name)
        )


def _identity(service: Service) -> ProcessIdentity:
    try:
        return service.manager.status().identity or ProcessIdentity(0, 0.0)
    except ManagerError:
        return ProcessIdentity(0, 0.0)


def _pids(identity: ProcessIdentity) -> Iterator[int]:
    if identity.pid == 0:
        return
    yield identity.pid
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(identity.pid).children(recursive=True):
            yield child.pid
