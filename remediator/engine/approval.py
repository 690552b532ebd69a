"""A person's yes or no to a run that waits: to exactly the plan that they were shown, once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from remediator.engine.gathering import Gathered, supersede
from remediator.engine.run_history import changes_the_world
from remediator.engine.step_gates import ask
from remediator.errors import ConfigError
from remediator.playbooks import PlannedStep, Playbook, Playbooks, from_journal
from remediator.policy import gates
from remediator.policy.decision import Decision
from remediator.signals import Finding
from remediator.store import Draft, Run, Transaction
from remediator.store.approvals import Approval
from remediator.world import World

# A cooldown after the settling, a window after that: no more than this is looked ahead.
_ONE_AFTER_THE_OTHER = 4
_A_MOMENT = 0.1


@dataclass(frozen=True)
class Refused:
    """Why nothing was approved; `missing` where there is no such run.

    `reason` is that of the gate that keeps it back, `until` when that is over (Unix seconds), where it
    is known.
    """

    sentence: str
    missing: bool = False
    reason: str = ""
    until: float | None = None


def means_of(world: World, steps: Sequence[PlannedStep]) -> dict[str, str]:
    """How `steps` would be done as the configuration is now: what each is asked to do."""
    means = {}
    for step in steps:
        service = world.services.get(step.service or "")
        if step.service:
            key = f"service {step.service}"
            means[key] = "not configured" if service is None else _described(service)
        if step.gpu:
            means[f"GPU {step.gpu}"] = (
                f"power limit by {world.control.name}, reset by {world.card_reset.name}"
            )
    return means


def _described(service: Any) -> str:
    manager = service.manager
    verbs = "; ".join(manager.describe(verb) for verb in ("stop", "start"))
    return f"{service.config.driver} at {service.config.endpoint}; {verbs}"


def basis_of(finding: Finding) -> dict[str, Any]:
    """What the question rests on: not the numbers, which change with every reading."""
    return {"reason": finding.reason, "services": sorted(finding.services)}


def approve(world: World, playbooks: Playbooks, run_id: int, token: str, by: str) -> Refused | None:
    """Let a waiting run begin; None when it may.

    Where a gate would end it at once the person hears so, and the run waits on.
    """
    now = world.clock.now()
    kept_back = _kept_back(world, playbooks, run_id)
    with world.store.transaction() as tx:
        run = tx.runs.get(run_id)
        asked = tx.approvals.get(run_id)
        refused = _not_waiting(world, run, asked, run_id)
        if run is None or refused is not None:
            return refused
        if asked is not None and not token:
            return Refused(
                "say which plan is approved: the token that `gpu-remediator runs RUN` shows"
            )
        if asked is not None and not asked.matches(token):
            return Refused(f"that is not the token of run {run_id}, or its plan is another by now")
        changed = _changed(world, run, asked)
        if changed is not None:
            _ask_again(tx, run, changed, now)
            return Refused(f"the plan of run {run_id} has changed: {changed}; it is asked anew")
        if kept_back is not None:
            gathered, decision = kept_back
            if decision.reason == "breaker_open":
                gathered.trip_breaker(tx)
            return _not_now(tx, run, decision, _until(gathered.given, decision), by)
        in_the_way = _make_way(tx, run, by)
        if in_the_way is not None:
            return in_the_way
        _answer_others(tx, run, now)
        tx.approvals.use(run_id, by, now)
        tx.runs.set_state(run_id, "reserved", now)
        _audit(tx, run, "approved", by)
    return None


def _kept_back(world: World, playbooks: Playbooks, run_id: int) -> tuple[Gathered, Decision] | None:
    """What the gates of a start would say to the first rung now; None where they let it begin."""
    with world.store.reading() as tx:
        run = tx.runs.get(run_id)
    playbook = None if run is None else playbooks.by_name.get(run.playbook)
    if run is None or run.state != "awaiting_approval" or playbook is None:
        return None
    try:
        plan = from_journal(run.plan)
    except ConfigError:
        return None  # That is another answer.
    for step in plan:
        if step.rung == 0 and playbook.rungs and changes_the_world(step):
            gathered, decision = ask(world, playbook, run, step, acted=False)
            if decision is not None:
                return gathered, decision
    return None


def _until(given: gates.GateInput, decision: Decision | None) -> float | None:
    """When the last of what is known to keep it back is over (Unix seconds); None: nobody knows."""
    until = None
    for _ in range(_ONE_AFTER_THE_OTHER):
        evidence = {} if decision is None else decision.evidence
        left = evidence.get("left_seconds")
        end = evidence.get("until") if left is None else given.now + left
        if end is None:
            break
        until, given = float(end), replace(given, now=float(end) + _A_MOMENT)
        decision = gates.decide_late_start(given)
    else:
        # One window opens as the other ends: a date that is not the last would mislead.
        return None if decision is not None else until
    return until


def _not_now(
    tx: Transaction, run: Run, decision: Decision, until: float | None, by: str
) -> Refused:
    """Tell a person who said yes what keeps the run back, and until when."""
    said = f"run {run.id} is not begun now: {decision.sentence}"
    if until is not None:
        said += f"; approve it again after {_when(until)}"
        if run.expires_at is not None and until >= run.expires_at:
            said += f", but its question expires at {_when(run.expires_at)}"
    _record_kept_back(tx, run, decision.reason, said, by, decision.evidence)
    return Refused(said, reason=decision.reason, until=until)


def _record_kept_back(
    tx: Transaction,
    run: Run,
    reason: str,
    said: str,
    by: str,
    evidence: Mapping[str, Any] | None = None,
) -> None:
    tx.audit(
        Draft(
            "approval_kept_back",
            said,
            severity="warning",
            run=run.id,
            episode=run.episode_id,
            alertname=run.trigger,
            target=run.target.key,
            reason=reason,
            data={"by": by, **(evidence or {})},
        )
    )


def _when(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def deny(world: World, run_id: int, by: str) -> Refused | None:
    """End a waiting run; None when that is done."""
    now = world.clock.now()
    with world.store.transaction() as tx:
        run = tx.runs.get(run_id)
        refused = _not_waiting(world, run, tx.approvals.get(run_id), run_id)
        if run is None or refused is not None:
            return refused
        tx.runs.end(run_id, "refused", "denied", f"{by} denied it", now)
        incident = tx.incidents.open_for(run.trigger, run.target)
        if incident is not None and incident.state == "recovering":
            # Nothing is being done any more; on-call hears of it if the alert goes on.
            tx.incidents.close(incident.id, now)
        _audit(tx, run, "denied", by)
    return None


def why_not_as_approved(
    approval: Approval | None, playbook: Playbook, run: Run, finding: Finding
) -> str | None:
    """Whether fresh evidence, or the playbook, is not what was approved; None to go on."""
    if approval is None or approval.used_at is None:
        return None
    stages = playbook.stages
    for step in run.plan:
        stage = stages.get(int(step["rung"]))
        if stage is None or step["step"] not in [dict(raw) for raw in stage.raw_steps]:
            return f"{playbook.name} was changed meanwhile"
    now, then = basis_of(finding), dict(approval.evidence)
    if now == then:
        return None
    return f"it was approved for {_said(then)}, and is {_said(now)} now: {finding.sentence}"


def expired(world: World, run: Run) -> bool:
    """Whether a person can no longer answer; a wall clock that was set changes nothing."""
    if run.expires_at is None:
        return False
    asked_at, _ = world.ages.dated(run, world.clock)
    return world.clock.now() - asked_at > run.expires_at - run.created_at


def _not_waiting(
    world: World, run: Run | None, asked: Approval | None, run_id: int
) -> Refused | None:
    if run is None:
        return Refused(f"there is no run {run_id}", missing=True)
    if asked is not None and asked.used_at is not None:
        when, who = _when(asked.used_at), asked.used_by
        return Refused(f"run {run_id} was approved by {who} at {when}; it is {run.state}")
    if run.state != "awaiting_approval":
        return Refused(f"run {run_id} does not wait for approval: it is {run.state}")
    if expired(world, run):
        return Refused(f"the approval of run {run_id} has expired")
    return None


def _changed(world: World, run: Run, asked: Approval | None) -> str | None:
    """What is not as it was when the person was asked; None where all is."""
    if asked is None:
        return "it was asked by another version"
    try:
        means = means_of(world, from_journal(run.plan))
    except ConfigError as error:
        return str(error)
    for what in sorted({*means, *asked.means}):
        before, after = asked.means.get(what, "none"), means.get(what, "none")
        if before != after:
            return f"{what} was {before}, and is {after} now"
    return None


def _ask_again(tx: Transaction, run: Run, changed: str, now: float) -> None:
    tx.runs.end(run.id, "refused", "plan_changed", changed, now)
    said = f"the plan has changed since it was asked: {changed}"
    _decide_anew(tx, run, "plan_changed", said, now)


def _answer_others(tx: Transaction, run: Run, now: float) -> None:
    """The same done to the same target is one question; what is left of the others is decided anew."""
    for other in tx.runs.active():
        same = (other.playbook, other.target) == (run.playbook, run.target)
        if same and other.id != run.id and other.state == "awaiting_approval":
            why = f"run {run.id} was approved, which does the same to {run.target.key}"
            tx.runs.end(other.id, "refused", "duplicate", why, now)
            _decide_anew(tx, other, "duplicate", why, now)


def _decide_anew(tx: Transaction, run: Run, reason: str, why: str, now: float) -> None:
    """Tell of the end of a question, and have its alert decided about again."""
    if run.episode_id is not None:
        tx.episodes.decided(run.episode_id, f"ended:refused:{reason}", now)
    tx.audit(
        Draft(
            "run_finished",
            f"refused: {why}",
            severity="warning" if reason == "plan_changed" else "info",
            run=run.id,
            episode=run.episode_id,
            alertname=run.trigger,
            target=run.target.key,
            reason=reason,
        )
    )


def _make_way(tx: Transaction, run: Run, by: str) -> Refused | None:
    """Take the target; None when the run has it. Lighter runs are asked to go."""
    others = tx.runs.acquire(run.id, (run.target,))
    lighter = [other for other in others if other.weight < run.weight]
    for other in lighter:
        supersede(tx, other.id, run.playbook)
    if others and run.safe and len(lighter) == len(others):
        tx.runs.take_over(run.id, (run.target,))
    elif others:
        asked = "is asked to make way: approve it again in a moment" if lighter else "works on it"
        said = f"run {others[0].id} ({others[0].playbook}) {asked}"
        _record_kept_back(tx, run, "target_busy", f"run {run.id} is not begun now: {said}", by)
        return Refused(said)
    return None


def _said(basis: Mapping[str, Any]) -> str:
    services = ", ".join(basis.get("services", ()))
    return f"{basis.get('reason')}{' of ' + services if services else ''}"


def _audit(tx: Transaction, run: Run, word: str, by: str) -> None:
    tx.audit(
        Draft(
            word,
            f"run {run.id} ({run.playbook}) was {word} by {by}",
            run=run.id,
            episode=run.episode_id,
            alertname=run.trigger,
            target=run.target.key,
            reason=word,
            data={"by": by},
        )
    )
