"""A chain of audit records on disk, and what a test does to it."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from remediator.store import Draft, Store
from remediator.store.transaction import Trail
from remediator.store.verify import Verdict
from tests.remediator.edge.support import KEY
from tests.remediator.engine.fakes import FakeClock

DAY = 86400.0
RECORDS = 9
COLUMNS = "seq, record, prev_mac, mac"


def write(folder: Path, count: int, *, clock: FakeClock | None = None, **more: object) -> None:
    store = Store(folder, KEY, clock or FakeClock(), **more)
    for number in range(count):
        with store.transaction() as tx:
            tx.audit(Draft("decision", f"sentence {number}", data={"n": number}))
    store.close()


def verdict(folder: Path, key: bytes = KEY, *, without: bool = False, **trail: object) -> Verdict:
    beside = Trail.beside(folder)
    store = Store(
        folder,
        key,
        FakeClock(),
        read_only=True,
        trail=Trail(**{"anchor": beside.anchor, "segments": beside.segments} | trail),
    )
    try:
        with store.reading() as tx:
            return tx.verify_audit(without_segments=without)
    finally:
        store.close()


@contextlib.contextmanager
def tampering(folder: Path) -> Iterator[sqlite3.Connection]:
    """Somebody who can write the database, and does not care for triggers."""
    with contextlib.closing(sqlite3.connect(folder / "remediator.db")) as raw:
        for name in ("audit_no_update", "audit_no_delete"):
            raw.execute(f"DROP TRIGGER {name}")
        yield raw
        raw.commit()


def rows(folder: Path) -> list[tuple[int, str, str, str]]:
    with contextlib.closing(sqlite3.connect(folder / "remediator.db")) as raw:
        return raw.execute(f"SELECT {COLUMNS} FROM audit ORDER BY seq").fetchall()


def put(folder: Path, wanted: list[tuple[int, str, str, str]]) -> None:
    with contextlib.closing(sqlite3.connect(folder / "remediator.db")) as raw:
        raw.execute("DELETE FROM audit")
        raw.executemany(f"INSERT INTO audit ({COLUMNS}) VALUES (?, ?, ?, ?)", wanted)
        raw.commit()


Rows = list[tuple[int, str, str, str]]


def old_chain(folder: Path) -> tuple[Path, FakeClock]:
    """A chain of 40 records, one each ten days, and the time after it."""
    clock = FakeClock()
    store = Store(folder, KEY, clock)
    for number in range(40):
        with store.transaction() as tx:
            tx.audit(Draft("decision", f"sentence {number}", alertname=f"Alert{number % 2}"))
        clock.advance(10 * DAY)
    store.close()
    return folder, clock


def retire(folder: Path, clock: FakeClock, keep: float) -> None:
    store = Store(folder, KEY, clock)
    try:
        while store.retire_audit(keep):
            pass
    finally:
        store.close()
