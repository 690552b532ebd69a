"""Segments: what left the database of the audit chain, record for record, in signed files.

One line a record, with the very bytes that its mac was made of, then a line that is signed and says
from which record to which the file goes. A record is deleted from the database only after the file
that holds it was read back from the disk, and a record of the chain (`audit_segment`) says so.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from remediator.durations import format_duration
from remediator.errors import StorageError
from remediator.store.audit import Draft, mac_of

EVENT = "audit_segment"
MOST = 10_000
# Records that are this much older than they need be make a segment, however few they are: one
# segment a week, not one an hour.
_PATIENCE = 7 * 86400.0

Line = tuple[int, bytes, bytes, bytes]
Row = tuple[int, str, str, str]


class Damaged(Exception):  # noqa: N818 - a finding
    """A segment file is not as it was written."""


@dataclass(frozen=True)
class Segment:
    """Records `first` to `last`; `mac` is that of the last, `prev_mac` that of the one before."""

    first: int
    last: int
    prev_mac: str
    mac: str
    file: str
    sha256: str

    def draft(self, keep: float) -> Draft:
        """The record that takes the place of the segment in the database."""
        return Draft(
            EVENT,
            f"records {self.first} to {self.last} are older than {format_duration(keep)} and are "
            f"in {self.file} now",
            data={name: getattr(self, name) for name in self.__dataclass_fields__},
        )


def due(connection: sqlite3.Connection, before: float, now: float) -> list[Row]:
    """The oldest records, where so many are older than `before` that a segment is worth while.

    Never the newest record: the next one is chained to it. One that lies ahead of `now`, from when
    the clock was wrong, goes with those behind it.
    """
    rows = connection.execute(
        "SELECT seq, record, prev_mac, mac, time FROM audit ORDER BY seq LIMIT ?", (MOST + 1,)
    ).fetchall()
    old = list(takewhile(lambda row: row[4] < before or row[4] > now, rows[:-1]))
    while old and old[-1][4] > now:
        old.pop()
    if len(old) < MOST and not any(row[4] < before - _PATIENCE for row in old):
        return []
    return [row[:4] for row in old]


def write(folder: Path, rows: list[Row], key: bytes, keys: tuple[bytes, ...]) -> Segment:
    """Write the segment of `rows`, durably, and read it back.

    Raises:
        StorageError: a record is not as it was written, the disk does not hold the file, or one in
            its place holds what is nowhere else.
    """
    for seq, text, prev_mac, mac in rows:
        if mac not in {mac_of(one, seq, prev_mac, text.encode()) for one in keys}:
            raise StorageError(f"record {seq} of the audit was changed: none is removed")
    first, last = rows[0], rows[-1]
    span = {"first": first[0], "last": last[0], "prev_mac": first[2], "mac": last[3]}
    names = ("seq", "record", "prev_mac", "mac")
    lines = [_dump(dict(zip(names, row, strict=True))) for row in rows]
    lines.append(_dump({"segment": span, "signature": _signature(key, span)}))
    raw = "".join(line + "\n" for line in lines).encode()
    path = folder / f"audit-{first[0]:012d}-{last[0]:012d}.jsonl"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for orphan in _orphans(folder, first[0], raw):
            orphan.unlink()
        _put(path, raw)
        kept = path.read_bytes()
    except OSError as error:
        raise StorageError(f"the segment {path} cannot be written: {error}") from None
    if kept != raw:
        raise StorageError(f"the segment {path} does not hold what was written to it")
    digest = hashlib.sha256(raw).hexdigest()
    return Segment(first[0], last[0], first[2], last[3], path.name, digest)


def _orphans(folder: Path, first: int, raw: bytes) -> list[Path]:
    """Segments whose records are all in `raw` too: their writer died before it deleted them.

    Raises:
        StorageError: one holds others, which are nowhere else: of another chain, or of this one
            before an older copy of the database was put back.
    """
    found = [path for begins, _, path in files(folder) if begins >= first]
    for path in found:
        lines = path.read_bytes().splitlines(keepends=True)
        if len(lines) < 2 or not raw.startswith(b"".join(lines[:-1])):
            raise StorageError(
                f"the segment {path} holds records that are not in the database: none is moved. "
                "Move the file away, and keep it"
            )
    return found


def remove(connection: sqlite3.Connection, segment: Segment, now: float) -> None:
    """Delete the segment's records from the database, within the caller's transaction."""
    connection.execute(
        "INSERT INTO audit_segments (first, last, mac, file, sha256, written_at) "
        "VALUES (?, ?, ?, ?, ?, ?)",
        (segment.first, segment.last, segment.mac, segment.file, segment.sha256, now),
    )
    connection.execute("DELETE FROM audit WHERE seq BETWEEN ? AND ?", (segment.first, segment.last))


def files(folder: Path) -> list[tuple[int, int, Path]]:
    """First record, last record and path of each segment file, oldest first."""
    found = []
    with suppress(FileNotFoundError, NotADirectoryError):
        for path in folder.iterdir():
            parts = path.name.removeprefix("audit-").removesuffix(".jsonl").split("-")
            if len(parts) == 2 and all(part.isascii() and part.isdigit() for part in parts):
                found.append((int(parts[0]), int(parts[1]), path))
    return sorted(found)


def lines_before(folder: Path, first: int, keys: Sequence[bytes] = ()) -> Iterator[Line]:
    """The records before `first`, which is the oldest in the database.

    A segment whose records are still in the database was written by a process that died before it
    could delete them. With `keys` the signed end of each file is looked at too.

    Raises:
        Damaged: a file cannot be read, or its end is missing or not signed.
    """
    for _, last, path in files(folder):
        if last < first:
            yield from _lines(path, keys)


def records(folder: Path, first: int) -> Iterator[dict[str, Any]]:
    """The records before `first` as the export shows them.

    Raises:
        Damaged: a file cannot be read.
    """
    for seq, text, _, mac in lines_before(folder, first):
        yield {"seq": seq, **json.loads(text), "mac": mac.decode("ascii", "replace")}


def _lines(path: Path, keys: Sequence[bytes]) -> Iterator[Line]:
    seq = 0
    try:
        with path.open("rb") as file:
            for raw in file:
                one = json.loads(raw)
                if "segment" in one:
                    _check_end(one, seq, keys, more=file.read(1))
                    return
                seq = int(one["seq"])
                text, prev_mac, mac = (one[name] for name in ("record", "prev_mac", "mac"))
                yield seq, text.encode(), prev_mac.encode(), mac.encode()
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise Damaged(f"the segment {path} cannot be read: {error}") from None
    raise Damaged(f"the end of the segment {path} is missing")


def _check_end(one: Mapping[str, Any], seq: int, keys: Sequence[bytes], *, more: bytes) -> None:
    span, signature = one["segment"], str(one["signature"]).encode()
    right = [_signature(key, span).encode() for key in keys]
    if keys and not any(hmac.compare_digest(signature, each) for each in right):
        raise ValueError("its end is not signed with a key of ours")
    if more or span["last"] != seq:
        raise ValueError("its end is not where it should be")


def _put(path: Path, raw: bytes) -> None:
    fresh = path.with_name(path.name + ".tmp")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _dump(one: Mapping[str, Any]) -> str:
    return json.dumps(one, ensure_ascii=True, sort_keys=True, separators=(",", ":"))


def _signature(key: bytes, span: Mapping[str, Any]) -> str:
    return hmac.digest(key, b"segment\n" + _dump(span).encode(), "sha256").hex()
