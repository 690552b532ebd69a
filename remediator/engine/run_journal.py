"""The journal of one run: intent and undo before a step, result after it, and what its end means."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any, Literal

from remediator.actions import (
    Gentle,
    Interrupted,
    LeaseIntent,
    Outcome,
    StepContext,
    changes_a_card,
)
from remediator.clock import boot_id
from remediator.counters import Counters
from remediator.errors import ManagerError, RemediatorError, StorageError
from remediator.gpu_control.base import knob_named
from remediator.managers.base import identity_from
from remediator.playbooks import BRING_BACK, PlannedStep
from remediator.policy import undo
from remediator.store import Draft, Run, Step, Transaction
from remediator.store.audit import Severity
from remediator.store.inventory import HOLDER
from remediator.store.rows import IncidentState, RunState
from remediator.targets import Target
from remediator.world import World

End = Literal["succeeded", "ineffective", "failed", "ambiguous", "cancelled", "refused"]
# Seconds until an episode whose alert goes on firing is decided about anew. After a success that
# decision ends the claim that the target is being recovered, so that on-call hears of it.
_LOOK_AGAIN: Mapping[End, float] = {"refused": 30.0, "succeeded": 60.0, "cancelled": 60.0}
NEEDS_HUMAN: tuple[End, ...] = ("ineffective", "failed", "ambiguous")
_STOP_AGAIN = 60.0
_KEPT = ("state", "reason", "sentence", "needs_human", "claims_nothing")
_SEVERITY: Mapping[str, Severity] = {
    "succeeded": "info",
    "refused": "info",
    "cancelled": "info",
    "ineffective": "critical",
    "failed": "critical",
    "ambiguous": "critical",
}


class RunEnded(Exception):  # noqa: N818 - control flow between the journal and the execution
    """The run is over, in this state and for this reason."""

    def __init__(
        self,
        state: End,
        reason: str,
        sentence: str,
        *,
        needs_human: bool = False,
        by_a_gate: bool = False,
    ) -> None:
        self.state, self.reason, self.sentence = state, reason, sentence
        self.needs_human = needs_human or state in NEEDS_HUMAN
        # A gate says nothing of the fault: neither that it is refuted nor that it is mended.
        self.claims_nothing = by_a_gate and not self.needs_human

    def calls_nobody(self) -> None:
        """The playbook only tries: what it could not do is no reason to call a person."""
        self.claims_nothing = self.claims_nothing or self.needs_human
        self.needs_human = False


def changes_the_world(step: PlannedStep) -> bool:
    """Whether the step interrupts a service, turns a knob or empties a memory."""
    action = step.action
    return action.destructive or changes_a_card(action) or isinstance(action, Gentle)


def _began(state: str, reason: object) -> bool:
    """Whether a step with this end got beyond its preparation."""
    return state != "nothing" and reason != "impossible"


def end_after(state: str, reason: str, sentence: str) -> None:
    """End the run where a step's outcome ends it."""
    ends: Mapping[str, End] = {"refuted": "refused", "failed": "failed", "unknown": "ambiguous"}
    if state in ends:
        raise RunEnded(ends[state], reason, sentence)


def _claim(end: RunEnded) -> IncidentState:
    """What on-call is told of the incident after this end."""
    if end.needs_human:
        return "needs_human"
    return "refuted" if end.state == "refused" else "recovering"


def _may_take_back(end: RunEnded) -> bool:
    """Whether this end is news for who was called before: it helped, or it did not either."""
    return end.needs_human or end.state == "succeeded"


class RunJournal:
    """Everything that a run writes; each entry and its audit record are one commit."""

    def __init__(
        self,
        world: World,
        counters: Counters,
        run: Run,
        plan: tuple[PlannedStep, ...],
        *,
        stops_for_heat: bool,
        pages: bool = True,
    ) -> None:
        self._world = world
        self._counters = counters
        self._run = run
        self._plan = plan
        self._stops_for_heat = stops_for_heat
        self._pages = pages

    def step(self, seq: int) -> Step | None:
        """The journal entry of step `seq`; None where it was never begun."""
        with self._world.store.reading() as tx:
            return next((s for s in tx.runs.steps(self._run.id) if s.seq == seq), None)

    def reload(self) -> Run | None:
        """The run as it is in the store now."""
        with self._world.store.reading() as tx:
            return tx.runs.get(self._run.id)

    def set_state(self, state: RunState, rung: int) -> None:
        """Move the run on."""
        with self._world.store.transaction() as tx:
            tx.runs.set_state(self._run.id, state, self._world.clock.now(), rung=rung)

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

    def keep_end(self, end: RunEnded) -> None:
        """Keep how the run ends while something is still brought back: a crash must not forget it."""
        kept = {name: getattr(end, name) for name in _KEPT}
        with self._world.store.transaction() as tx:
            tx.set_meta(self._ending, json.dumps(kept))
            now = self._world.clock.now()
            tx.runs.set_state(self._run.id, "running", now, rung=BRING_BACK)

    def kept_end(self) -> RunEnded | None:
        """The end that `keep_end` wrote."""
        with self._world.store.reading() as tx:
            raw = tx.get_meta(self._ending)
        if raw is None:
            return None
        kept = json.loads(raw)
        end = RunEnded(kept["state"], kept["reason"], kept["sentence"])
        end.needs_human, end.claims_nothing = kept["needs_human"], kept["claims_nothing"]
        return end

    @property
    def _ending(self) -> str:
        return f"ending:{self._run.id}"

    def begin(self, seq: int, step: PlannedStep, context: StepContext) -> Mapping[str, Any] | None:
        """Journal the intent and its undo in one commit; None when there is nothing to do."""
        try:
            intent = step.action.intend(context)
        except (Interrupted, StorageError):
            raise
        except RemediatorError as error:
            self.record(seq, step, Outcome("failed", "impossible", str(error)), never_begun={})
            return None
        if intent.nothing:
            outcome = Outcome("nothing", intent.reason, intent.sentence)
            self.record(seq, step, outcome, never_begun=intent.data)
            return None
        with self._world.store.transaction() as tx:
            self._intend(tx, seq, step, intent.data, intent.sentence)
            if intent.lease is not None and step.gpu is not None:
                self._close_foreign(tx, step.gpu, intent.lease)
                tx.leases.take(
                    uuid=step.gpu,
                    knob=intent.lease.knob,
                    control=self._world.control.name,
                    original=intent.lease.original,
                    value=intent.lease.value,
                    run_id=self._run.id,
                    now=self._world.clock.now(),
                    boot_id=boot_id(),
                    monotonic=self._world.clock.monotonic(),
                )
            tx.audit(self.draft("step_started", intent.sentence, step, intent.data))
        return intent.data

    def resume(self, seq: int, step: PlannedStep, journaled: Step) -> Mapping[str, Any]:
        """A step whose end was never journaled: go on only where that is safe."""
        if not step.action.resumable:
            outcome = Outcome(
                "unknown",
                "interrupted",
                f"{step.action.kind} was interrupted and its outcome is not known; it is not repeated",
            )
            self.record(seq, step, outcome)
        with self._world.store.transaction() as tx:
            sentence = f"resume {step.action.kind}: {journaled.sentence}"
            tx.audit(self.draft("step_resumed", sentence, step, journaled.intent))
        return journaled.intent

    def record(
        self,
        seq: int,
        step: PlannedStep,
        outcome: Outcome,
        *,
        never_begun: Mapping[str, Any] | None = None,
    ) -> None:
        """Journal what the step did, and end the run where it must end.

        A step that was `never_begun` (its intent) is journaled whole, in one commit: after a crash
        between the two it would be resumed, with an intent that was none.
        """
        with self._world.store.transaction() as tx:
            if never_begun is not None:
                self._intend(tx, seq, step, never_begun, outcome.sentence)
            tx.runs.finish_step(
                self._run.id,
                seq,
                outcome.state,
                {"reason": outcome.reason, **outcome.data},
                outcome.sentence,
                self._world.clock.now(),
            )
            if step.action.destructive and not _began(outcome.state, outcome.reason):
                # The gates counted it before its preparation found that there is nothing to do.
                tx.runs.mark_destructive(self._run.id, destructive=self._interrupted_anything(tx))
            severity: Severity = "warning" if outcome.state in ("failed", "unknown") else "info"
            data = {"outcome": outcome.state, **outcome.data}
            tx.audit(
                self.draft("step_finished", outcome.sentence, step, data, severity, outcome.reason)
            )
            incident = tx.incidents.open_for(self._run.trigger, self._run.target)
            if incident is not None and incident.state == "recovering":
                tx.incidents.put(
                    episode_id=self._run.episode_id,
                    trigger=self._run.trigger,
                    target=self._run.target,
                    playbook=self._run.playbook,
                    state="recovering",
                    reason=incident.reason,
                    last_step=step.action.kind,
                    now=self._world.clock.now(),
                )
        self._counters.add("actions", step.action.kind, outcome.state)
        end_after(outcome.state, outcome.reason, outcome.sentence)

    def finish(self, end: RunEnded) -> None:
        """End the run, and tell its episode and its incident."""
        now = self._world.clock.now()
        severity: Severity = "critical" if end.needs_human else _SEVERITY[end.state]
        if end.needs_human and not self._pages:
            end.calls_nobody()
            severity = "warning"
        idle = () if end.state == "succeeded" else self._idle_holds()
        with self._world.store.transaction() as tx:
            for name in idle:
                others = tx.runs.holders((Target("service", name),))
                # A stop for heat that took the service over has a hold of its own there.
                if all(run.id == self._run.id for run in others):
                    tx.inventory.release(name)
            self._end_steps(tx, now)
            tx.runs.end(self._run.id, end.state, end.reason, end.sentence, now)
            tx.audit(
                self.draft(
                    "run_finished",
                    f"{end.state}: {end.sentence}",
                    None,
                    {},
                    severity,
                    end.reason,
                )
            )
            self._after(tx, end, now)
            tx.set_meta(self._ending, None)
        self._counters.add("runs", self._run.playbook, end.state)
        seconds = max(0.0, now - self._run.created_at)
        self._counters.run_seconds.labels(self._run.playbook).observe(seconds)

    def _end_steps(self, tx: Transaction, now: float) -> None:
        """A step that was cut off, and is not resumed because the run ends before it."""
        for step in tx.runs.steps(self._run.id):
            if step.state == "intended":
                why = f"{step.action} was cut off and is not resumed; what it did is not known"
                tx.runs.finish_step(
                    self._run.id, step.seq, "unknown", {"reason": "cut_off"}, why, now
                )

    def draft(
        self,
        event: str,
        sentence: str,
        step: PlannedStep | None,
        data: Mapping[str, Any],
        severity: Severity = "info",
        reason: str = "",
    ) -> Draft:
        """An audit record about this run."""
        extra = {"action": step.action.kind, "service": step.service} if step else {}
        return Draft(
            event,
            sentence,
            severity=severity,
            run=self._run.id,
            episode=self._run.episode_id,
            alertname=self._run.trigger,
            target=self._run.target.key,
            reason=reason,
            data={"playbook": self._run.playbook, **extra, **data},
        )

    def _close_foreign(self, tx: Transaction, uuid: str, wanted: LeaseIntent) -> None:
        """Where somebody changed the knob under an open lease, theirs is the value to restore."""
        lease = tx.leases.open_for(uuid, wanted.knob)
        if lease is None:
            return
        if undo.compare(wanted.original, lease.original, lease.written) == "foreign":
            what = knob_named(lease.knob).noun
            sentence = f"somebody changed the {what} meanwhile; theirs is restored later"
            tx.leases.end(lease.id, "foreign", sentence, self._world.clock.now())
            tx.audit(
                Draft(
                    "undone",
                    f"{uuid}: {sentence}",
                    severity="warning",
                    run=self._run.id,
                    target=f"gpu:{uuid}",
                    reason="foreign",
                )
            )

    def _after(self, tx: Transaction, end: RunEnded, now: float) -> None:
        """What the end of the run means for its episode and its incident."""
        run = self._run
        episode = tx.episodes.get(run.episode_id) if run.episode_id is not None else None
        still_fires = episode is not None and episode.ended_at is None
        if episode is not None and still_fires:
            again = _LOOK_AGAIN.get(end.state)
            acted = end.state != "refused" and (self._changed_anything(tx) or self._may_never(tx))
            if self._stops_for_heat and end.state in ("failed", "ambiguous", "cancelled"):
                # It is as hot as before: what would not stop is asked again, ever more rarely.
                tried = [r for r in tx.runs.recent(now - 3600.0) if r.episode_id == run.episode_id]
                again, acted = min(_STOP_AGAIN * len(tried), 600.0), False
            tx.episodes.decided(
                episode.id,
                f"ended:{end.state}:{end.reason}",
                None if again is None else now + again,
                acted=acted,
            )
        incident = tx.incidents.open_for(run.trigger, run.target)
        if end.claims_nothing or (not end.needs_human and not still_fires):
            if incident is not None and incident.state != "needs_human":
                tx.incidents.close(incident.id, now)
            return
        if incident is not None and incident.state == "needs_human" and not _may_take_back(end):
            # What a person has to look at stays until it is acknowledged or seen good.
            return
        tx.incidents.put(
            episode_id=run.episode_id,
            trigger=run.trigger,
            target=run.target,
            playbook=run.playbook,
            state=_claim(end),
            reason=end.reason,
            last_step=(incident.last_step if incident else "") or self._newest_step(tx),
            now=now,
        )

    def _newest_step(self, tx: Transaction) -> str:
        """The step that broke before it had a result; empty where none was begun."""
        steps = tx.runs.steps(self._run.id)
        return steps[-1].action if steps else ""

    def _idle_holds(self) -> tuple[str, ...]:
        """Services that this run took into its hold, while the process that was to go still runs.

        Such a hold would be believed later, when the service is down for another reason.
        """
        found = []
        for seq, planned in enumerate(self._plan):
            entry = self.step(seq)
            service = self._world.services.get(planned.service or "")
            if entry is None or service is None or not planned.action.destructive:
                continue
            before = identity_from(entry.intent.get("before"))
            with self._world.store.reading() as tx:
                held_by = tx.inventory.service(service.name).held_by
            if before is None or held_by != HOLDER:
                continue
            with contextlib.suppress(ManagerError):
                if before.same(service.manager.status().identity):
                    found.append(service.name)
        return tuple(found)

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
            if step.seq < len(self._plan) and _began(step.state, step.result.get("reason"))
        ]

    def _intend(
        self,
        tx: Transaction,
        seq: int,
        step: PlannedStep,
        data: Mapping[str, Any],
        sentence: str,
    ) -> None:
        tx.runs.intend(
            self._run.id,
            seq,
            rung=step.rung,
            action=step.action.kind,
            gpu=step.gpu,
            service=step.service,
            intent=data,
            sentence=sentence,
            now=self._world.clock.now(),
            boot_id=boot_id(),
        )
