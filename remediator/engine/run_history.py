"""What the journal says of a run: which of its steps were begun, and what they changed."""

from __future__ import annotations

from remediator.actions import Gentle, changes_a_card
from remediator.playbooks import PlannedStep
from remediator.store import Run, Step, Transaction
from remediator.world import World


def changes_the_world(step: PlannedStep) -> bool:
    """Whether the step interrupts a service, turns a knob or empties a memory."""
    action = step.action
    return action.destructive or changes_a_card(action) or isinstance(action, Gentle)


def began(state: str, reason: object) -> bool:
    """Whether a step with this end got beyond its preparation."""
    return state != "nothing" and reason != "impossible"


class RunHistory:
    """The journal of one run, read."""

    def __init__(self, world: World, run: Run, plan: tuple[PlannedStep, ...]) -> None:
        self._world = world
        self._run = run
        self._plan = plan

    def step(self, seq: int) -> Step | None:
        """The journal entry of step `seq`; None where it was never begun."""
        with self._world.store.reading() as tx:
            return next((s for s in tx.runs.steps(self._run.id) if s.seq == seq), None)

    def reload(self) -> Run | None:
        """The run as it is in the store now."""
        with self._world.store.reading() as tx:
            return tx.runs.get(self._run.id)

    def whole(self, rung: int) -> bool:
        """Whether every step of the rung was done, or had nothing to do."""
        ended = {seq for seq, _ in enumerate(self._plan) if self._is_done(seq)}
        return all(seq in ended for seq, step in enumerate(self._plan) if step.rung == rung)

    def _is_done(self, seq: int) -> bool:
        entry = self.step(seq)
        return entry is not None and entry.state in ("done", "nothing")

    def did_anything(self, rung: int) -> bool:
        """Whether any step of the rung was done, beyond finding nothing to do."""
        with self._world.store.reading() as tx:
            return any(s.rung == rung and s.state == "done" for s in tx.runs.steps(self._run.id))

    def _newest_step(self, tx: Transaction) -> str:
        """The step that broke before it had a result; empty where none was begun."""
        steps = tx.runs.steps(self._run.id)
        return steps[-1].action if steps else ""

    def _may_never(self, tx: Transaction) -> bool:
        """Whether a precondition failed: another alert about the same fault need not ask again."""
        return any(
            step.action == "preflight_reset" and step.state == "failed"
            for step in tx.runs.steps(self._run.id)
        )

    def changed_anything(self) -> bool:
        """Whether a step that changes the world got beyond its preparation."""
        with self._world.store.reading() as tx:
            return self._changed_anything(tx)

    def _changed_anything(self, tx: Transaction) -> bool:
        """Whether a step that changes the world got beyond its preparation."""
        return any(changes_the_world(step) for step in self._begun(tx))

    def _interrupted_anything(self, tx: Transaction) -> bool:
        """Whether a step that interrupts a service or a card got beyond its preparation."""
        return any(step.action.destructive for step in self._begun(tx))

    def _begun(self, tx: Transaction) -> list[PlannedStep]:
        """The steps that got beyond their preparation."""
        return [
            self._plan[step.seq]
            for step in tx.runs.steps(self._run.id)
            if step.seq < len(self._plan) and began(step.state, step.result.get("reason"))
        ]
