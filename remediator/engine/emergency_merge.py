"""Takes the emergency journal over into the store: once, and before anything else is written there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from remediator.clock import boot_id
from remediator.engine.gathering import supersede
from remediator.store import Draft, Step, Transaction
from remediator.store.audit import Severity
from remediator.store.inventory import HOLDER
from remediator.store.rows import target_of

Entry = Mapping[str, Any]


class Merge:
    """One taking over, within the transaction of whoever came first."""

    def __init__(self, tx: Transaction, now: float) -> None:
        self._tx = tx
        self._now = now
        self._runs: dict[str, int] = {}
        self._to_return: set[tuple[str, int]] = set()
        self._taken: set[tuple[int, int]] = set()

    def all(self, entries: Sequence[Entry], unreadable: int) -> None:
        """Every entry, behind a record that tells of the outage."""
        since = min((one["time"] for one in entries), default=self._now)
        spoilt = f"; {unreadable} more could not be read" if unreadable else ""
        self._tx.audit(
            Draft(
                "emergency",
                f"the store could not be written; the {len(entries)} entries that were journaled "
                f"elsewhere meanwhile follow{spoilt}",
                severity="critical",
                reason="store_failed",
                data={"entries": len(entries), "since": since, "unreadable": unreadable},
            )
        )
        takes = {
            "began": self._began,
            "intended": self._intended,
            "ended": self._ended,
            "undone": self._undone,
        }
        for entry in entries:
            takes[entry["what"]](entry)

    def _began(self, entry: Entry) -> None:
        target, tx = target_of(*entry["target"]), self._tx
        run_id = self._known_run(entry)
        if run_id is None:
            # A database that was begun anew knows no episode of the one before it.
            known = entry["episode"] is not None and tx.episodes.get(entry["episode"])
            entry = {**entry, "episode": entry["episode"] if known else None}
            for lighter in (*tx.runs.holders((target,)), *tx.runs.followers(target)):
                supersede(tx, lighter.id, entry["playbook"])
            run = tx.runs.create(
                episode_id=entry["episode"],
                playbook=entry["playbook"],
                weight=entry["weight"],
                safe=True,
                trigger=entry["alertname"],
                target=target,
                locks=(),
                state="reserved",
                plan=entry["plan"],
                now=entry["time"],
                expires_at=None,
                boot_id=boot_id(),
            )
            assert run is not None  # noqa: S101 - it asked for no lock
            run_id = run.id
            tx.runs.take_over(run_id, (target,))
            if entry["episode"] is not None:
                tx.episodes.decided(entry["episode"], "run:accepted", None)
            tx.incidents.put(
                episode_id=entry["episode"],
                trigger=entry["alertname"],
                target=target,
                playbook=entry["playbook"],
                state="recovering",
                reason="accepted",
                last_step="stop_service",
                now=self._now,
            )
        tx.runs.mark_destructive(run_id)
        self._runs[target.key] = run_id
        what = f"run {run_id}: {entry['playbook']} on {target.key}: {entry['sentence']}"
        self._audit("emergency_stop", what, {**entry, "run": run_id}, "critical")

    def _intended(self, entry: Entry) -> None:
        if entry["intent"].get("was_to_return"):
            self._to_return.add((entry["service"], entry["seq"]))
        run_id = self._run(entry)
        if run_id is not None and self._is_newest(run_id, entry):
            kind, name = entry["target"]
            kept = self._step(run_id, entry["seq"])
            before = entry["intent"].get("before") or (kept and kept.intent.get("before"))
            self._tx.runs.intend(
                run_id,
                entry["seq"],
                rung=0,
                action="stop_service",
                gpu=name if kind == "gpu" else None,
                service=entry["service"],
                # Tried again: what ran before the first try is what was up.
                intent={**entry["intent"], "before": before},
                sentence=entry["sentence"],
                now=entry["time"] if kept is None else kept.started_at,
                boot_id=entry["boot_id"],
            )
        self._audit("step_started", entry["sentence"], entry)

    def _ended(self, entry: Entry) -> None:
        tx, name, run_id = self._tx, entry["service"], self._run(entry)
        if run_id is not None and self._is_newest(run_id, entry):
            tx.runs.finish_step(
                run_id,
                entry["seq"],
                entry["state"],
                {"reason": entry["reason"], "emergency": True},
                entry["sentence"],
                entry["time"],
            )
        record = tx.inventory.service(name)
        # As where the store could be written: another's hold outlasts ours.
        ours = record.held_by == HOLDER and (name, entry["seq"]) in self._to_return
        free = record.held_by is None or record.restarting or ours
        if entry["state"] == "done" and free:
            tx.inventory.hold(name, HOLDER, entry["because"], entry["time"])
        severity: Severity = "info" if entry["state"] == "done" else "warning"
        self._audit("step_finished", entry["sentence"], entry, severity)

    def _undone(self, entry: Entry) -> None:
        open_now = {lease.id for lease in self._tx.leases.open_all()}
        if entry["lease"] in open_now:
            self._tx.leases.end(entry["lease"], entry["state"], entry["sentence"], entry["time"])
            self._audit("undone", entry["sentence"], entry, entry["severity"])

    def _is_newest(self, run_id: int, entry: Entry) -> bool:
        """Whether what the journal says of the step is later than what the store says.

        A stop that failed is tried again, and where the run goes on it may have made an end of its
        own. Of the journal's entries the order counts: the clock may have been set between them.
        """
        key, kept = (run_id, entry["seq"]), self._step(run_id, entry["seq"])
        ended_at = None if kept is None else kept.ended_at
        newest = key in self._taken or ended_at is None or ended_at < float(entry["time"])
        if newest:
            self._taken.add(key)
        return newest

    def _step(self, run_id: int, seq: int) -> Step | None:
        return next((step for step in self._tx.runs.steps(run_id) if step.seq == seq), None)

    def _known_run(self, entry: Entry) -> int | None:
        """The run that was stopped for, where it was reserved in this very database."""
        run = None if entry["run"] is None else self._tx.runs.get(entry["run"])
        return run.id if run is not None and run.target == target_of(*entry["target"]) else None

    def _run(self, entry: Entry) -> int | None:
        """The run of an entry; its beginning may have been taken over some time ago."""
        target = target_of(*entry["target"])
        holders = [run.id for run in self._tx.runs.holders((target,)) if run.safe]
        return self._runs.get(target.key, holders[0] if holders else None)

    def _audit(self, event: str, sentence: str, entry: Entry, severity: Severity = "info") -> None:
        kept = {
            key: value
            for key, value in entry.items()
            if key not in ("what", "target", "sentence", "run", "plan", "severity", "time")
        }
        target = target_of(*entry["target"])
        self._tx.audit(
            Draft(
                event,
                sentence,
                severity=severity,
                run=entry.get("run") or self._runs.get(target.key),
                episode=entry.get("episode"),
                alertname=entry.get("alertname", ""),
                target=target.key,
                reason=str(entry.get("reason") or entry.get("state") or ""),
                data=kept | {"emergency": True, "done_at": entry["time"]},
            )
        )
