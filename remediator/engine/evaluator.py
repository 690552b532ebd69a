"""From an episode to a decision: target, playbook, gates, evidence, and a reserved run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from remediator.config.model import Mode
from remediator.counters import Counters
from remediator.engine.gathering import Gathered, acted_already, gather, opted_out
from remediator.engine.recording import record_decision
from remediator.engine.reservation import Considered, audit_reserved, reserve
from remediator.errors import NoEvidence
from remediator.inventory import kind_of, resolve
from remediator.playbooks import NOTIFY, Plan, Playbook, Playbooks, make_plan
from remediator.policy import gates
from remediator.policy.decision import Decision
from remediator.signals import Finding
from remediator.store import Episode
from remediator.targets import NO_TARGET, Target
from remediator.world import Service, World

log = logging.getLogger(__name__)

# Whether a card that was not ours has become ours is looked at this often at the least (seconds).
_LOOK_AGAIN = 600.0
_STARTS = ("restart_service", "start_service")


class Evaluator:
    """Decides about one episode at a time; pure policy does the deciding."""

    def __init__(self, world: World, playbooks: Playbooks, counters: Counters) -> None:
        self._world = world
        self._playbooks = self.playbooks = playbooks
        self._counters = counters

    def evaluate(self, episode_id: int) -> int | None:
        """Decide about the episode, record it, and return the run to execute, if any.

        Raises:
            StorageError: the decision could not be kept; nothing was done.
        """
        return self._as_it_is_now().decide_about(episode_id)

    def _as_it_is_now(self) -> Evaluator:
        """The same, on a configuration that no reload changes in the middle of a decision."""
        return Evaluator(self._world.snapshot(), self._playbooks.snapshot(), self._counters)

    def decide_about(self, episode_id: int) -> int | None:
        """As `evaluate`, on the configuration that this evaluator was made with."""
        with self._world.store.reading() as tx:
            episode = tx.episodes.get(episode_id)
        if episode is None or episode.ended_at is not None:
            return None
        considered = self.consider(episode)
        with self._world.store.transaction() as tx:
            now_episode = tx.episodes.get(episode_id)
            if now_episode is None or now_episode.ended_at is not None:
                # Resolved while the evidence was read.
                return None
            if considered.gathered is not None:
                if considered.decision.reason == "breaker_open":
                    considered.gathered.trip_breaker(tx)
                if considered.decision.reason == "target_busy":
                    considered.gathered.supersede(tx)
            run = None
            if considered.decision.kind in ("run", "ask"):
                playbook = self._playbooks.by_name[considered.playbook]
                considered, run = reserve(self._world, playbook, tx, episode, considered)
            record_decision(
                tx,
                self._counters,
                episode,
                considered.decision,
                considered.playbook,
                considered.target,
                self._world.clock.now(),
            )
            if run is not None:
                audit_reserved(tx, run, episode)
        return run.id if run is not None and considered.decision.kind == "run" else None

    def pass_over(self, episode_ids: Sequence[int]) -> tuple[int, ...]:
        """Decide in one transaction about those that concern nothing of ours; the other ids.

        One by one, a storm of alerts about others would keep the disk, and so our own, waiting.

        Raises:
            StorageError: the decisions could not be kept.
        """
        return self._as_it_is_now().decide_about_others(episode_ids)

    def decide_about_others(self, episode_ids: Sequence[int]) -> tuple[int, ...]:
        """As `pass_over`, on the configuration that this evaluator was made with."""
        with self._world.store.reading() as tx:
            found = [tx.episodes.get(one) for one in episode_ids]
        episodes = [one for one in found if one is not None and one.ended_at is None]
        others = [(one, passed) for one in episodes if (passed := self._passed_over(one))]
        if others:
            with self._world.store.transaction() as tx:
                for one, passed in others:
                    now_episode = tx.episodes.get(one.id)
                    if now_episode is not None and now_episode.ended_at is None:
                        now = self._world.clock.now()
                        said = (passed.decision, passed.playbook, passed.target)
                        record_decision(tx, self._counters, one, *said, now)
        theirs = {one.id for one, _ in others}
        return tuple(one.id for one in episodes if one.id not in theirs)

    def _passed_over(self, episode: Episode) -> Considered | None:
        """What is decided about an alert that concerns nothing of ours; None where it may."""
        playbook = self._playbooks.for_alert(episode.alertname)
        kinds = ("gpu", "service", "host") if playbook is None else playbook.targets
        kind = kind_of(kinds, episode.labels)
        try:
            if resolve(self._world, kind, episode.labels) != NO_TARGET:
                return None
        except NoEvidence:
            return None
        if playbook is None:
            return Considered(_notify(), NOTIFY, NO_TARGET)
        return Considered(self._not_ours(kind, episode), playbook.name, NO_TARGET)

    def _not_ours(self, kind: str, episode: Episode) -> Decision:
        """A card may appear yet; the longer it has not, the less often that is looked at."""
        age = self._world.clock.now() - episode.first_seen
        why = f"the alert names no {kind} of this machine's inventory"
        return Decision("ignore", "not_in_inventory", why, min(max(30.0, age), _LOOK_AGAIN))

    def consider(self, episode: Episode) -> Considered:
        """What would be decided now; reads the world, changes nothing."""
        playbook = self._playbooks.for_alert(episode.alertname)
        if playbook is None:
            kind = kind_of(("gpu", "service", "host"), episode.labels)
            return Considered(_notify(), NOTIFY, self._resolve_quietly(kind, episode))
        kind = kind_of(playbook.targets, episode.labels)
        try:
            target = resolve(self._world, kind, episode.labels)
        except NoEvidence as error:
            decision = Decision("defer", "no_fresh_reading", str(error), 2.0)
            return Considered(decision, playbook.name, NO_TARGET)
        if target == NO_TARGET:
            return Considered(self._not_ours(kind, episode), playbook.name, target)
        services = self._services(target)
        control = self._world.control.name
        if playbook.safe or playbook.only_unloads:
            # What is opted out keeps nothing from the others.
            services = self._not_opted_out(services) or services
        plan = make_plan(playbook, target, services, control=control)
        gathered = self._gather(episode, playbook, target, plan)
        refusal = gates.decide(gathered.given)
        if refusal is not None and refusal.reason == "duplicate" and not episode.acted:
            # The other alert may end before this one: then this is no longer the same fault.
            refusal = replace(refusal, retry_after=playbook.recheck)
        if refusal is not None and not _rests_on_evidence(refusal):
            return Considered(refusal, playbook.name, target, plan, gathered)
        finding = playbook.evidence.read(self._world, target)
        if finding.services:
            plan = make_plan(playbook, target, services, finding.services, control=control)
            gathered = self._gather(episode, playbook, target, plan)
            refusal = gates.decide(gathered.given)
        pre_empts = playbook.safe and refusal is not None and refusal.reason == "target_busy"
        if refusal is not None and finding.state == "present" and not pre_empts:
            if refusal.reason == "target_busy" and self._is_being_started(target):
                why = f"{target.name} is being restarted just now; that is not broken off"
                refusal = Decision("defer", "superseded", why, 2.0)
            refusal = replace(refusal, critical=finding.critical)
            return Considered(refusal, playbook.name, target, plan, gathered)
        decision = self._after_evidence(finding, playbook, plan, gathered.given, episode)
        decision = replace(decision, critical=finding.critical)
        if decision.needs_human and not playbook.pages:
            decision = replace(decision, needs_human=False)
        return Considered(decision, playbook.name, target, plan, gathered, finding)

    def _resolve_quietly(self, kind: str, episode: Episode) -> Target:
        try:
            return resolve(self._world, kind, episode.labels)
        except NoEvidence:
            return NO_TARGET

    def _not_opted_out(self, services: tuple[Service, ...]) -> tuple[Service, ...]:
        out = opted_out(self._world.config)
        return tuple(service for service in services if f"service:{service.name}" not in out)

    def _services(self, target: Target) -> tuple[Service, ...]:
        if target.kind == "gpu":
            return self._world.services_on(target.name)
        if target.kind == "host":
            return tuple(service for _, service in sorted(self._world.services.items()))
        return (self._world.services[target.name],)

    def _after_evidence(
        self,
        finding: Finding,
        playbook: Playbook,
        plan: Plan,
        given: gates.GateInput,
        episode: Episode,
    ) -> Decision:
        evidence = dict(finding.data)
        if finding.state == "absent":
            return Decision(
                "refute", finding.reason, finding.sentence, playbook.recheck, evidence=evidence
            )
        if finding.state == "unknown":
            # What was refuted meanwhile is a new suspicion, however long the alert has fired.
            since = max(episode.first_seen, episode.refuted_at or 0.0)
            too_long = given.now - since >= self._world.config.timing.suspect_after
            if finding.needs_human and not (too_long or finding.certain):
                return Decision(
                    "defer", finding.reason, finding.sentence, playbook.recheck, evidence=evidence
                )
            # A manager that has been "at work" for so long is stuck, or starts in a loop.
            if finding.needs_human or (finding.reason == "manager_restarting" and too_long):
                return Decision(
                    "refuse",
                    finding.reason,
                    finding.sentence + "; nothing is restarted on that",
                    playbook.recheck,
                    needs_human=given.mode != "observe",
                    evidence=evidence,
                )
            return Decision("defer", finding.reason, finding.sentence, 1.0, evidence=evidence)
        if not any(step.rung == 0 for step in plan.steps):
            why = plan.problem or f"{playbook.name} has no step that may be run"
            return Decision(
                "refuse",
                "no_service",
                why,
                playbook.recheck,
                needs_human=given.mode != "observe",
                evidence=evidence,
            )
        if given.mode == "observe":
            would = "; ".join(_described(plan))
            sentence = f"{finding.sentence}. Observing only; would: {would}"
            return Decision(
                "observe", "mode_observe", sentence, playbook.recheck, evidence=evidence
            )
        if given.mode == "approve":
            sentence = f"{finding.sentence}. A person has to approve it"
            return Decision("ask", "needs_approval", sentence, evidence=evidence)
        return Decision("run", "accepted", finding.sentence, evidence=evidence)

    def _gather(
        self,
        episode: Episode,
        playbook: Playbook,
        target: Target,
        plan: Plan,
    ) -> Gathered:
        first = playbook.rungs[0] if playbook.rungs else None
        with self._world.store.reading() as tx:
            busy = tx.runs.holders((target,))
            acted = acted_already(tx, self._playbooks, episode)
        mode: Mode = playbook.mode or self._world.config.mode
        return gather(
            self._world,
            mode=mode,
            playbook=playbook,
            target=target,
            destructive=bool(first and first.destructive),
            needs=first.permissions if first else (),
            starts_at=episode.starts_at,
            acted=acted,
            busy=busy,
            safe=playbook.safe,
            steps=tuple(step for step in plan.steps if step.rung == 0),
        )

    def _is_being_started(self, target: Target) -> bool:
        """Whether a run is about to bring it up: that it is down meanwhile is our own doing."""
        with self._world.store.reading() as tx:
            return any(
                step.state == "intended" and step.action in _STARTS and step.service == target.name
                for run in tx.runs.holders((target,))
                for step in tx.runs.steps(run.id)
            )


def _rests_on_evidence(refusal: Decision) -> bool:
    """A false alert must neither stop a lighter run, nor open the breaker, nor call a person."""
    return refusal.needs_human or refusal.reason == "target_busy"


def _described(plan: Plan) -> list[str]:
    return [
        f"{step.raw['action']} on {step.service or step.gpu}"
        for step in plan.steps
        if step.rung == 0
    ]


def _notify() -> Decision:
    return Decision("notify", "no_playbook", "no playbook answers this alert; it is recorded")
