"""The store: one connection, short transactions, one writer at a time."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from remediator.clock import Clock
from remediator.errors import StorageError
from remediator.store import audit as chain
from remediator.store import segments
from remediator.store.anchor import Anchor
from remediator.store.emergency import MERGED, EmergencyJournal
from remediator.store.schema import check, migrate
from remediator.store.transaction import Trail, Transaction

log = logging.getLogger(__name__)

DATABASE = "remediator.db"
_BUSY_SECONDS = 5.0


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
        else:
            check(connection)
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
        except Exception as error:
            if isinstance(error, sqlite3.Error) and not isinstance(error, sqlite3.IntegrityError):
                raise
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


def _tell(record: Mapping[str, Any]) -> None:
    """The log tells the same story; what counts is the chain."""
    level = logging.INFO if record["severity"] == "info" else logging.WARNING
    about = " ".join(
        f"{key}={record[key]}" for key in ("run", "alertname", "target") if record[key]
    )
    log.log(level, "%s %s: %s", record["event"], about, record["sentence"])
