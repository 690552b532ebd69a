"""The gates that a run passes anew under way: before a step that changes the world, and after success."""

from __future__ import annotations

import threading

from remediator.engine.gathering import Gathered, gather
from remediator.engine.run_end import RunEnded
from remediator.playbooks import PlannedStep, Playbook
from remediator.policy import gates
from remediator.policy.decision import Decision
from remediator.store import Run
from remediator.world import World

# Runs on several cards ask at the same moment: each must count what the others were granted.
_ONE_AT_A_TIME = threading.Lock()


def may_act(
    world: World, playbook: Playbook, run: Run, step: PlannedStep, acted: bool | None = None
) -> None:
    """Ask the gates again before a step that changes the world: time has passed since.

    `acted` is given where a run that a person let begin has changed nothing yet: whether another
    has acted on the same fault meanwhile. It passes the gates of a start, too.

    Raises:
        RunEnded: one of them says no.
    """
    with _ONE_AT_A_TIME:
        gathered, decision = ask(world, playbook, run, step, acted)
        if decision is None:
            if step.action.destructive:
                with world.store.transaction() as tx:
                    tx.runs.mark_destructive(run.id)
            return
    if decision.reason == "breaker_open":
        # Where another gate says no, nothing was about to be done that would count.
        with world.store.transaction() as tx:
            gathered.trip_breaker(tx)
    if decision.kind == "defer":
        # It is only kept back for a while.
        raise RunEnded("cancelled", decision.reason, decision.sentence, by_a_gate=True)
    if step.rung > 0:
        sentence = f"{run.playbook} did not help and goes no further: {decision.sentence}"
        raise RunEnded("ineffective", decision.reason, sentence)
    raise RunEnded(
        "refused",
        decision.reason,
        decision.sentence,
        needs_human=decision.needs_human,
        by_a_gate=True,
    )


def ask(
    world: World, playbook: Playbook, run: Run, step: PlannedStep, acted: bool | None = None
) -> tuple[Gathered, Decision | None]:
    """What the gates looked at, and which of them keeps the step back; writes nothing."""
    rung = playbook.rungs[step.rung]
    begins = acted is not None
    gathered = gather(
        world,
        mode=playbook.mode or world.config.mode,
        playbook=playbook,
        target=run.target,
        destructive=step.action.destructive or (begins and rung.destructive),
        needs=rung.permissions,
        starts_at=run.created_at,
        acted=bool(acted),
        busy=(),
        safe=rung.safe,
        asking=run.id,
        steps=(step,),
    )
    return gathered, _said(gathered, run, begins=begins)


def may_follow(world: World, playbook: Playbook, run: Run, step: PlannedStep) -> None:
    """Ask whether a pause, a window, or a mode that acts no more, keeps back what follows a success.

    Raises:
        RunEnded: it does.
    """
    gathered = gather(
        world,
        mode=playbook.mode or world.config.mode,
        playbook=playbook,
        target=run.target,
        destructive=False,
        needs=(),
        starts_at=run.created_at,
        acted=False,
        busy=(),
        asking=run.id,
        steps=(step,),
    )
    decision = gates.decide_step(gathered.given)
    if decision is not None:
        why = f"it helped, but nothing follows: {decision.sentence}"
        raise RunEnded("cancelled", decision.reason, why, by_a_gate=True)


def _said(gathered: Gathered, run: Run, *, begins: bool) -> Decision | None:
    decide = gates.decide_late_start if begins else gates.decide_step
    decision = decide(gathered.given)
    if decision is None and gathered.given.mode == "approve" and run.expires_at is None:
        sentence = f"{run.playbook} needs a person's approval now"
        return Decision("ask", "needs_approval", sentence)
    return decision
