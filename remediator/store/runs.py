"""Runs, their steps, and the locks of the targets they work on."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from remediator.clock import Clock
from remediator.clock import boot_id as this_boot
from remediator.store.rows import ACTIVE_STATES, Run, RunState, Step, StepState, target_of
from remediator.targets import Target

_COLUMNS = (
    "id, episode_id, playbook, weight, destructive, safe, trigger, target_kind, target_name, state, reason, "
    "sentence, plan, rung, cancel_reason, created_at, updated_at, ended_at, expires_at, boot_id, "
    "created_monotonic, ended_monotonic, ended_boot_id"
)
_STEP_COLUMNS = (
    "run_id, seq, rung, action, gpu, service, state, intent, result, sentence, started_at, ended_at, "
    "boot_id"
)
_ACTIVE = ", ".join(f"'{state}'" for state in ACTIVE_STATES)


class Runs:
    """The run, step and lock tables, within one transaction."""

    def __init__(self, connection: sqlite3.Connection, clock: Clock) -> None:
        self._db = connection
        self._clock = clock

    def create(
        self,
        *,
        episode_id: int | None,
        playbook: str,
        weight: int,
        safe: bool = False,
        trigger: str,
        target: Target,
        locks: Sequence[Target],
        state: RunState,
        plan: object,
        now: float,
        expires_at: float | None,
        boot_id: str,
        monotonic: float | None = None,
    ) -> Run | None:
        """Reserve a run and its locks, all or none; None when one of them is taken.

        `monotonic` is `now` by the monotonic clock of this boot.
        """
        if locks and self.holders(locks):
            return None
        cursor = self._db.execute(
            "INSERT INTO runs (episode_id, playbook, weight, destructive, safe, trigger, target_kind, "
            "target_name, state, plan, created_at, updated_at, expires_at, boot_id, created_monotonic) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                episode_id,
                playbook,
                weight,
                0,
                int(safe),
                trigger,
                target.kind,
                target.name,
                state,
                json.dumps(plan),
                now,
                now,
                expires_at,
                boot_id,
                monotonic,
            ),
        )
        run_id = int(cursor.lastrowid or 0)
        self._insert_locks(run_id, locks)
        return self.get(run_id)

    def acquire(self, run_id: int, locks: Sequence[Target]) -> tuple[Run, ...]:
        """Take further locks for a run, all or none; returns who is in the way."""
        others = tuple(run for run in self.holders(locks) if run.id != run_id)
        if not others:
            self._insert_locks(run_id, locks)
        return others

    def take_over(self, run_id: int, locks: Sequence[Target]) -> None:
        """Take locks from whoever holds them; their runs must have been asked to stop."""
        for lock in locks:
            self._db.execute(
                "INSERT INTO run_locks (target, run_id) VALUES (?, ?) "
                "ON CONFLICT (target) DO UPDATE SET run_id = excluded.run_id",
                (lock.key, run_id),
            )

    def release(self, run_id: int, locks: Sequence[Target]) -> None:
        """Give locks of a run back before its end."""
        for lock in locks:
            self._db.execute(
                "DELETE FROM run_locks WHERE target = ? AND run_id = ?", (lock.key, run_id)
            )

    def _insert_locks(self, run_id: int, locks: Sequence[Target]) -> None:
        for lock in locks:
            self._db.execute(
                "INSERT INTO run_locks (target, run_id) VALUES (?, ?) ON CONFLICT DO NOTHING",
                (lock.key, run_id),
            )

    def holders(self, locks: Sequence[Target]) -> tuple[Run, ...]:
        """The active runs that hold any of `locks`."""
        marks = ", ".join("?" for _ in locks)
        return self.where(
            f"id IN (SELECT run_id FROM run_locks WHERE target IN ({marks}))",
            tuple(lock.key for lock in locks),
        )

    def get(self, run_id: int) -> Run | None:
        """The run with this id."""
        found = self.where("id = ?", (run_id,))
        return found[0] if found else None

    def active(self) -> tuple[Run, ...]:
        """Runs that have not ended, oldest first."""
        return self.where(f"state IN ({_ACTIVE}) ORDER BY id", ())

    def followers(self, target: Target) -> tuple[Run, ...]:
        """Active runs about this target that do not hold it: they are past what they verified."""
        return self.where(
            f"state IN ({_ACTIVE}) AND state <> 'awaiting_approval' AND target_kind = ? "
            "AND target_name = ? AND id NOT IN (SELECT run_id FROM run_locks WHERE target = ?)",
            (target.kind, target.name, target.key),
        )

    def recent(
        self, since: float, *, boot_id: str = "", monotonic: float = math.inf
    ) -> tuple[Run, ...]:
        """Runs created at or after `since`, or in this boot at or after `monotonic`, oldest first."""
        return self.where(
            "created_at >= ? OR (boot_id = ? AND created_monotonic >= ?) ORDER BY id",
            (since, boot_id, monotonic),
        )

    def latest(self, limit: int) -> tuple[Run, ...]:
        """The newest runs, newest first."""
        return self.where("1 ORDER BY id DESC LIMIT ?", (limit,))

    def set_state(
        self, run_id: int, state: RunState, now: float, *, rung: int | None = None
    ) -> None:
        """Move an active run on."""
        self._db.execute(
            "UPDATE runs SET state = ?, updated_at = ?, rung = coalesce(?, rung) WHERE id = ?",
            (state, now, rung, run_id),
        )

    def set_weight(self, run_id: int, weight: int) -> None:
        """From now on a run of this weight may supersede it."""
        self._db.execute("UPDATE runs SET weight = ? WHERE id = ?", (weight, run_id))

    def mark_destructive(self, run_id: int, *, destructive: bool = True) -> None:
        """The run is about to interrupt a service or a card; from now on it counts as such."""
        self._db.execute("UPDATE runs SET destructive = ? WHERE id = ?", (destructive, run_id))

    def end(self, run_id: int, state: RunState, reason: str, sentence: str, now: float) -> None:
        """End a run and free its targets."""
        self._db.execute(
            "UPDATE runs SET state = ?, reason = ?, sentence = ?, updated_at = ?, ended_at = ?, "
            "ended_monotonic = ?, ended_boot_id = ? WHERE id = ?",
            (state, reason, sentence, now, now, self._clock.monotonic(), this_boot(), run_id),
        )
        self._db.execute("DELETE FROM run_locks WHERE run_id = ?", (run_id,))

    def request_cancel(self, run_id: int, reason: str) -> None:
        """Ask a run to stop at its next safe point."""
        self._db.execute(
            "UPDATE runs SET cancel_reason = coalesce(cancel_reason, ?) WHERE id = ?",
            (reason, run_id),
        )

    def steps(self, run_id: int) -> tuple[Step, ...]:
        """The journal of a run, in order."""
        return self._steps("run_id = ? ORDER BY seq", (run_id,))

    def _steps(self, where: str, values: tuple[Any, ...]) -> tuple[Step, ...]:
        rows = self._db.execute(f"SELECT {_STEP_COLUMNS} FROM steps WHERE {where}", values)
        return tuple(
            Step(
                run_id=row[0],
                seq=row[1],
                rung=row[2],
                action=row[3],
                gpu=row[4],
                service=row[5],
                state=row[6],
                intent=json.loads(row[7]),
                result=json.loads(row[8]),
                sentence=row[9],
                started_at=row[10],
                ended_at=row[11],
                boot_id=row[12],
            )
            for row in rows
        )

    def last_stop(self, service: str) -> Step | None:
        """The newest stop of this service that was begun, whatever became of it."""
        found = self._steps(
            "action = 'stop_service' AND service = ? "
            "AND coalesce(json_extract(result, '$.reason'), '') <> 'impossible' "
            "ORDER BY started_at DESC, run_id DESC LIMIT 1",
            (service,),
        )
        return found[0] if found else None

    def last_reset(self, gpu: str) -> float | None:
        """When a reset of this card ended last, so far as it is known to have happened."""
        row = self._db.execute(
            "SELECT max(ended_at) FROM steps WHERE action = 'reset_gpu' AND state = 'done' "
            "AND gpu = ?",
            (gpu,),
        ).fetchone()
        return None if row[0] is None else float(row[0])

    def last_reset_tried(self, gpu: str) -> Run | None:
        """The newest run that tried to reset this card, whatever became of it."""
        found = self.where(
            "id = (SELECT max(run_id) FROM steps WHERE action = 'reset_gpu' AND gpu = ? "
            "AND state <> 'nothing' "
            "AND coalesce(json_extract(result, '$.reason'), '') <> 'impossible')",
            (gpu,),
        )
        return found[0] if found else None

    def intend(
        self,
        run_id: int,
        seq: int,
        *,
        rung: int,
        action: str,
        gpu: str | None,
        service: str | None,
        intent: Mapping[str, Any],
        sentence: str,
        now: float,
        boot_id: str,
    ) -> None:
        """Journal that a step is about to run; replaces an earlier intent of the same step."""
        self._db.execute(
            "INSERT OR REPLACE INTO steps (run_id, seq, rung, action, gpu, service, state, intent, "
            "sentence, started_at, boot_id) VALUES (?, ?, ?, ?, ?, ?, 'intended', ?, ?, ?, ?)",
            (
                run_id,
                seq,
                rung,
                action,
                gpu,
                service,
                json.dumps(dict(intent)),
                sentence,
                now,
                boot_id,
            ),
        )

    def finish_step(
        self,
        run_id: int,
        seq: int,
        state: StepState,
        result: Mapping[str, Any],
        sentence: str,
        now: float,
    ) -> None:
        """Journal what a step did."""
        self._db.execute(
            "UPDATE steps SET state = ?, result = ?, sentence = ?, ended_at = ? "
            "WHERE run_id = ? AND seq = ?",
            (state, json.dumps(dict(result)), sentence, now, run_id, seq),
        )

    def where(self, where: str, values: tuple[Any, ...]) -> tuple[Run, ...]:
        """The runs of which this SQL is true; for this package alone."""
        rows = self._db.execute(f"SELECT {_COLUMNS} FROM runs WHERE {where}", values)
        return tuple(
            Run(
                id=row[0],
                episode_id=row[1],
                playbook=row[2],
                weight=row[3],
                destructive=bool(row[4]),
                safe=bool(row[5]),
                trigger=row[6],
                target=target_of(row[7], row[8]),
                state=row[9],
                reason=row[10],
                sentence=row[11],
                plan=json.loads(row[12]),
                rung=row[13],
                cancel_reason=row[14],
                created_at=row[15],
                updated_at=row[16],
                ended_at=row[17],
                expires_at=row[18],
                boot_id=row[19],
                created_monotonic=row[20],
                ended_monotonic=row[21],
                ended_boot_id=row[22],
            )
            for row in rows
        )
