"""Counts how often each service ran out of memory: who was killed for it, and what servers answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from remediator.durations import format_duration
from remediator.engine.kernel_kills import KernelKills, Machine
from remediator.engine.watchers import ServiceView
from remediator.error_signatures import ErrorClass, classify
from remediator.host_reading import KernelKill
from remediator.managers.base import ProcessIdentity, ProcessStatus, identity_from
from remediator.oom_events import LOG, WORKER, OutOfMemoryEvent, count, lately, not_outlived
from remediator.services import WorkerDeath
from remediator.signals.out_of_memory import last_failure
from remediator.store import Step, Transaction
from remediator.world import Service, World

# Steps in which the server itself answers. How a process ended its manager says, with its own guesses.
_ANSWERED = ("load_models", "canary")
_STEPS_SINCE = 600.0
_RUNS_SINCE = 86400.0
# What died longer ago is not counted: an alert about it would come too late.
_DEATHS_SINCE = 600.0
_DEATHS_KEPT = 100


class OutOfMemoryWatch:
    """`Watcher` that counts each death for memory, and each answer that says so, once.

    What was counted is kept in the store with the count, so that a restart counts nothing twice.
    """

    def __init__(self, world: World, machine: Machine | None = None) -> None:
        self._world = world
        self._kernel = KernelKills(world, machine or Machine())
        self._said: dict[str, str] = {}
        self._asked: dict[str, float] = {}

    def saw(self, service: Service, view: ServiceView) -> None:
        """Look at how its processes ended, and at what it answered to probes, canaries and loads."""
        self._death(service.name, view)
        self._workers(service.name, view.probe.deaths)
        self._probe(service.name, view)
        self._canary(service)
        self._steps(service.name)

    def _death(self, name: str, view: ServiceView) -> None:
        status = view.status
        if status is None:
            return
        self._kernel.follow(name, status.identity)
        with self._world.store.reading() as tx:
            kept = _Lives.load(tx, name)
        lives = kept.now(status.identity)
        victim = lives.victim(status.identity)
        died, logged = status.oom_killed is True, None
        if status.oom_killed is None and lives.counted != victim:
            # Its manager cannot tell; a process that it saw end otherwise was not killed.
            logged = self._kernel.of(name, identity_from(victim))
        died = (died or logged is not None) and lives.counted != victim
        if died:
            lives = replace(lives, counted=victim)
        self._not_outlived(name, status)
        if lives == kept:
            return
        with self._world.store.transaction() as tx:
            lives.save(tx, name)
            if died:
                why, evidence = self._killed(victim, status, logged)
                self._count(tx, name, "killed", why, evidence, ErrorClass("out_of_memory", "host"))

    def _killed(
        self, victim: Mapping[str, Any], status: ProcessStatus, logged: KernelKill | None
    ) -> tuple[str, dict[str, Any]]:
        """Who says so of which process, and on what it rests."""
        known = identity_from(victim)
        who = f"its process ({known.told})" if known else "its process"
        evidence: dict[str, Any] = {"victim": victim, "manager": status.detail}
        if logged is None:
            return f"the kernel killed {who} for memory ({status.detail})", evidence
        age = max(0.0, self._world.clock.now() - logged.at)
        evidence["kernel_log"] = {**asdict(logged), "age": age}
        whose = {"cgroup": " at the limit of its cgroup", "host": " for want of the host's memory"}
        how = whose.get(logged.constraint or "", " for memory")
        said = f"the kernel killed {who}{how} {format_duration(age)} ago, says the kernel log"
        return f"{said} ({status.detail})", evidence

    def _not_outlived(self, name: str, status: ProcessStatus) -> None:
        if status.state not in ("exited", "failed"):
            return
        now = self._world.clock.now()
        with self._world.store.reading() as tx:
            told = any(one.reason == LOG for one in lately(tx, name, now))
        if told:
            with self._world.store.transaction() as tx:
                not_outlived(tx, name, now)

    def _workers(self, name: str, deaths: Sequence[WorkerDeath]) -> None:
        """Workers of its own that the server itself says were killed; it may go on without them."""
        since = self._world.clock.now() - _DEATHS_SINCE
        lately_dead = [one for one in deaths if one.at >= since]
        if not lately_dead:
            return
        key = f"dead_workers:{name}"
        with self._world.store.reading() as tx:
            counted = json.loads(tx.get_meta(key) or "[]")
        fresh = [one for one in lately_dead if one.worker not in counted]
        if not fresh:
            return
        with self._world.store.transaction() as tx:
            known = (counted + [one.worker for one in fresh])[-_DEATHS_KEPT:]
            tx.set_meta(key, json.dumps(known))
            for one in fresh:
                evidence = {"worker": one.worker, "signature": one.said, "where": "host"}
                event = OutOfMemoryEvent(one.at, WORKER, "host", one.said)
                count(tx, name, event, f"{one.name} was {one.said}", evidence)

    def _probe(self, name: str, view: ServiceView) -> None:
        """Once until it answers well again, however often it says so."""
        probe = view.probe
        if probe.state == "ready":
            self._said.pop(name, None)
        if probe.state != "error" or name in self._said:
            return
        if self._count_text(name, "probe", f"it answers: {probe.detail}", probe.detail):
            self._said[name] = probe.detail

    def _canary(self, service: Service) -> None:
        failure = last_failure(service.driver)
        if failure is None or self._asked.get(service.name) == failure.at:
            return
        what = f"a canary of {failure.model} failed: {failure.text}"
        self._count_text(service.name, "canary", what, failure.text)
        self._asked[service.name] = failure.at

    def _steps(self, name: str) -> None:
        """Steps that failed, like the load after a restart; each is journaled for good."""
        key = f"out_of_memory_steps:{name}"
        now = self._world.clock.now()
        with self._world.store.reading() as tx:
            counted = json.loads(tx.get_meta(key) or "[]")
            runs = [
                run.id
                for run in tx.runs.recent(now - _RUNS_SINCE)
                if run.ended_at is None or run.ended_at >= now - _STEPS_SINCE
            ]
            steps = [step for run in runs for step in tx.runs.steps(run)]
        for step in steps:
            failed = step.state == "failed" and (step.ended_at or 0.0) >= now - _STEPS_SINCE
            if not failed or step.service != name or step.action not in _ANSWERED:
                continue
            if [step.run_id, step.seq] not in counted:
                # What is too old to be counted needs no remembering either.
                counted = [one for one in counted if one[0] in runs] + [[step.run_id, step.seq]]
                self._step(name, key, step, counted)

    def _step(self, name: str, key: str, step: Step, counted: list[list[int]]) -> None:
        evidence = {"run": step.run_id, "step": step.action}
        with self._world.store.transaction() as tx:
            tx.set_meta(key, json.dumps(counted))
            found = classify(step.sentence)
            if found.kind == "out_of_memory":
                self._count(tx, name, "step", step.sentence, evidence, found)

    def _count_text(self, name: str, reason: str, what: str, text: str) -> bool:
        found = classify(text)
        if found.kind != "out_of_memory":
            return False
        with self._world.store.transaction() as tx:
            evidence = {"text": text, "signature": found.signature, "where": found.where}
            self._count(tx, name, reason, what, evidence, found)
        return True

    def _count(
        self,
        tx: Transaction,
        name: str,
        reason: str,
        what: str,
        evidence: Mapping[str, Any],
        found: ErrorClass,
    ) -> None:
        now = self._world.clock.now()
        event = OutOfMemoryEvent(now, reason, found.where, found.signature)
        count(tx, name, event, what, evidence)


@dataclass(frozen=True)
class _Lives:
    """The processes of a service that were seen: the newest, the one before, the last one counted.

    Each as its identity in JSON, empty where none was seen. `counted` is None while none was, and
    empty for one that had ended before it was ever seen.
    """

    newest: Mapping[str, Any] = field(default_factory=dict)
    before: Mapping[str, Any] = field(default_factory=dict)
    counted: Mapping[str, Any] | None = None

    @classmethod
    def load(cls, tx: Transaction, name: str) -> _Lives:
        """What was kept of service `name`."""
        return cls(**json.loads(tx.get_meta(f"lives:{name}") or "{}"))

    def save(self, tx: Transaction, name: str) -> None:
        """Keep it."""
        tx.set_meta(f"lives:{name}", json.dumps(asdict(self)))

    def now(self, identity: ProcessIdentity | None) -> _Lives:
        """With the process that runs now; unchanged while it is the same, or none runs."""
        if identity is None or identity.same(identity_from(self.newest)):
            return self
        return replace(self, newest=identity.to_json(), before=self.newest)

    def victim(self, identity: ProcessIdentity | None) -> Mapping[str, Any]:
        """The process that ended last, where `identity` runs now."""
        return self.newest if identity is None else self.before
