"""Episodes and deliveries: what Alertmanager told us, once each."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from remediator.alertmanager import Alert
from remediator.store.rows import Episode

_COLUMNS = (
    "id, fingerprint, number, alertname, labels, starts_at, first_seen, last_seen, heartbeats, "
    "ended_at, last_reason, acted, refuted_at"
)


class Episodes:
    """The episode table, within one transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    def record_delivery(
        self, received_at: float, digest: str, receiver: str, alerts: int, truncated: int
    ) -> None:
        """Remember that a notification arrived."""
        self._db.execute(
            "INSERT INTO deliveries (received_at, digest, receiver, alerts, truncated) "
            "VALUES (?, ?, ?, ?, ?)",
            (received_at, digest, receiver, alerts, truncated),
        )

    def last_delivery(self) -> float | None:
        """When the last notification arrived; None when none ever did."""
        row = self._db.execute("SELECT max(received_at) FROM deliveries").fetchone()
        return None if row[0] is None else float(row[0])

    def open_for(self, fingerprint: str) -> Episode | None:
        """The open episode of `fingerprint`."""
        return self._one("fingerprint = ? AND ended_at IS NULL", (fingerprint,))

    def last_for(self, fingerprint: str) -> Episode | None:
        """The newest episode of `fingerprint`, open or ended."""
        return self._one("fingerprint = ? ORDER BY number DESC LIMIT 1", (fingerprint,))

    def get(self, episode_id: int) -> Episode | None:
        """The episode with this id."""
        return self._one("id = ?", (episode_id,))

    def open(self, alert: Alert, number: int, now: float) -> Episode:
        """A new episode, due for evaluation at once."""
        cursor = self._db.execute(
            "INSERT INTO episodes (fingerprint, number, alertname, labels, starts_at, first_seen, "
            "last_seen, evaluate_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                alert.fingerprint,
                number,
                alert.name,
                json.dumps(dict(alert.labels), sort_keys=True),
                alert.starts_at,
                now,
                now,
                now,
            ),
        )
        episode = self._one("id = ?", (cursor.lastrowid,))
        assert episode is not None  # noqa: S101 - it was inserted a line above
        return episode

    def heartbeat(self, episode_id: int, now: float) -> None:
        """A repeat of an open episode."""
        self._db.execute(
            "UPDATE episodes SET last_seen = ?, heartbeats = heartbeats + 1 WHERE id = ?",
            (now, episode_id),
        )

    def end(
        self, episode_id: int, ended_at: float, reason: str, *, heard_at: float | None = None
    ) -> None:
        """Close an episode; nothing is due for it any more. `heard_at`: when we were told so."""
        self._db.execute(
            "UPDATE episodes SET ended_at = ?, end_reason = ?, evaluate_at = NULL, "
            "last_seen = coalesce(?, last_seen) WHERE id = ?",
            (ended_at, reason, heard_at, episode_id),
        )

    def reopen(self, episode_id: int, now: float) -> None:
        """An episode that had ended goes on, due at once; that it was acted on is kept."""
        self._db.execute(
            "UPDATE episodes SET ended_at = NULL, end_reason = NULL, last_reason = NULL, "
            "last_seen = ?, evaluate_at = ?, heartbeats = heartbeats + 1 WHERE id = ?",
            (now, now, episode_id),
        )

    def due(self, now: float) -> tuple[int, ...]:
        """Ids of open episodes to evaluate now, oldest first."""
        rows = self._db.execute(
            "SELECT id FROM episodes WHERE evaluate_at IS NOT NULL AND evaluate_at <= ? "
            "AND ended_at IS NULL ORDER BY evaluate_at, id",
            (now,),
        )
        return tuple(row[0] for row in rows)

    def wake(self, now: float, *, beyond: float) -> None:
        """Make due at once what waits for a time more than `beyond` seconds ahead."""
        self._db.execute(
            "UPDATE episodes SET evaluate_at = ? WHERE evaluate_at > ? AND ended_at IS NULL",
            (now, now + beyond),
        )

    def oldest_due(self) -> float | None:
        """When the oldest waiting episode became due; None when none waits."""
        row = self._db.execute(
            "SELECT min(evaluate_at) FROM episodes WHERE ended_at IS NULL"
        ).fetchone()
        return None if row[0] is None else float(row[0])

    def decided(
        self,
        episode_id: int,
        reason: str,
        again_at: float | None,
        *,
        acted: bool = False,
        refuted_at: float | None = None,
    ) -> None:
        """Keep the last decision, and when to look again (None: not until something changes)."""
        self._db.execute(
            "UPDATE episodes SET last_reason = ?, evaluate_at = ?, acted = acted OR ?, "
            "refuted_at = coalesce(?, refuted_at) WHERE id = ?",
            (reason, again_at, int(acted), refuted_at, episode_id),
        )

    def open_acted(self) -> tuple[Episode, ...]:
        """Every open episode that was acted on, oldest first."""
        return self._many("ended_at IS NULL AND acted ORDER BY id", ())

    def open_of(self, alertname: str) -> tuple[Episode, ...]:
        """Every open episode of alerts of this name, oldest first."""
        return self._many("ended_at IS NULL AND alertname = ? ORDER BY id", (alertname,))

    def open_beats(self) -> tuple[tuple[int, int], ...]:
        """Id and heartbeats of every open episode; in a storm there are many."""
        rows = self._db.execute("SELECT id, heartbeats FROM episodes WHERE ended_at IS NULL")
        return tuple((row[0], row[1]) for row in rows)

    def open_all(self) -> tuple[Episode, ...]:
        """Every open episode, oldest first."""
        return self._many("ended_at IS NULL ORDER BY id", ())

    def silent_since(self, moment: float) -> tuple[Episode, ...]:
        """Open episodes that were last heard of before then, oldest first."""
        return self._many("ended_at IS NULL AND last_seen < ? ORDER BY id", (moment,))

    def _one(self, where: str, values: tuple[Any, ...]) -> Episode | None:
        found = self._many(where, values)
        return found[0] if found else None

    def _many(self, where: str, values: tuple[Any, ...]) -> tuple[Episode, ...]:
        rows = self._db.execute(f"SELECT {_COLUMNS} FROM episodes WHERE {where}", values)
        return tuple(
            Episode(
                id=row[0],
                fingerprint=row[1],
                number=row[2],
                alertname=row[3],
                labels=json.loads(row[4]),
                starts_at=row[5],
                first_seen=row[6],
                last_seen=row[7],
                heartbeats=row[8],
                ended_at=row[9],
                last_reason=row[10],
                acted=bool(row[11]),
                refuted_at=row[12],
            )
            for row in rows
        )
