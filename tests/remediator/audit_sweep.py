"""Tampers with a large audit chain at sampled places, and measures how fast it is written and verified.

python -m tests.remediator.audit_sweep [--records 100000] [--samples 60]
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import random
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from remediator.clock import SystemClock
from remediator.store import Draft, Store

KEY = b"k" * 64
_COLUMNS = "seq, record, prev_mac, mac"
Row = tuple[int, str, str, str]


def main() -> int:
    parser = argparse.ArgumentParser(prog="audit_sweep", description=__doc__.split("\n")[0])
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--samples", type=int, default=60)
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as name:
        return sweep(Path(name), arguments.records, arguments.samples)


def sweep(folder: Path, records: int, samples: int) -> int:
    """0 when every change was named by the record that it was made to."""
    seconds = fill(folder, records)
    print(f"written: {records / seconds:,.0f} records/s, 100 a commit")
    verified, seconds = verify(folder)
    assert verified is None
    print(f"verified: {records / seconds:,.0f} records/s ({seconds:.2f} s)")
    chance, missed, done = random.Random(1), 0, Counter[str]()
    with contextlib.closing(sqlite3.connect(folder / "remediator.db")) as raw:
        for trigger in ("audit_no_update", "audit_no_delete"):
            raw.execute(f"DROP TRIGGER {trigger}")
        for _ in range(samples):
            what = chance.choice(list(CHANGES))
            seq = chance.randrange(1, records)
            before = raw.execute(
                f"SELECT {_COLUMNS} FROM audit WHERE seq >= ? ORDER BY seq", (seq,)
            )
            kept = before.fetchall() if what == "cut" else before.fetchmany(2)
            expected = CHANGES[what](raw, kept, chance)
            raw.commit()
            found, _ = verify(folder)
            done[what] += 1
            if found != expected:
                missed += 1
                print(f"MISSED: {what} at {seq}: said {found}, not {expected}")
            restore(raw, kept)
    assert verify(folder)[0] is None
    print(f"{sum(done.values())} changes ({dict(done)}), {missed} missed")
    return 1 if missed else 0


def fill(folder: Path, records: int) -> float:
    store = Store(folder, KEY, SystemClock())
    begun = time.monotonic()
    for number in range(0, records, 100):
        with store.transaction() as tx:
            for one in range(number, min(number + 100, records)):
                about = {"evidence": {"temperature_celsius": 84.5, "n": one}}
                tx.audit(Draft("decision", f"sentence {one}", target="gpu:GPU-0", data=about))
    seconds = time.monotonic() - begun
    store.close()
    return seconds


def verify(folder: Path) -> tuple[int | None, float]:
    store = Store(folder, KEY, SystemClock(), read_only=True)
    begun = time.monotonic()
    with store.reading() as tx:
        found = tx.verify_audit().broken_at
    seconds = time.monotonic() - begun
    store.close()
    return found, seconds


def restore(raw: sqlite3.Connection, kept: list[Row]) -> None:
    raw.execute("DELETE FROM audit WHERE seq BETWEEN ? AND ?", (kept[0][0], kept[-1][0]))
    raw.executemany(f"INSERT INTO audit ({_COLUMNS}) VALUES (?, ?, ?, ?)", kept)
    raw.commit()


def flip(raw: sqlite3.Connection, kept: list[Row], chance: random.Random) -> int:
    seq, text = kept[0][:2]
    at = text.index('"sentence ') + 1 + chance.randrange(8)
    changed = text[:at] + chr(ord(text[at]) ^ 1) + text[at + 1 :]
    raw.execute("UPDATE audit SET record = ? WHERE seq = ?", (changed, seq))
    return seq


def delete(raw: sqlite3.Connection, kept: list[Row], _: random.Random) -> int:
    raw.execute("DELETE FROM audit WHERE seq = ?", (kept[0][0],))
    return kept[0][0]


def swap(raw: sqlite3.Connection, kept: list[Row], _: random.Random) -> int:
    (one, *first), (other, *second) = kept
    for seq, row in ((one, second), (other, first)):
        raw.execute("UPDATE audit SET record = ?, prev_mac = ?, mac = ? WHERE seq = ?", (*row, seq))
    return one


def insert(raw: sqlite3.Connection, kept: list[Row], _: random.Random) -> int:
    """A copy of a record in the place of the one behind it."""
    (_, *row), (other, *_rest) = kept
    raw.execute("UPDATE audit SET record = ?, prev_mac = ?, mac = ? WHERE seq = ?", (*row, other))
    return other


def cut(raw: sqlite3.Connection, kept: list[Row], _: random.Random) -> int:
    raw.execute("DELETE FROM audit WHERE seq >= ?", (kept[0][0],))
    return kept[0][0]


CHANGES = {"flip": flip, "delete": delete, "swap": swap, "insert": insert, "cut": cut}


if __name__ == "__main__":
    sys.exit(main())
