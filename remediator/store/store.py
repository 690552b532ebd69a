"""The store: one connection, short transactions, one writer at a time."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from remediator.clock import Clock, boot_id
from remediator.errors import StorageError
from remediator.store import audit as chain
from remediator.store import segments
from remediator.store.anchor import Anchor
from remediator.store.approvals import Approvals
from remediator.store.emergency import MERGED, EmergencyJournal
from remediator.store.episodes import Episodes
from remediator.store.incidents import Incidents
from remediator.store.inventory import Inventory
from remediator.store.leases import Leases
from remediator.store.retention import Retention
from remediator.store.runs import Runs
from remediator.store.schema import migrate
from remediator.store.verify import Verdict, verify

log = logging.getLogger(__name__)

DATABASE = "remediator.db"
_BUSY_SECONDS = 5.0


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
        self.runs = Runs(connection)
        self.leases = Leases(connection)
        self.inventory = Inventory(connection)
        self.incidents = Incidents(connection)
        self.approvals = Approvals(connection, key)
        self.retention = Retention(connection)

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


TakeOver = Callable[[Transaction, Sequence[Mapping[str, Any]], int], None]


class Store:
    """The database in `state_dir`."""

    def __init__(
        self,
        state_dir: Path,
        key: bytes,
        clock: Clock,
        *,
        actor: str = "gpu-remediator",
        read_only: bool = False,
        trail: Trail | None = None,
    ) -> None:
        """Open (and migrate) the database.

        Raises:
            StorageError: it cannot be opened; the message says why.
        """
        self._key = key
        self._clock = clock
        self._actor = actor
        self.trail = trail or Trail.beside(state_dir)
        self.anchor = Anchor(self.trail.anchor)
        self.emergency = EmergencyJournal(self.trail.emergency or state_dir, key)
        self.take_over: TakeOver | None = None
        self._lock = threading.RLock()
        self.path = state_dir / DATABASE
        self.failing = False
        self.read_only = read_only
        try:
            if not read_only:
                state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._db = self._connect(read_only=read_only)
        except (sqlite3.Error, OSError) as error:
            raise StorageError(f"cannot open the database {self.path}: {error}") from None
        self.cut = "" if read_only else self._why_cut()

    def _connect(self, *, read_only: bool) -> sqlite3.Connection:
        uri = f"file:{quote(str(self.path))}?mode={'ro' if read_only else 'rwc'}"
        connection = sqlite3.connect(
            uri, uri=True, isolation_level=None, check_same_thread=False, timeout=_BUSY_SECONDS
        )
        if not read_only:
            connection.execute("PRAGMA journal_mode = WAL")
            # FULL, not NORMAL: in WAL mode NORMAL may lose the last commits on a power cut.
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            migrate(connection)
            self.path.chmod(0o600)
        return connection

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Everything inside is committed together, durably, or not at all.

        Raises:
            StorageError: it could not be committed (disk full, read-only, locked).
        """
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                tx = self._new()
                try:
                    taken = self._take_over(tx)
                    yield tx
                except BaseException:
                    self._rollback()
                    raise
                self._db.execute("COMMIT")
                self.failing = False
                if taken is not None:
                    self.emergency.clear(taken)
                if tx.audited:
                    self.anchor.note(tx.audited[-1].seq, tx.audited[-1].mac, self._clock.now())
            except sqlite3.Error as error:
                self._rollback()
                self.failing = True
                raise StorageError(f"the store could not commit: {error}") from None
        for kept in tx.audited:
            _tell(kept.record)

    @contextlib.contextmanager
    def reading(self) -> Iterator[Transaction]:
        """A consistent read.

        Raises:
            StorageError: the database cannot be read.
        """
        with self._lock:
            try:
                self._db.execute("BEGIN")
                try:
                    yield self._new()
                finally:
                    self._rollback()
            except sqlite3.Error as error:
                raise StorageError(f"the store cannot be read: {error}") from None

    def retire_audit(self, keep: float) -> segments.Segment | None:
        """Move the oldest records, where enough are older than `keep` seconds, into a segment.

        Raises:
            StorageError: they could not be written down elsewhere; none is deleted.
        """
        with self.reading() as tx:
            rows = tx.audit_due(keep)
        if not rows:
            return None
        keys = (*self.trail.old_keys, self._key)
        segment = segments.write(self.trail.segments, rows, self._key, keys)
        with self.transaction() as tx:
            tx.remove_audit(segment, keep)
        return segment

    def _take_over(self, tx: Transaction) -> Sequence[Mapping[str, Any]] | None:
        """What was done without the database comes first, in the transaction of whoever is first."""
        kept, unreadable = self.emergency.entries, self.emergency.unreadable
        if self.take_over is None or not (kept or unreadable):
            return None
        # Each by itself: an entry may have been in memory only, and a file may be put back later.
        entries = [one for one in kept if tx.get_meta(MERGED + one["id"]) is None]
        if entries or unreadable:
            self._merge(tx, self.take_over, entries, unreadable)
        for one in entries:
            tx.set_meta(MERGED + one["id"], str(self._clock.now()))
        return kept

    def _merge(
        self,
        tx: Transaction,
        take_over: TakeOver,
        entries: Sequence[Mapping[str, Any]],
        unreadable: int,
    ) -> None:
        self._db.execute("SAVEPOINT emergency")
        try:
            take_over(tx, entries, unreadable)
        except sqlite3.Error:
            raise
        except Exception as error:
            # A fault of ours must not keep every later transaction from being made.
            log.exception("the emergency journal could not be taken over")
            self._db.execute("ROLLBACK TO emergency")
            tx.audited.clear()
            why = f"the emergency journal could not be taken over ({type(error).__name__})"
            data = {"entries": list(entries), "unreadable": unreadable}
            tx.audit(chain.Draft("emergency", why, severity="critical", data=data))
        self._db.execute("RELEASE emergency")

    def _new(self) -> Transaction:
        return Transaction(self._db, self._key, self._clock, self._actor, self.trail)

    def _why_cut(self) -> str:
        """Whether the chain is not the one that was anchored; and anchor the head that it has."""
        self.anchor.rotate()
        try:
            heads = self.anchor.heads()
        except OSError as error:
            return f"its anchor cannot be read: {error}"
        with self.reading() as tx:
            seq, mac = tx.audit_head()
        newest = max(heads, default=0)
        if newest > seq:
            return f"the anchor {self.anchor.path} has seen record {newest}, the newest is {seq}"
        if heads.get(seq, {mac}) != {mac}:
            return f"record {seq} is not the one that the anchor {self.anchor.path} has seen"
        if seq > newest:
            self.anchor.note(seq, mac, self._clock.now())
        return ""

    def _rollback(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self.anchor.close()
            self._db.close()


class StateLock:
    """One remediator a state directory: an exclusive lock that dies with its process."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "lock"
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Take the lock; False when another process holds it."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(f"cannot use the state directory: {error}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Give the lock back."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _tell(record: Mapping[str, Any]) -> None:
    """The log tells the same story; what counts is the chain."""
    level = logging.INFO if record["severity"] == "info" else logging.WARNING
    about = " ".join(
        f"{key}={record[key]}" for key in ("run", "alertname", "target") if record[key]
    )
    log.log(level, "%s %s: %s", record["event"], about, record["sentence"])
