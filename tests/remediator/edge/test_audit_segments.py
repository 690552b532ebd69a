"""Old audit records move into segments: the chain is proven on, and nothing is lost by it."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from remediator.errors import StorageError
from remediator.store import segments
from tests.remediator.edge.audit_chain import (
    COLUMNS,
    DAY,
    RECORDS,
    Rows,
    old_chain,
    put,
    retire,
    rows,
    tampering,
    verdict,
    write,
)
from tests.remediator.engine.fakes import FakeClock


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    write(tmp_path / "state", RECORDS)
    return tmp_path / "state"


@pytest.fixture
def old(tmp_path: Path) -> tuple[Path, FakeClock]:
    return old_chain(tmp_path / "state")


def test_old_records_move_into_a_segment_and_the_chain_is_still_proven(
    old: tuple[Path, FakeClock],
) -> None:
    folder, clock = old
    retire(folder, clock, 200 * DAY)
    retire(folder, clock, 100 * DAY)
    first = rows(folder)[0][0]
    assert 28 <= first <= 32
    found = verdict(folder)
    assert (found.broken_at, found.records, found.first) == (None, 42, 1)
    assert verdict(folder, without=True).broken_at is None
    assert verdict(folder, without=True).first == first


def test_a_segment_is_made_only_when_it_is_worth_while(old: tuple[Path, FakeClock]) -> None:
    folder, clock = old
    retire(folder, clock, 395 * DAY)
    assert rows(folder)[0][0] == 1, "less than a week too old"


def test_a_record_of_a_clock_that_was_far_ahead_keeps_none_from_leaving(
    old: tuple[Path, FakeClock],
) -> None:
    folder, clock = old
    clock.passed += 10_000 * DAY
    write(folder, 1, clock=clock)
    clock.passed -= 10_000 * DAY
    write(folder, 20, clock=clock)
    clock.advance(1000 * DAY)
    retire(folder, clock, DAY)
    assert rows(folder)[0][0] > 55
    assert verdict(folder).broken_at is None
    clock.passed += 10_000 * DAY
    write(folder, 2, clock=clock)
    clock.passed -= 10_000 * DAY
    last = rows(folder)[-1][0]
    clock.advance(1000 * DAY)
    retire(folder, clock, DAY)
    assert [row[0] for row in rows(folder)][:2] == [last - 1, last], "its own time is not known"


def test_the_newest_record_never_leaves(old: tuple[Path, FakeClock]) -> None:
    folder, clock = old
    clock.advance(1000 * DAY)
    retire(folder, clock, DAY)
    write(folder, 1, clock=clock)
    assert verdict(folder).broken_at is None


def segment_files(folder: Path) -> list[Path]:
    return sorted((folder / "audit-segments").iterdir())


def test_whatever_is_done_to_a_segment_is_named(old: tuple[Path, FakeClock]) -> None:
    folder, clock = old
    retire(folder, clock, 200 * DAY)
    (file,) = segment_files(folder)
    lines = file.read_bytes().splitlines(keepends=True)
    for number in range(len(lines)):
        last = number == len(lines) - 1
        for what, forged in (
            ("deleted", lines[:number] + lines[number + 1 :]),
            (
                "changed",
                [*lines[:number], lines[number].replace(b"1", b"2", 1), *lines[number + 1 :]],
            ),
            ("cut", lines[:number]),
            ("twice", lines[: number + 1] + lines[number:]),
        ):
            file.write_bytes(b"".join(forged))
            found = verdict(folder)
            assert found.broken_at is not None, (what, number)
            assert found.broken_at >= number or last, (what, number)
    file.unlink()
    assert verdict(folder).broken_at == 1
    assert file.name in verdict(folder).problem


def test_records_deleted_as_if_by_retention_are_named(chain: Path) -> None:
    with contextlib.closing(sqlite3.connect(chain / "remediator.db")) as raw:
        raw.execute("INSERT INTO audit_segments VALUES (1, 4, 'm', 'audit-1-4.jsonl', 's', 0)")
        raw.execute("DELETE FROM audit WHERE seq <= 4")
        raw.commit()
    assert verdict(chain).broken_at == 1
    assert verdict(chain, without=True).broken_at == 5, "no checkpoint tells of them"


def test_nothing_is_deleted_that_could_not_be_written_elsewhere(
    old: tuple[Path, FakeClock],
) -> None:
    folder, clock = old
    (folder / "audit-segments").write_text("a file where the folder should be")
    with pytest.raises(StorageError, match="cannot be written"):
        retire(folder, clock, 100 * DAY)
    assert len(rows(folder)) == 40


def test_nothing_is_deleted_that_the_disk_did_not_keep(
    old: tuple[Path, FakeClock], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, clock = old
    put_down = segments._put
    monkeypatch.setattr(segments, "_put", lambda path, raw: put_down(path, raw[:-100]))
    with pytest.raises(StorageError, match="does not hold what was written"):
        retire(folder, clock, 100 * DAY)
    assert len(rows(folder)) == 40


def test_nothing_of_a_broken_chain_is_deleted(old: tuple[Path, FakeClock]) -> None:
    folder, clock = old
    with contextlib.closing(sqlite3.connect(folder / "remediator.db")) as raw:
        raw.execute("DROP TRIGGER audit_no_update")
        raw.execute("UPDATE audit SET record = '{\"time\": 1}' WHERE seq = 3")
        raw.commit()
    with pytest.raises(StorageError, match="record 3 of the audit was changed"):
        retire(folder, clock, 100 * DAY)
    assert len(rows(folder)) == 40


def test_a_segment_whose_writer_died_is_written_anew(old: tuple[Path, FakeClock]) -> None:
    folder, clock = old
    shutil.copytree(folder, folder.with_name("then"))
    retire(folder, clock, 300 * DAY)
    (orphan,) = segment_files(folder)
    then = folder.with_name("then")
    (then / "audit-segments").mkdir()
    shutil.copy(orphan, then / "audit-segments")
    assert verdict(then).broken_at is None, "its records are still in the database"
    retire(then, clock, 100 * DAY)
    assert len(segment_files(then)) == 1
    assert verdict(then).broken_at is None


def other_chain(folder: Path, clock: FakeClock) -> None:
    """The database was lost, and a new one was begun beside the old one's segments."""
    for name in ("remediator.db", "remediator.db-wal", "remediator.db-shm"):
        (folder / name).unlink(missing_ok=True)
    write(folder, 3, clock=clock)


def restored(folder: Path, clock: FakeClock) -> None:
    """A backup from before the segment's last records were written was put back."""
    with tampering(folder) as raw:
        raw.execute("DELETE FROM audit")
        raw.execute("DROP TRIGGER audit_segments_no_delete")
        raw.execute("DELETE FROM audit_segments")
    put(folder, lines_of(segment_files(folder)[0])[:3])


def lines_of(file: Path) -> Rows:
    found = map(json.loads, file.read_text().splitlines()[:-1])
    return [tuple(one[name] for name in COLUMNS.split(", ")) for one in found]


@pytest.mark.parametrize("how", [other_chain, restored])
def test_a_segment_whose_records_are_nowhere_else_is_never_removed(
    old: tuple[Path, FakeClock], how: Callable[[Path, FakeClock], None]
) -> None:
    folder, clock = old
    retire(folder, clock, 200 * DAY)
    (file,) = segment_files(folder)
    was = file.read_bytes()
    how(folder, clock)
    clock.advance(1000 * DAY)
    with pytest.raises(StorageError, match="not in the database"):
        retire(folder, clock, DAY)
    assert file.read_bytes() == was
