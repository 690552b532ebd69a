"""Walks the audit chain from its first record, through the segments, and compares it with its anchor."""

from __future__ import annotations

import hmac
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from remediator.store import segments
from remediator.store.audit import GENESIS, mac_of


@dataclass(frozen=True)
class Verdict:
    """What `verify` found: how many records hold, and the first that does not.

    `first`: the oldest record that was looked at; `anchored`: the newest that the anchor names.
    """

    records: int
    broken_at: int | None
    problem: str
    head: str
    first: int = 1
    anchored: int = 0


class _Broken(Exception):  # noqa: N818 - control flow of one walk
    def __init__(self, seq: int, problem: str) -> None:
        super().__init__(problem)
        self.seq, self.problem = seq, problem


class Walk:
    """One walk along the chain; the keys are in the order in which they were used."""

    def __init__(self, keys: Sequence[bytes], heads: Mapping[int, set[str]]) -> None:
        self._keys = list(keys)
        self._heads = heads
        self.prev_mac, self.expected = GENESIS, 1

    def step(self, seq: int, text: bytes, stored_prev: bytes, mac: bytes) -> None:
        """Look at the next record."""
        if seq != self.expected:
            raise _Broken(self.expected, f"record {self.expected} is missing")
        if stored_prev != self.prev_mac.encode():
            raise _Broken(seq, f"record {seq} does not follow {seq - 1}")
        right = self._right(seq, text, mac)
        if self._heads.get(seq, {right}) != {right}:
            raise _Broken(seq, f"record {seq} is not the one that was anchored")
        self.prev_mac, self.expected = right, seq + 1

    def _right(self, seq: int, text: bytes, mac: bytes) -> str:
        """The record's mac. Once a newer key was used, an older one counts no more."""
        for number, key in enumerate(self._keys):
            right = mac_of(key, seq, self.prev_mac, text)
            if hmac.compare_digest(mac, right.encode()):
                del self._keys[:number]
                return right
        raise _Broken(seq, f"record {seq} was changed")

    def end(self, anchored: int) -> None:
        """No record is left, and the anchor has seen one with this number."""
        if anchored >= self.expected:
            gone = f"record {self.expected}"
            gone += f" to {anchored} are" if anchored > self.expected else " is"
            raise _Broken(self.expected, f"{gone} cut off: the anchor has seen {anchored}")

    def begin_at(self, seq: int, prev_mac: str) -> None:
        """Leave out the records before `seq`: they are in segments that are kept elsewhere."""
        self.expected, self.prev_mac = seq, prev_mac


def verify(
    connection: sqlite3.Connection,
    keys: Sequence[bytes],
    heads: Mapping[int, set[str]],
    folder: Path | None,
) -> Verdict:
    """Walk the whole chain and name the first record that is not as it was written.

    Args:
        connection: The database.
        keys: The keys, oldest first; the last is the present one.
        heads: What the anchor says; read before the database, which may have gone on since.
        folder: Where the segments are; None leaves them out and begins at the last checkpoint.
    """
    walk = Walk(keys, heads)
    first = _first(connection)
    begins = 1
    anchored = max(heads, default=0)
    try:
        if folder is None and first > 1:
            begins = first
            walk.begin_at(first, _checkpoint(connection, first))
        elif folder is not None:
            for line in segments.lines_before(folder, first, keys):
                walk.step(*line)
        for row in _rows(connection):
            walk.step(*row)
        walk.end(anchored)
    except _Broken as broken:
        held = walk.expected - begins
        problem = broken.problem + _where(connection, broken.seq if broken.seq < first else 0)
        return Verdict(held, broken.seq, problem, walk.prev_mac, begins, anchored)
    except segments.Damaged as damage:
        held = walk.expected - begins
        return Verdict(held, walk.expected, str(damage), walk.prev_mac, begins, anchored)
    return Verdict(walk.expected - begins, None, "", walk.prev_mac, begins, anchored)


def _checkpoint(connection: sqlite3.Connection, first: int) -> str:
    """The mac of the last record that was removed, as a record of the chain tells it.

    That record is authenticated like every other when the walk comes to it.
    """
    row = connection.execute(
        "SELECT json_extract(record, '$.data.mac') FROM audit WHERE "
        "json_extract(record, '$.event') = ? AND json_extract(record, '$.data.last') = ? "
        "ORDER BY seq DESC LIMIT 1",
        (segments.EVENT, first - 1),
    ).fetchone()
    if row is None or not isinstance(row[0], str):
        raise _Broken(first, f"no checkpoint tells of the records before {first}")
    return row[0]


def _where(connection: sqlite3.Connection, seq: int) -> str:
    """The file that should hold a record that has left the database."""
    row = connection.execute(
        "SELECT file FROM audit_segments WHERE ? BETWEEN first AND last", (seq,)
    ).fetchone()
    return "" if row is None else f" (it was moved to {row[0]})"


def _first(connection: sqlite3.Connection) -> int:
    row = connection.execute("SELECT min(seq) FROM audit").fetchone()
    return 1 if row[0] is None else int(row[0])


def _rows(connection: sqlite3.Connection) -> Iterator[tuple[int, bytes, bytes, bytes]]:
    # As bytes: what was tampered with need not be text any more.
    yield from connection.execute(
        "SELECT seq, CAST(record AS BLOB), CAST(prev_mac AS BLOB), CAST(mac AS BLOB) "
        "FROM audit ORDER BY seq"
    )
