"""The journal of one run: intent and undo before a step, result after it, and what its end means."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

from remediator.actions import (
    Interrupted,
    LeaseIntent,
    Outcome,
    StepContext,
)
from remediator.clock import boot_id
from remediator.counters import Counters
from remediator.engine.run_end import (
    LOOK_AGAIN,
    SEVERITY,
    RunEnded,
    claim_of,
    end_after,
    may_take_back,
)
from remediator.engine.run_history import RunHistory, began
from remediator.errors import ManagerError, RemediatorError, StorageError
from remediator.gpu_control.base import knob_named
from remediator.managers.base import identity_from
from remediator.playbooks import BRING_BACK, PlannedStep
from remediator.policy import undo
from remediator.store import Draft, Run, Step, Transaction
from remediator.store.audit import Severity
from remediator.store.inventory import HOLDER
from remediator.store.rows import RunState
from remediator.targets import Target
from remediator.world import World

_STOP_AGAIN = 60.0
_KEPT = ("state", "reason", "sentence", "needs_human", "claims_nothing")


class RunJournal(RunHistory):
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
        super().__init__(world, run, plan)
        self._counters = counters
        self._stops_for_heat = stops_for_heat
        self._pages = pages

    def set_state(self, state: RunState, rung: int) -> None:
        """Move the run on."""
        with self._world.store.transaction() as tx:
            tx.runs.set_state(self._run.id, state, self._world.clock.now(), rung=rung)

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
            if step.action.destructive and not began(outcome.state, outcome.reason):
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
        severity: Severity = "critical" if end.needs_human else SEVERITY[end.state]
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
            again = LOOK_AGAIN.get(end.state)
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
        if incident is not None and incident.state == "needs_human" and not may_take_back(end):
            # What a person has to look at stays until it is acknowledged or seen good.
            return
        tx.incidents.put(
            episode_id=run.episode_id,
            trigger=run.trigger,
            target=run.target,
            playbook=run.playbook,
            state=claim_of(end),
            reason=end.reason,
            last_step=(incident.last_step if incident else "") or self._newest_step(tx),
            now=now,
        )

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
