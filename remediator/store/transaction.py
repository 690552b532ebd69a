"""One transaction: every table, the audit chain, and small durable values."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, replace
from pathlib import Path

from remediator.clock import Clock, boot_id
from remediator.errors import StorageError
from remediator.store import audit as chain
from remediator.store import segments
from remediator.store.anchor import Anchor
from remediator.store.approvals import Approvals
from remediator.store.episodes import Episodes
from remediator.store.incidents import Incidents
from remediator.store.inventory import Inventory
from remediator.store.leases import Leases
from remediator.store.retention import Retention
from remediator.store.runs import Runs
from remediator.store.verify import Verdict, verify


@dataclass(frozen=True)
class Trail:
    """What there is of the audit beside the database; `old_keys` are oldest first."""

    anchor: Path
    segments: Path
    old_keys: tuple[bytes, ...] = ()
    emergency: Path | None = None

    @classmethod
    def beside(cls, state_dir: Path) -> Trail:
        """Where nothing is said: in the state directory."""
        return cls(state_dir / "audit.anchor", state_dir / "audit-segments")


class Transaction:
    """The tables within one transaction; what it writes is kept whole or not at all."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        key: bytes,
        clock: Clock,
        actor: str,
        trail: Trail,
    ) -> None:
        self._db = connection
        self._key = key
        self._clock = clock
        self._actor = actor
        self._trail = trail
        self.audited: list[chain.AuditRecord] = []
        self.episodes = Episodes(connection)
        self.runs = Runs(connection, clock)
        self.leases = Leases(connection)
        self.inventory = Inventory(connection)
        self.incidents = Incidents(connection)
        self.approvals = Approvals(connection, key)
        self.retention = Retention(connection, self.runs)

    def audit(self, draft: chain.Draft) -> chain.AuditRecord:
        """Append to the audit chain."""
        record = chain.append(
            self._db,
            self._key,
            draft,
            time=self._clock.now(),
            boot_id=boot_id(),
            actor=self._actor,
        )
        self.audited.append(record)
        return record

    def audit_records(
        self,
        after: int = 0,
        limit: int = 1000,
        run: int | None = None,
        *,
        query: chain.Query = chain.EVERYTHING,
    ) -> tuple[chain.AuditRecord, ...]:
        """Audit records after `after`, oldest first."""
        wanted = query if run is None else replace(query, run=run)
        return chain.read(self._db, after, limit, wanted)

    def audit_tail(
        self, limit: int, query: chain.Query = chain.EVERYTHING
    ) -> tuple[chain.AuditRecord, ...]:
        """The newest audit records, oldest first."""
        return chain.tail(self._db, limit, query)

    def audit_count(self) -> int:
        """How many records the chain holds, in the database and in segments."""
        return self.audit_head()[0]

    def audit_head(self) -> tuple[int, str]:
        """Number and mac of the newest record."""
        return chain.head(self._db)

    def audit_first(self) -> int:
        """The oldest record in the database; what is older is in segments."""
        row = self._db.execute("SELECT coalesce(min(seq), 1) FROM audit").fetchone()
        return int(row[0])

    def verify_audit(self, *, without_segments: bool = False) -> Verdict:
        """Walk the whole audit chain.

        Raises:
            StorageError: its anchor cannot be read.
        """
        try:
            heads = Anchor(self._trail.anchor).heads()
        except OSError as error:
            raise StorageError(f"the anchor of the audit cannot be read: {error}") from None
        folder = None if without_segments else self._trail.segments
        return verify(self._db, (*self._trail.old_keys, self._key), heads, folder)

    def audit_due(self, keep: float) -> list[segments.Row]:
        """The oldest records, where enough are older than `keep` seconds to make a segment."""
        now = self._clock.now()
        return segments.due(self._db, now - keep, now)

    def remove_audit(self, segment: segments.Segment, keep: float) -> None:
        """Delete the records of a segment that is on the disk, and record that."""
        segments.remove(self._db, segment, self._clock.now())
        self.audit(segment.draft(keep))

    def get_meta(self, key: str) -> str | None:
        """A small durable value."""
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def set_meta(self, key: str, value: str | None) -> None:
        """Keep a small durable value; None forgets it."""
        if value is None:
            self._db.execute("DELETE FROM meta WHERE key = ?", (key,))
        else:
            self._db.execute(
                "INSERT INTO meta (key, value) VALUES (?, ?) "
                "ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                (key, value),
            )
