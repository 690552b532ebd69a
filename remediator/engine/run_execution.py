"""One run, step by step: intent durable before, result durable after, verified at the end."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NoReturn

from remediator import playbooks as books
from remediator.actions import Interrupted, Outcome, StepContext, changes_a_card
from remediator.actions.base import Harmless
from remediator.clock import boot_id
from remediator.counters import Counters
from remediator.engine.approval import why_not_as_approved
from remediator.engine.gathering import acted_already, supersede
from remediator.engine.run_end import NEEDS_HUMAN, RunEnded, end_after
from remediator.engine.run_history import changes_the_world
from remediator.engine.run_journal import RunJournal
from remediator.engine.step_gates import may_act, may_follow
from remediator.error_signatures import classify
from remediator.errors import ConfigError, OutcomeUnknown, RemediatorError, StorageError
from remediator.playbooks import PlannedStep, Playbook, Playbooks
from remediator.readings_since import ReadingsSince
from remediator.signals import Finding
from remediator.store import Run
from remediator.targets import Target
from remediator.world import World

log = logging.getLogger(__name__)

_VERIFY_POLL = 1.0
# Two looks in a row must agree that the signal is gone.
_VERIFY_LOOKS = 2
_LOCK_POLL = 0.5
_LOCK_WITHIN = 600.0


def _read_plan(run: Run) -> tuple[tuple[PlannedStep, ...], str]:
    """The journaled plan, or why this version cannot read it."""
    try:
        return books.from_journal(run.plan), ""
    except ConfigError as error:
        return (), f"its plan was made by another version: {error}"


def _has_just_begun(world: World, run: Run) -> bool:
    """Whether the evidence that the run was reserved on is fresh, whatever the clock says."""
    age = world.clock.now() - run.created_at
    asked_nobody = run.expires_at is None
    fresh = 0 <= age <= world.config.timing.reading_max_age
    # After a boot a clock without a battery may say what it said before.
    return asked_nobody and fresh and run.boot_id == boot_id()


def _sees_through(step: PlannedStep) -> bool:
    """Whether the step interrupts nothing and is about one service alone."""
    return step.service is not None and isinstance(step.action, Harmless)


def _others_go_on(step: PlannedStep, plan: tuple[PlannedStep, ...]) -> bool:
    """Whether a failure of this step says nothing about the other services of its rung."""
    if step.action.scope == "all_services":
        return True
    others = {one.service for one in plan if one.rung == step.rung} - {step.service, None}
    return step.service is not None and bool(others)


class RunExecution:
    """Carries one run to its end, or to where a shutdown leaves it, in the calling thread."""

    def __init__(
        self,
        world: World,
        playbooks: Playbooks,
        counters: Counters,
        run: Run,
        stop: threading.Event,
    ) -> None:
        # It ends with the configuration that it began with; only the gates ask for the newest.
        self._in_force = world, playbooks
        world, playbooks = world.snapshot(), playbooks.snapshot()
        self._world = world
        self._playbooks = playbooks
        self._run = run
        self._stop = stop
        self._last_look = ""
        self._plan, self._unreadable = _read_plan(run)
        playbook = playbooks.by_name.get(run.playbook)
        stops = playbook is not None and playbook.safe
        pages = playbook is None or playbook.pages
        self._journal = RunJournal(
            world, counters, run, self._plan, stops_for_heat=stops, pages=pages
        )
        # What was seen before a wait for approval or a restart is not evidence any more.
        self._old_news = run.state != "reserved" or not _has_just_begun(world, run)

    def execute(self) -> None:
        """Carry the run on.

        Raises:
            StorageError: the journal could not be written; the run stays as it is and is resumed.
        """
        kept = self._journal.kept_end()
        end = kept or self._attempt(self._rungs)
        if end is not None and (kept or self._leaves_half(end)):
            end = self._brought_back(end)
        if end is not None:
            self._journal.finish(end)

    def _attempt(self, work: Callable[[], None]) -> RunEnded | None:
        """The end that `work` comes to; None where a shutdown leaves it for later."""
        try:
            work()
        except RunEnded as end:
            return end
        except Interrupted:
            return None if self._world.stopping.is_set() else self._cancelled()
        except StorageError:
            raise
        except RemediatorError as error:
            return RunEnded("failed", "error", f"{self._run.playbook} failed: {error}")
        except Exception as error:
            # A fault of a driver of ours. The run ends: tried again, it would act again and again.
            log.exception("run broke run=%d", self._run.id)
            sentence = (
                f"{self._run.playbook} met a fault of the remediator itself "
                f"({type(error).__name__}); what its last step did is not known"
            )
            return RunEnded("ambiguous", "internal_error", sentence)
        return RunEnded("succeeded", "verified", f"{self._run.playbook}: {self._last_look}")

    def _rungs(self) -> None:
        plan = self._plan
        if self._unreadable:
            raise RunEnded("failed", "playbook_changed", self._unreadable)
        playbook = self._playbooks.by_name.get(self._run.playbook)
        count = 1 + max((s.rung for s in plan if s.rung < books.AFTERWARDS), default=0)
        if playbook is None or len(playbook.rungs) < count:
            raise RunEnded(
                "failed", "playbook_changed", f"{self._run.playbook} was changed meanwhile"
            )
        first = self._run.rung
        if self._old_news and 0 < first < count and not self._begun(plan, first):
            # The rung below had not helped when a crash came; look whether it has by now.
            first -= 1
        for rung in range(first, count):
            self._old_news = self._old_news and rung == first
            self._journal.set_state("running", rung)
            if any(step.rung == rung and self._is_open(seq) for seq, step in enumerate(plan)):
                self._lock_services(playbook, rung)
            self._steps(playbook, plan, rung)
            if self._journal.changed_anything() and not self._journal.whole(rung):
                self._steps(playbook, plan, books.BRING_BACK)
            if self._verify(playbook, rung):
                self._afterwards(playbook, plan)
        if first >= count:
            self._afterwards(playbook, plan)
        raise RunEnded(
            "ineffective", "still_present", f"{self._run.playbook} did not help: {self._last_look}"
        )

    def _afterwards(self, playbook: Playbook, plan: tuple[PlannedStep, ...]) -> NoReturn:
        """What follows a success. It makes way for a new run of the same playbook.

        It interrupts nothing, so it leaves the card to others: one that is waited for to cool may
        need a cap.
        """
        sentence = f"{self._run.playbook} helped: {self._last_look or 'verified before'}"
        if any(step.rung == books.AFTERWARDS for step in plan):
            with self._world.store.transaction() as tx:
                now = self._world.clock.now()
                tx.runs.set_state(self._run.id, "running", now, rung=books.AFTERWARDS)
                tx.runs.set_weight(self._run.id, playbook.weight - 1)
                if self._run.target.kind == "gpu":
                    tx.runs.release(self._run.id, (self._run.target,))
            self._lock_services(playbook, books.AFTERWARDS)
            self._steps(playbook, plan, books.AFTERWARDS)
            sentence += "; what was to follow is done"
        raise RunEnded("succeeded", "verified", sentence)

    def _leaves_half(self, end: RunEnded) -> bool:
        """Whether services may be down for nothing that the playbook can bring back.

        Not where a heavier run has taken over, nor where nobody knows in what state the card is.
        """
        run = self._journal.reload()
        if run is None or end.state in ("succeeded", "ambiguous") or end.reason == "superseded":
            return False
        return (
            any(step.rung == books.BRING_BACK for step in self._plan)
            and run.rung < books.AFTERWARDS
            and not self._journal.whole(run.rung)
            and self._journal.changed_anything()
        )

    def _brought_back(self, end: RunEnded) -> RunEnded | None:
        """The same end, after the services that were stopped for nothing are up again."""
        self._journal.keep_end(end)
        broken = self._attempt(self._bring_back)
        if broken is None:
            return None
        if broken.state == "succeeded":
            if self._journal.did_anything(books.BRING_BACK):
                end.sentence += "; what it had stopped is up again"
        else:
            end.sentence += f"; what it had stopped may be down: {broken.sentence}"
        return end

    def _bring_back(self) -> None:
        playbook = self._playbooks.by_name.get(self._run.playbook)
        if playbook is None:
            raise RunEnded("failed", "playbook_changed", "its playbook is gone")
        self._lock_services(playbook, books.BRING_BACK)
        self._steps(playbook, self._plan, books.BRING_BACK)

    def _steps(self, playbook: Playbook, plan: tuple[PlannedStep, ...], rung: int) -> None:
        """Every step of the rung; the rest is left out when old news turn out to be over.

        A step on all services is tried on each, whatever became of the one before. Once a step has
        failed on one service nothing more is interrupted or changed, but what was done to the others
        is seen through: they get their models back.
        """
        failed: RunEnded | None = None
        tried: PlannedStep | None = None
        lost: set[str | None] = set()
        for seq, step in enumerate(plan):
            if step.rung != rung or (failed is not None and step.service in lost):
                continue
            # A turn of the same step on the next service, or what only sees another one through.
            same = tried is not None and step.raw == tried.raw
            goes_on = _sees_through(step) or (same and step.action.scope == "all_services")
            if failed is not None and not goes_on:
                raise failed
            tried = step
            if rung == books.AFTERWARDS and self._is_open(seq):
                may_follow(*self._asked_now(playbook), self._run, step)
            # What has visibly begun is finished: half a restart is a service that is down.
            if changes_the_world(step) and self._is_open(seq) and not self._underway(seq, step):
                if self._old_news and self._turned_out_over(playbook, plan, seq):
                    return
                acted = self._acted_meanwhile(plan, seq) if step.rung == 0 else None
                may_act(*self._asked_now(playbook), self._run, step, acted)
            try:
                self._step(seq, step)
            except RunEnded as end:
                if not _others_go_on(step, plan) or end.state not in NEEDS_HUMAN:
                    raise
                failed = failed or end
                lost.add(step.service)
        if failed is not None:
            raise failed

    def _asked_now(self, playbook: Playbook) -> tuple[World, Playbook]:
        """What the gates are asked with: another mode or window means what is under way, too."""
        world, playbooks = self._in_force
        newest = playbooks.by_name.get(playbook.name, playbook)
        return replace(self._world, config=world.config), replace(playbook, mode=newest.mode)

    def _is_open(self, seq: int) -> bool:
        journaled = self._journal.step(seq)
        return journaled is None or journaled.state == "intended"

    def _underway(self, seq: int, step: PlannedStep) -> bool:
        journaled = self._journal.step(seq)
        if journaled is None:
            return False
        return step.action.begun(self._context(step, resumed=True), journaled.intent)

    def _turned_out_over(self, playbook: Playbook, plan: tuple[PlannedStep, ...], seq: int) -> bool:
        """Look at the world anew before old news is acted on."""
        return self._is_over(playbook, plan[seq].rung, changed=self._changed_before(plan, seq))

    def _acted_meanwhile(self, plan: tuple[PlannedStep, ...], seq: int) -> bool | None:
        """Whether another acted on the fault while a person was asked; None once this one has begun."""
        if self._run.expires_at is None or self._changed_before(plan, seq):
            return None
        with self._world.store.reading() as tx:
            episode = tx.episodes.get(self._run.episode_id or 0)
            return episode is not None and acted_already(tx, self._playbooks, episode)

    def _changed_before(self, plan: tuple[PlannedStep, ...], seq: int) -> bool:
        return any(
            changes_the_world(earlier) and self._has_begun(number)
            for number, earlier in enumerate(plan[:seq])
        )

    def _has_begun(self, seq: int) -> bool:
        journaled = self._journal.step(seq)
        return journaled is not None and journaled.state != "nothing"

    def _begun(self, plan: tuple[PlannedStep, ...], rung: int) -> bool:
        return any(
            step.rung == rung and self._journal.step(seq) is not None
            for seq, step in enumerate(plan)
        )

    def _is_over(self, playbook: Playbook, rung: int, *, changed: bool) -> bool:
        """Look again before anything more is begun; a run that changed nothing yet ends here."""
        clock = self._world.clock
        deadline = clock.monotonic() + playbook.rungs[rung].within
        finding = playbook.evidence.read(self._world, self._run.target)
        while finding.state == "unknown" and clock.monotonic() < deadline:
            self._check_cancelled()
            if clock.wait(self._stop, _VERIFY_POLL):
                raise Interrupted
            finding = playbook.evidence.read(self._world, self._run.target)
        self._old_news = False
        if finding.state == "unknown":
            raise RunEnded(
                "ineffective", "no_evidence", f"nothing more is begun: {finding.sentence}"
            )
        if finding.state == "absent" and not changed:
            raise RunEnded("refused", finding.reason, f"it is over: {finding.sentence}")
        if finding.state == "present" and rung == 0 and not changed:
            self._as_approved(playbook, finding)
        return finding.state == "absent"

    def _as_approved(self, playbook: Playbook, finding: Finding) -> None:
        with self._world.store.reading() as tx:
            approval = tx.approvals.get(self._run.id)
        why = why_not_as_approved(approval, playbook, self._run, finding)
        if why is not None:
            raise RunEnded("refused", "plan_changed", why, by_a_gate=True)

    def _lock_services(self, playbook: Playbook, rung: int) -> None:
        """Take every service that the rung works on, before its first step.

        A lighter run on one of them is asked to go; a stop for heat does not wait until it has, nor
        for that of another card: one service that will not stop must not keep both cards hot.
        """
        locks = tuple(Target("service", name) for name in self._services_of(rung))
        deadline = self._world.clock.monotonic() + _LOCK_WITHIN
        waited = False
        while locks:
            with self._world.store.transaction() as tx:
                others = tx.runs.acquire(self._run.id, locks)
                lighter = [run for run in others if run.weight < playbook.weight]
                for run in lighter:
                    supersede(tx, run.id, playbook.name)
                stopping = [run for run in others if run.safe and run.rung == 0]
                gone = {run.id for run in (*lighter, *stopping)}
                if others and playbook.stages[rung].safe and len(gone) == len(others):
                    tx.runs.take_over(self._run.id, locks)
                    others = ()
            if not others:
                # However short the wait: whoever had the service may have mended it.
                self._old_news = self._old_news or waited
                return
            if self._world.clock.monotonic() > deadline:
                why = f"run {others[0].id} ({others[0].playbook}) kept the service busy"
                raise RunEnded("failed", "target_busy", why)
            self._check_cancelled()
            waited = True
            if self._world.clock.wait(self._stop, _LOCK_POLL):
                raise Interrupted

    def _services_of(self, rung: int) -> tuple[str, ...]:
        used = {step.service for step in self._plan if step.rung == rung and step.service}
        return tuple(sorted(used - {self._run.target.name}))

    def _step(self, seq: int, step: PlannedStep) -> None:
        self._check_cancelled()
        journaled = self._journal.step(seq)
        if journaled is not None and journaled.state != "intended":
            end_after(journaled.state, str(journaled.result.get("reason", "")), journaled.sentence)
            return
        context = self._context(step, resumed=journaled is not None)
        turns = step.gpu if changes_a_card(step.action) else None
        writes = self._world.knobs.of(turns) if turns else contextlib.nullcontext()
        with writes:
            if journaled is not None and journaled.state == "intended":
                intent = self._journal.resume(seq, step, journaled)
            else:
                begun = self._journal.begin(seq, step, context)
                if begun is None:
                    return
                intent = begun
            outcome = self._act(step, context, intent)
            self._journal.record(seq, step, outcome)

    def _context(self, step: PlannedStep, *, resumed: bool) -> StepContext:
        service = self._world.services.get(step.service) if step.service else None
        if step.service and service is None:
            raise RunEnded("failed", "no_service", f"{step.service} is not configured any more")
        return StepContext(self._world, step.gpu, service, self._stop, resumed, self._run.id)

    def _act(self, step: PlannedStep, context: StepContext, intent: Mapping[str, Any]) -> Outcome:
        try:
            return step.action.run(context, intent)
        except (Interrupted, StorageError):
            raise
        except OutcomeUnknown as error:
            return Outcome("unknown", "outcome_unknown", str(error))
        except RemediatorError as error:
            kind = classify(str(error)).kind
            reason = "error" if kind == "runtime" else kind
            return Outcome("failed", reason, f"{step.action.kind} failed: {error}")
        except Exception as error:
            if step.action.scope != "all_services":
                raise
            # A fault of a driver of ours must not save the other services of a hot card.
            log.exception("step broke run=%d action=%s", self._run.id, step.action.kind)
            why = f"{step.action.kind} met a fault of the remediator ({type(error).__name__})"
            return Outcome("unknown", "internal_error", why)

    def _verify(self, playbook: Playbook, rung: int) -> bool:
        """Re-read the world until the signal is gone; no data is never taken for recovery."""
        now = self._world.clock.now()
        since = replace(self._world, gpus=ReadingsSince(self._world.gpus, now))
        with self._world.store.transaction() as tx:
            tx.runs.set_state(self._run.id, "verifying", now, rung=rung)
            # What only looks leaves the services to others.
            tx.runs.release(
                self._run.id, tuple(Target("service", s) for s in self._services_of(rung))
            )
        block = playbook.rungs[rung]
        clock = self._world.clock
        deadline = clock.monotonic() + block.within
        gone = 0
        while True:
            self._check_cancelled()
            finding = block.verify.read(since, self._run.target)
            self._last_look = finding.sentence
            gone = gone + 1 if finding.state == "absent" else 0
            if gone >= _VERIFY_LOOKS:
                with self._world.store.transaction() as tx:
                    tx.audit(
                        self._journal.draft(
                            "verified", f"verified: {finding.sentence}", None, finding.data
                        )
                    )
                return True
            if clock.monotonic() > deadline:
                return self._not_verified(finding.state, finding.sentence, finding.data)
            if clock.wait(self._stop, _VERIFY_POLL):
                raise Interrupted

    def _not_verified(self, state: str, sentence: str, data: Mapping[str, Any]) -> bool:
        with self._world.store.transaction() as tx:
            tx.audit(
                self._journal.draft(
                    "not_verified", f"not verified: {sentence}", None, data, "warning"
                )
            )
        if state == "unknown":
            raise RunEnded(
                "ineffective", "no_evidence", f"{self._run.playbook} is not proven: {sentence}"
            )
        return False

    def _cancelled(self) -> RunEnded:
        run = self._journal.reload()
        reason = run.cancel_reason if run is not None and run.cancel_reason else "cancelled"
        return RunEnded("cancelled", reason, f"stopped before its end: {reason}")

    def _check_cancelled(self) -> None:
        if self._world.stopping.is_set():
            raise Interrupted
        run = self._journal.reload()
        if run is not None and run.cancel_reason:
            raise self._cancelled()
