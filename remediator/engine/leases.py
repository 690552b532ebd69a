"""Keeps the undo leases: restores a knob when fresh evidence says so, and at no other time."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

from remediator.counters import Counters
from remediator.durations import format_duration
from remediator.errors import ControlError, NoEvidence, RemediatorError, StorageError
from remediator.gpu_control.base import ROUNDING, knob_named, reach_the_same
from remediator.gpu_control.jetson import control_of
from remediator.policy import undo
from remediator.readings import GpuReading
from remediator.store import Draft, Lease
from remediator.store.audit import Severity
from remediator.store.rows import LeaseState
from remediator.targets import Target
from remediator.world import World

log = logging.getLogger(__name__)

_HOUR = 3600.0
_KNOB_SECONDS = 1.0
FLAPPING = "flapping"
CARD_GONE = "card_gone"


class LeaseKeeper:
    """Looks at every open lease once a tick. Gated by nothing but evidence."""

    def __init__(self, world: World, counters: Counters, *, nobody_executes: bool = False) -> None:
        """With `nobody_executes`, runs that a dead remediator left behind do not hold an undo up."""
        self._world = world
        self._counters = counters
        self._nobody_executes = nobody_executes
        self._cool_since: dict[int, float] = {}
        self._said: dict[int, str] = {}

    def tick(self) -> None:
        """Look at every open lease now."""
        with self._world.store.reading() as tx:
            leases = tx.leases.open_all()
        known = {lease.id for lease in leases}
        self._cool_since = {k: v for k, v in self._cool_since.items() if k in known}
        for lease in leases:
            try:
                self._look(lease)
            except RemediatorError:
                # One lease that cannot be recorded must not keep the others from being undone.
                log.exception("a lease could not be looked at lease=%d", lease.id)

    def _look(self, lease: Lease) -> None:
        undone = self._world.store.emergency.of("undone")
        if any(entry["lease"] == lease.id for entry in undone):
            return  # It is done; only the store does not know yet.
        if self._is_worked_on(lease):
            self._cool_since.pop(lease.id, None)
            return
        evidence = self._evidence(lease)
        decision = undo.decide(evidence)
        if decision.kept:
            self._page_flapping(lease, decision.sentence)
        if decision.reason == "blind" and self._is_overdue(lease) and is_gone(self._world, lease):
            self._page_gone(lease)
        if decision.verb == "wait":
            if decision.reason != self._said.get(lease.id):
                self._said[lease.id] = decision.reason
                log.info(
                    "lease waits lease=%d uuid=%s why=%s", lease.id, lease.uuid, decision.reason
                )
            return
        knob = self._world.knobs.of(lease.uuid)
        if not knob.acquire(timeout=_KNOB_SECONDS):
            return  # A cap is being written; the other leases must not wait for it.
        try:
            # Under the knob's lock: a cap must not come between the look and the write.
            if not self._is_worked_on(lease) and self._is_open(lease):
                self._restore(lease, decision.sentence)
        finally:
            knob.release()

    def _is_open(self, lease: Lease) -> bool:
        with self._world.store.reading() as tx:
            newest = tx.leases.open_for(lease.uuid, lease.knob)
        return newest == lease

    def _is_worked_on(self, lease: Lease) -> bool:
        if self._nobody_executes:
            return False
        with self._world.store.reading() as tx:
            holders = tx.runs.holders((Target("gpu", lease.uuid),))
        return bool(holders)

    def _evidence(self, lease: Lease) -> undo.UndoEvidence:
        timing, limits = self._world.config.timing, self._world.config.limits
        reading = self._read(lease)
        warning = None if reading is None else reading.temperature_thresholds.get("warning")
        cool_below = None if warning is None else warning - timing.cool_margin_celsius
        temperature = None if reading is None else reading.temperature
        ages, clock = self._world.ages, self._world.clock
        with self._world.store.reading() as tx:
            recent = ages.recent(tx, _HOUR, clock)
        # One excursion may raise an alert of each level, so each level is counted by itself.
        by_alert = Counter(
            run.trigger
            for run in recent
            if not run.safe
            and run.target == Target("gpu", lease.uuid)
            and run.trigger.startswith("GPUTemperature")
            and ages.dated(run, clock)[0] >= clock.now() - _HOUR
        )
        return undo.UndoEvidence(
            blind=reading is None,
            temperature=temperature,
            cool_below=cool_below,
            cool_for=self._cool_for(lease, temperature, cool_below),
            hold_down=timing.hold_down,
            recent_episodes=max(by_alert.values(), default=0),
            flap_limit=limits.flap_episodes_per_hour,
            requested=lease.undo_requested,
        )

    def _read(self, lease: Lease) -> GpuReading | None:
        try:
            reading = self._world.gpus.one(lease.uuid)
        except NoEvidence:
            return None
        return reading if reading.fresh(self._world.config.timing.reading_max_age) else None

    def _cool_for(
        self, lease: Lease, temperature: float | None, cool_below: float | None
    ) -> float | None:
        """Seconds without a break; anything but a fresh cool reading starts the count anew."""
        if temperature is None or cool_below is None or temperature > cool_below:
            self._cool_since.pop(lease.id, None)
            return None
        now = self._world.clock.monotonic()
        return now - self._cool_since.setdefault(lease.id, now)

    def _restore(self, lease: Lease, why: str) -> None:
        control = self._world.control
        if not reach_the_same(control.name, lease.control):
            self._complain(
                lease,
                f"the cap was set by the control {lease.control!r}, now it is {control.name!r}",
            )
            return
        control = control_of(control, lease.knob)
        try:
            verb = undo.compare(control.power(lease.uuid).limit, lease.original, lease.written)
            if verb == "restore":
                control.set_power_limit(lease.uuid, lease.original)
                found = control.power(lease.uuid).limit
                if abs(found - lease.original) > ROUNDING:
                    say = knob_named(lease.knob).say
                    self._complain(
                        lease,
                        f"the {knob_named(lease.knob).noun} reads {say(found)} after it was set back to "
                        f"{say(lease.original)}",
                    )
                    return
        except ControlError as error:
            self._complain(lease, f"the undo failed: {error}")
            return
        self._close(lease, verb, why)

    def _close(self, lease: Lease, verb: undo.Verb, why: str) -> None:
        knob = knob_named(lease.knob)
        back = f"the {knob.noun} is back at {knob.say(lease.original)}"
        endings: dict[str, tuple[LeaseState, str, Severity]] = {
            "restore": ("restored", f"{back}: {why}", "info"),
            "already_original": (
                "already_original",
                f"{back} already (a reset, a reboot, or an undo that "
                "could not be recorded); nothing is written",
                "info",
            ),
            "foreign": (
                "foreign",
                f"the {knob.noun} is not what we set: somebody changed it, so it is left alone",
                "warning",
            ),
        }
        state, sentence, severity = endings[verb]
        try:
            with self._world.store.transaction() as tx:
                tx.leases.end(lease.id, state, sentence, self._world.clock.now())
                tx.audit(
                    Draft(
                        "undone",
                        f"{lease.uuid}: {sentence}",
                        severity=severity,
                        run=lease.run_id,
                        target=f"gpu:{lease.uuid}",
                        reason=state,
                        data={"lease": lease.id, "knob": lease.knob, "original": lease.original},
                    )
                )
        except StorageError:
            # The knob is back; the lease is closed and audited as soon as the store can write.
            self._world.store.emergency.append(
                "undone",
                time=self._world.clock.now(),
                lease=lease.id,
                target=["gpu", lease.uuid],
                run=lease.run_id,
                knob=lease.knob,
                original=lease.original,
                state=state,
                severity=severity,
                sentence=f"{lease.uuid}: {sentence}",
            )
        self._counters.add("actions", "restore_power", "done")
        self._said.pop(lease.id, None)

    def _complain(self, lease: Lease, sentence: str) -> None:
        """Say it once in the audit, and go on trying."""
        if self._said.get(lease.id) == sentence:
            return
        self._counters.add("actions", "restore_power", "failed")
        with self._world.store.transaction() as tx:
            tx.audit(
                Draft(
                    "undo_failed",
                    f"{lease.uuid}: {sentence}; it is tried again",
                    severity="critical",
                    run=lease.run_id,
                    target=f"gpu:{lease.uuid}",
                    reason="undo_failed",
                )
            )
        self._said[lease.id] = sentence

    def _is_overdue(self, lease: Lease) -> bool:
        age = self._world.ages.of_lease(lease, self._world.clock)
        return age > self._world.config.timing.lease_overdue_after

    def _page_flapping(self, lease: Lease, sentence: str) -> None:
        why = f"{lease.uuid}: {sentence} ({format_duration(_HOUR)} is looked back)"
        self._page(lease, "cap_kept", FLAPPING, why)

    def _page_gone(self, lease: Lease) -> None:
        """It may come back, so only a person can end the lease."""
        why = (
            f"{lease.uuid} is to be given back its {knob_named(lease.knob).noun}, but the exporter "
            "knows no such card any more; if it was removed for good: "
            f"gpu-remediator undo --forget {lease.uuid}"
        )
        self._page(lease, "undo_card_gone", CARD_GONE, why)

    def _page(self, lease: Lease, event: str, reason: str, sentence: str) -> None:
        """Once a lease: who acknowledged it has heard."""
        target, said = Target("gpu", lease.uuid), f"{reason}:{lease.id}"
        with self._world.store.reading() as tx:
            if tx.get_meta(said) is not None:
                return
        with self._world.store.transaction() as tx:
            tx.set_meta(said, "paged")
            tx.incidents.put(
                episode_id=None,
                trigger="GPUTemperatureWarning",
                target=target,
                playbook="throttle-gpu",
                state="needs_human",
                reason=reason,
                last_step="cap_power",
                now=self._world.clock.now(),
            )
            tx.audit(
                Draft(
                    event,
                    sentence,
                    severity="critical",
                    run=lease.run_id,
                    target=target.key,
                    reason=reason,
                )
            )


def is_gone(world: World, lease: Lease) -> bool:
    """Whether the exporter answers and knows no such card: not one that is lost or silent."""
    try:
        return all(reading.uuid != lease.uuid for reading in world.gpus.all())
    except NoEvidence:
        return False


def forget(world: World, uuid: str, by: Mapping[str, Any] | None = None) -> tuple[Lease, ...]:
    """End the leases of a card that was removed for good; nothing is written to it.

    Raises:
        RemediatorError: there is none, the exporter still knows the card, or does not answer.
    """
    with world.store.reading() as tx:
        leases = tuple(one for one in tx.leases.open_all() if one.uuid == uuid)
    if not leases:
        raise RemediatorError(f"there is no undo of {uuid} that could be forgotten")
    if not all(is_gone(world, lease) for lease in leases):
        raise RemediatorError(
            f"{uuid} is not forgotten: the exporter still knows it, or does not answer; a card that "
            "was removed leaves its list with `gpu-exporter inventory reset`"
        )
    with world.store.transaction() as tx:
        now, target = world.clock.now(), Target("gpu", uuid)
        for lease in leases:
            knob = knob_named(lease.knob)
            why = f"an operator says that {uuid} is gone; its {knob.noun} is not restored"
            tx.leases.end(lease.id, "forgotten", why, now)
            about = {"lease": lease.id, "knob": lease.knob, "original": lease.original}
            tx.audit(
                Draft(
                    "undone",
                    why,
                    severity="warning",
                    run=lease.run_id,
                    target=target.key,
                    reason="forgotten",
                    data=about | dict(by or {}),
                )
            )
        for incident in tx.incidents.open_all():
            if incident.target == target and incident.reason == CARD_GONE:
                tx.incidents.close(incident.id, now)
    return leases
