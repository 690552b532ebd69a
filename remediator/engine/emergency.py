"""A stop for heat while the store cannot be written.

Everything else waits for the store. A card at its shutdown temperature must not: its services are
stopped on the same gates and the same fresh evidence, the journal is the emergency journal, and the
run is put into the store by whoever can first write there again, before anything else.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, cast

from remediator.actions import Outcome, StepContext
from remediator.actions.stop_service import StopService
from remediator.alertmanager import Alert, Notification
from remediator.clock import boot_id
from remediator.engine.emergency_merge import Entry, Merge
from remediator.engine.evaluator import Evaluator
from remediator.engine.gathering import stopped_lately
from remediator.engine.step_gates import ask
from remediator.errors import OutcomeUnknown, RemediatorError, StorageError
from remediator.inventory import known_gpus
from remediator.playbooks import PlannedStep, Playbook, from_journal
from remediator.policy.breaker import why_too_many
from remediator.store import Episode, Run, Transaction
from remediator.targets import Target
from remediator.world import World

log = logging.getLogger(__name__)

Submit = Callable[[str, Callable[[], None]], None]
# Alertmanager repeats what was not stored within seconds; silence means that it is over.
_TOLD_FOR = 120.0
_AGAIN_AFTER = 60.0
# Of cards that are not ours any number may be named, and those that come later may be ours.
_TOLD_AT_MOST = 256
_PROBE = "ready_probe"


def _at_once(_: str, work: Callable[[], None]) -> None:
    work()


class EmergencyStop:
    """Looks once a second; does nothing while the store can be written."""

    def __init__(self, world: World, evaluator: Evaluator, submit: Submit = _at_once) -> None:
        self._world = world
        self._evaluator = evaluator
        self._submit = submit
        self._lock = threading.Lock()
        self._told: dict[str, tuple[float, Episode]] = {}
        self._tried: dict[str, float] = {}
        self._said = False
        world.store.take_over = self._take_over

    def _take_over(self, tx: Transaction, entries: Sequence[Entry], unreadable: int) -> None:
        Merge(tx, self._world.clock.now()).all(entries, unreadable)

    def told(self, notification: Notification) -> None:
        """A delivery that could not be stored. It was answered so, and comes again."""
        now = self._world.clock.monotonic()
        for alert in notification.alerts:
            playbook = self._evaluator.playbooks.for_alert(alert.name)
            if playbook is None or not playbook.safe:
                continue
            with self._lock:
                # The oldest stand first.
                self._told.pop(alert.fingerprint, None)
                if alert.status == "firing":
                    self._told[alert.fingerprint] = (now, _unstored(alert, self._world.clock.now()))
        self._make_room()

    def _make_room(self) -> None:
        """Drop the oldest of too many alerts; of a card of ours only where there are no others."""
        with self._lock:
            if len(self._told) <= _TOLD_AT_MOST:
                return
        ours: Collection[str] = ()
        with contextlib.suppress(StorageError):
            ours = known_gpus(self._world)
        with self._lock:
            cards = {key: one[1].labels.get("uuid") for key, one in self._told.items()}
            drop = sorted(cards, key=lambda key: cards[key] in ours)
            for key in drop[: max(0, len(drop) - _TOLD_AT_MOST)]:
                del self._told[key]
            said, self._said = self._said, True
        if not said:
            log.warning(
                "the store fails, and more than %d alerts that it could not take in are to be "
                "remembered: the oldest are dropped",
                _TOLD_AT_MOST,
            )

    def tick(self) -> None:
        """Stop what must be stopped, if the store still cannot be written."""
        store = self._world.store
        if not store.failing and not store.emergency.entries:
            return
        try:
            with store.transaction() as tx:
                tx.set_meta(_PROBE, str(self._world.clock.now()))
        except StorageError:
            self._without_store()
        else:
            self._told, self._tried, self._said = {}, {}, False

    def _without_store(self) -> None:
        with self._world.store.reading() as tx:
            runs, episodes = tx.runs.active(), tx.episodes.open_all()
        for run in runs:
            if run.safe and run.state in ("reserved", "running"):
                self._submit(run.target.key, partial(self._carry_on, run))
        for episode in (*episodes, *self._told_lately()):
            playbook = self._evaluator.playbooks.for_alert(episode.alertname)
            if playbook is not None and playbook.safe and not episode.acted:
                key = f"gpu:{episode.labels.get('uuid', '')}"
                self._submit(key, partial(self._begin, episode, playbook))

    def _told_lately(self) -> list[Episode]:
        since = self._world.clock.monotonic() - _TOLD_FOR
        with self._lock:
            self._told = {key: one for key, one in self._told.items() if one[0] >= since}
            return [episode for _, episode in self._told.values()]

    def _begin(self, episode: Episode, playbook: Playbook) -> None:
        """Stop for an alert whose run could not be reserved."""
        considered = self._evaluator.consider(episode)
        if considered.decision.kind != "run" or considered.plan is None:
            return
        target = considered.target
        if not self._may_try(target, playbook.name):
            return
        began = self._began(target)
        if began is None:
            began = {
                "run": None,
                "episode": episode.id or None,
                "alertname": episode.alertname,
                "playbook": playbook.name,
                "weight": playbook.weight,
                "target": [target.kind, target.name],
                "plan": [step.to_json() for step in considered.plan.steps],
                "sentence": considered.decision.sentence,
                "evidence": dict(considered.decision.evidence),
            }
            self._journal("began", **began)
        self._stop(target, considered.plan.steps)

    def _carry_on(self, run: Run) -> None:
        """Stop for a run that was reserved before the store failed."""
        playbook = self._evaluator.playbooks.by_name.get(run.playbook)
        if playbook is None or run.cancel_reason or run.rung > 0:
            return
        with self._world.store.reading() as tx:
            ended = {step.seq for step in tx.runs.steps(run.id) if step.state != "intended"}
        plan = from_journal(run.plan)
        left = [step for seq, step in _stops(plan) if seq not in ended]
        if not left:
            return
        finding = playbook.evidence.read(self._world, run.target)
        refusal = ask(self._world, playbook, run, left[0])[1]
        if (
            finding.state != "present"
            or refusal is not None
            or not self._may_try(run.target, playbook.name)
        ):
            return
        if self._began(run.target) is None:
            self._journal(
                "began",
                run=run.id,
                target=[run.target.kind, run.target.name],
                alertname=run.trigger,
                sentence=finding.sentence,
                # Whoever takes it over may have lost the run with the database.
                episode=run.episode_id,
                playbook=run.playbook,
                weight=run.weight,
                plan=run.plan,
            )
        self._stop(run.target, plan, ended)

    def _may_try(self, target: Target, playbook: str) -> bool:
        """Not what is done already, not again at once, and not on too many cards."""
        now, limits = self._world.clock.monotonic(), self._world.config.limits
        stopped = self._stopped_before(playbook)
        with self._lock:
            if now - self._tried.get(target.key, -_AGAIN_AFTER) < _AGAIN_AFTER:
                return False
            journaled = self._world.store.emergency.of("began")
            # Several cards are looked at at once: who was let through may not be journaled yet.
            began = {":".join(one["target"]) for one in journaled} | self._tried.keys() | stopped
            storm = why_too_many(began, target.key, limits)
            if storm is None:
                self._tried[target.key] = now
                return True
        log.critical("%s is not stopped while the store fails: %s", target.name, storm)
        return False

    def _stopped_before(self, playbook: str) -> set[str]:
        """What was stopped just before the store failed, where it can be read."""
        try:
            return stopped_lately(self._world, playbook)
        except StorageError:
            return set()

    def _began(self, target: Target) -> Mapping[str, Any] | None:
        wanted = [target.kind, target.name]
        began = self._world.store.emergency.of("began")
        return next((one for one in began if list(one["target"]) == wanted), None)

    def _stop(
        self, target: Target, plan: tuple[PlannedStep, ...], ended: set[int] | None = None
    ) -> None:
        done = {
            one["seq"]
            for one in self._world.store.emergency.of("ended")
            if one["target"] == [target.kind, target.name] and one["state"] == "done"
        }
        for seq, step in _stops(plan):
            if seq in done or seq in (ended or ()):
                continue
            service = self._world.services.get(step.service or "")
            if service is None:
                continue
            context = StepContext(self._world, step.gpu, service, threading.Event())
            about = {"target": [target.kind, target.name], "seq": seq, "service": service.name}
            outcome = self._one(step, context, about)
            self._journal(
                "ended",
                **about,
                state=outcome.state,
                reason=outcome.reason,
                sentence=outcome.sentence,
                because=getattr(step.action, "because", ""),
            )

    def _one(self, step: PlannedStep, context: StepContext, about: Mapping[str, Any]) -> Outcome:
        action = cast(StopService, step.action)
        try:
            intent = action.intend(context)
            self._journal("intended", **about, intent=dict(intent.data), sentence=intent.sentence)
            return action.carry_out(context, intent.data)
        except OutcomeUnknown as error:
            return Outcome("unknown", "outcome_unknown", str(error))
        except RemediatorError as error:
            return Outcome("failed", "error", f"{action.kind} failed: {error}")

    def _journal(self, what: str, **more: Any) -> None:
        now = self._world.clock.now()
        self._world.store.emergency.append(what, time=now, boot_id=boot_id(), **more)


def _stops(plan: tuple[PlannedStep, ...]) -> list[tuple[int, PlannedStep]]:
    return [
        (seq, step)
        for seq, step in enumerate(plan)
        if step.rung == 0 and step.action.kind == StopService.kind
    ]


def _unstored(alert: Alert, now: float) -> Episode:
    """An alert that no episode could be made of, as one."""
    return Episode(
        id=0,
        fingerprint=alert.fingerprint,
        number=0,
        alertname=alert.name,
        labels=alert.labels,
        starts_at=alert.starts_at,
        first_seen=now,
        last_seen=now,
        heartbeats=0,
        ended_at=None,
        last_reason=None,
        acted=False,
    )
