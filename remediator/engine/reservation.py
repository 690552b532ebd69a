"""A run is reserved for what was decided: in one transaction with the lock of its target."""

from __future__ import annotations

from dataclasses import dataclass

from remediator.clock import boot_id
from remediator.engine.approval import basis_of, means_of
from remediator.engine.gathering import Gathered, supersede
from remediator.playbooks import Plan, Playbook
from remediator.policy.decision import Decision
from remediator.signals import Finding
from remediator.store import Draft, Episode, Run, Transaction
from remediator.targets import Target
from remediator.world import World


@dataclass(frozen=True)
class Considered:
    """What an evaluation came to."""

    decision: Decision
    playbook: str
    target: Target
    plan: Plan | None = None
    gathered: Gathered | None = None
    finding: Finding | None = None


def reserve(
    world: World, playbook: Playbook, tx: Transaction, episode: Episode, considered: Considered
) -> tuple[Considered, Run | None]:
    """Create the run, atomically with the lock of its target.

    A run that waits for a person holds nothing. A stop for heat takes the target from lighter
    runs at once; they end at their next step.
    """
    target = considered.target
    now = world.clock.now()
    asking = considered.decision.kind == "ask"
    pre_empts = playbook.safe and not asking
    if pre_empts:
        holders = tx.runs.holders((target,))
        if any(run.weight >= playbook.weight for run in holders):
            return _taken(considered), None
        for lighter in (*holders, *tx.runs.followers(target)):
            supersede(tx, lighter.id, playbook.name)
    plan = considered.plan or Plan(())
    run = tx.runs.create(
        episode_id=episode.id,
        playbook=playbook.name,
        weight=playbook.weight,
        safe=playbook.safe,
        trigger=episode.alertname,
        target=target,
        locks=() if asking or pre_empts else (target,),
        state="awaiting_approval" if asking else "reserved",
        plan=[step.to_json() for step in plan.steps],
        now=now,
        expires_at=now + world.config.timing.approval_expires if asking else None,
        boot_id=boot_id(),
        monotonic=world.clock.monotonic(),
    )
    if run is None:
        return _taken(considered), None
    if pre_empts:
        tx.runs.take_over(run.id, (target,))
    if asking:
        basis = {} if considered.finding is None else basis_of(considered.finding)
        tx.approvals.ask(run.id, means_of(world, plan.steps), basis)
    return considered, run


def audit_reserved(tx: Transaction, run: Run, episode: Episode) -> None:
    """Record it, after the decision that it follows from."""
    tx.audit(
        Draft(
            "run_reserved",
            f"run {run.id}: {run.playbook} on {run.target.key} for {episode.alertname}",
            run=run.id,
            episode=episode.id,
            alertname=episode.alertname,
            target=run.target.key,
            data={"plan": run.plan},
        )
    )


def _taken(considered: Considered) -> Considered:
    why = f"{considered.target.key} was taken just now"
    decision = Decision("defer", "target_busy", why, 0.5)
    return Considered(decision, considered.playbook, considered.target)
