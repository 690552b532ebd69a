"""Undo leases: what a knob was before we first turned it."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from remediator.store.rows import Lease, LeaseState

_COLUMNS = (
    "id, uuid, knob, control, original, value, written, run_id, created_at, undo_requested, boot_id, "
    "created_monotonic"
)


class Leases:
    """The lease table, within one transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    def take(
        self,
        *,
        uuid: str,
        knob: str,
        control: str,
        original: int,
        value: int,
        run_id: int,
        now: float,
        boot_id: str = "",
        monotonic: float | None = None,
    ) -> Lease:
        """Open the lease of this card's knob, or let a new value join the open one.

        The value from before the first change stays the one to restore. `monotonic` is now by the
        monotonic clock of the boot `boot_id`.
        """
        lease = self.open_for(uuid, knob)
        if lease is None:
            self._db.execute(
                "INSERT INTO leases (uuid, knob, control, original, value, written, run_id, "
                "created_at, updated_at, boot_id, created_monotonic, state) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'active')",
                (
                    *(uuid, knob, control, original, value, json.dumps([value]), run_id),
                    *(now, now, boot_id, monotonic),
                ),
            )
        else:
            written = sorted({*lease.written, value})
            self._db.execute(
                "UPDATE leases SET value = ?, written = ?, run_id = ?, updated_at = ? WHERE id = ?",
                (value, json.dumps(written), run_id, now, lease.id),
            )
        taken = self.open_for(uuid, knob)
        assert taken is not None  # noqa: S101 - it was written a line above
        return taken

    def open_for(self, uuid: str, knob: str) -> Lease | None:
        """The open lease of this card's knob."""
        found = self._many("uuid = ? AND knob = ? AND ended_at IS NULL", (uuid, knob))
        return found[0] if found else None

    def open_all(self) -> tuple[Lease, ...]:
        """Every open lease, oldest first."""
        return self._many("ended_at IS NULL ORDER BY id", ())

    def request_undo(self, lease_id: int) -> None:
        """An operator wants it undone now."""
        self._db.execute("UPDATE leases SET undo_requested = 1 WHERE id = ?", (lease_id,))

    def end(self, lease_id: int, state: LeaseState, sentence: str, now: float) -> None:
        """Close a lease."""
        self._db.execute(
            "UPDATE leases SET state = ?, sentence = ?, ended_at = ?, updated_at = ? WHERE id = ?",
            (state, sentence, now, now, lease_id),
        )

    def _many(self, where: str, values: tuple[Any, ...]) -> tuple[Lease, ...]:
        rows = self._db.execute(f"SELECT {_COLUMNS} FROM leases WHERE {where}", values)
        return tuple(
            Lease(
                id=row[0],
                uuid=row[1],
                knob=row[2],
                control=row[3],
                original=row[4],
                value=row[5],
                written=tuple(json.loads(row[6])),
                run_id=row[7],
                created_at=row[8],
                undo_requested=bool(row[9]),
                boot_id=row[10],
                created_monotonic=row[11],
            )
            for row in rows
        )
