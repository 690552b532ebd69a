"""The audit chain: it holds, and whatever is done to it behind its back is named."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from remediator.store import Draft, Store
from remediator.store.audit import GENESIS
from remediator.store.verify import Verdict
from tests.remediator.edge.support import KEY, FakeClock, write_config

RECORDS = 6
COLUMNS = ("record", "prev_mac", "mac")
HOSTILE = "\x1b[2J\x1b]0;owned\x07\r\nforged line \u202eright to left\x9b31m\x00"


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory whose chain holds a few records."""
    folder = tmp_path_factory.mktemp("chain")
    store = Store(folder, KEY, FakeClock())
    for number in range(1, RECORDS + 1):
        with store.transaction() as tx:
            tx.audit(Draft("decision", f"sentence {number} — é", run=number, data={"n": number}))
    store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store.close()
    return folder


@pytest.fixture
def copy(chain: Path, tmp_path: Path) -> Path:
    shutil.copytree(chain, tmp_path / "state")
    return tmp_path / "state"


@contextlib.contextmanager
def tampering(folder: Path) -> Iterator[sqlite3.Connection]:
    """A connection of somebody who can write the file and does not care for triggers."""
    with contextlib.closing(sqlite3.connect(folder / "remediator.db")) as raw:
        raw.execute("DROP TRIGGER audit_no_update")
        raw.execute("DROP TRIGGER audit_no_delete")
        raw.execute("PRAGMA ignore_check_constraints = ON")
        yield raw
        raw.commit()


def verdict(folder: Path, key: bytes = KEY) -> Verdict:
    store = Store(folder, key, FakeClock(), read_only=True)
    try:
        with store.reading() as tx:
            return tx.verify_audit()
    finally:
        store.close()


def test_a_chain_that_nobody_touched_holds(chain: Path) -> None:
    found = verdict(chain)
    assert (found.records, found.broken_at, found.problem) == (RECORDS, None, "")
    assert len(found.head) == 64


def test_an_empty_chain_holds(tmp_path: Path) -> None:
    Store(tmp_path, KEY, FakeClock()).close()
    assert verdict(tmp_path) == Verdict(0, None, "", GENESIS)


def test_another_key_does_not_verify(chain: Path) -> None:
    assert verdict(chain, b"z" * 64).broken_at == 1


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("mask", [0x01, 0x80])
def test_every_flipped_byte_is_named(copy: Path, column: str, mask: int) -> None:
    seq, database = 3, copy / "remediator.db"
    with contextlib.closing(sqlite3.connect(database)) as raw:
        query = "SELECT record, prev_mac, mac FROM audit WHERE seq = ?"
        row = raw.execute(query, (seq,)).fetchone()
    fields = dict(zip(COLUMNS, (text.encode() for text in row), strict=True))
    # In the file itself, where the three lie one after the other.
    untouched = database.read_bytes()
    begin = untouched.index(b"".join(fields.values()))
    for name in COLUMNS[: COLUMNS.index(column)]:
        begin += len(fields[name])
    for at in range(len(fields[column])):
        damaged = bytearray(untouched)
        damaged[begin + at] ^= mask
        database.write_bytes(damaged)
        found = verdict(copy)
        assert found.broken_at == seq, f"byte {at} of {column}"
        assert str(seq) in found.problem
        assert found.records == seq - 1
    database.write_bytes(untouched)
    assert verdict(copy).broken_at is None


@pytest.mark.parametrize("seq", range(1, RECORDS))
def test_a_deleted_record_is_named(copy: Path, seq: int) -> None:
    with tampering(copy) as raw:
        raw.execute("DELETE FROM audit WHERE seq = ?", (seq,))
    found = verdict(copy)
    assert (found.broken_at, found.problem) == (seq, f"record {seq} is missing")


def test_deleting_and_closing_the_gap_is_named(copy: Path) -> None:
    with tampering(copy) as raw:
        raw.execute("DELETE FROM audit WHERE seq = 3")
        raw.execute("UPDATE audit SET seq = seq - 1 WHERE seq > 3")
    assert verdict(copy).broken_at == 3


def test_closing_the_gap_and_the_links_is_named(copy: Path) -> None:
    with tampering(copy) as raw:
        raw.execute("DELETE FROM audit WHERE seq = 3")
        raw.execute("UPDATE audit SET seq = seq - 1 WHERE seq > 3")
        raw.execute(
            "UPDATE audit SET prev_mac = (SELECT mac FROM audit WHERE seq = 2) WHERE seq = 3"
        )
    assert verdict(copy).broken_at == 3


def test_two_exchanged_records_are_named(copy: Path) -> None:
    with tampering(copy) as raw:
        raw.execute("UPDATE audit SET seq = -1 WHERE seq = 2")
        raw.execute("UPDATE audit SET seq = 2 WHERE seq = 4")
        raw.execute("UPDATE audit SET seq = 4 WHERE seq = -1")
    assert verdict(copy).broken_at == 2


def test_a_record_without_the_key_is_named(copy: Path) -> None:
    head = verdict(copy).head
    with tampering(copy) as raw:
        raw.execute(
            "INSERT INTO audit (seq, record, prev_mac, mac) VALUES (?, '{}', ?, ?)",
            (RECORDS + 1, head, "0" * 64),
        )
    assert verdict(copy).broken_at == RECORDS + 1


@pytest.mark.parametrize("statement", ["UPDATE audit SET record = '{}'", "DELETE FROM audit"])
def test_our_own_schema_refuses_to_change_a_record(copy: Path, statement: str) -> None:
    with (
        contextlib.closing(sqlite3.connect(copy / "remediator.db")) as raw,
        pytest.raises(sqlite3.IntegrityError, match="never"),
    ):
        raw.execute(statement)
    assert verdict(copy).broken_at is None


@pytest.fixture
def config(tmp_path: Path, copy: Path) -> Path:
    """A configuration over the copied chain, with the right key."""
    (copy / "audit.key").write_bytes(KEY)
    return write_config(tmp_path)


def add(state: Path, *drafts: Draft) -> None:
    store = Store(state, KEY, FakeClock())
    with store.transaction() as tx:
        for draft in drafts:
            tx.audit(draft)
    store.close()


Cli = Callable[..., tuple[int, str, str]]


def test_verify_says_how_many_hold_and_the_head(cli: Cli, config: Path, copy: Path) -> None:
    code, out, _ = cli("audit", "verify", f"--config.file={config}")
    assert code == 0
    assert f"{RECORDS} records hold; head {verdict(copy).head}" in out


def test_verify_fails_and_names_the_record(cli: Cli, config: Path, copy: Path) -> None:
    with tampering(copy) as raw:
        raw.execute("UPDATE audit SET mac = 'é' WHERE seq = 5")
    code, out, err = cli("audit", "verify", f"--config.file={config}")
    assert code == 1
    assert "BROKEN: record 5 was changed; 4 records before it hold" in out
    assert err == ""


def test_a_lost_key_is_said_and_not_replaced(cli: Cli, config: Path, copy: Path) -> None:
    (copy / "audit.key").unlink()
    for command in (("audit", "verify"), ("runs",), ("serve",), ("undo", "--all")):
        code, _, err = cli(*command, f"--config.file={config}")
        assert code == 1
        assert str(copy / "audit.key") in err
        assert not (copy / "audit.key").exists()


def test_every_record_is_exported_as_a_line_of_json(cli: Cli, config: Path, copy: Path) -> None:
    add(copy, Draft("decision", HOSTILE, alertname=HOSTILE))
    code, out, _ = cli("audit", "export", f"--config.file={config}")
    records = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [record["seq"] for record in records] == list(range(1, RECORDS + 2))
    assert records[-1]["sentence"] == HOSTILE, "an export loses nothing"
    assert harmless(out)


def test_the_spreadsheet_never_gets_a_formula(cli: Cli, config: Path, copy: Path) -> None:
    formulas = ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(1)", "\t=1", "\r=1", "\n=1"]
    add(copy, *[Draft("decision", text, alertname=text, target=text) for text in formulas])
    code, out, _ = cli("audit", "export", "--format=csv", f"--config.file={config}")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0
    assert len(rows) == RECORDS + len(formulas)
    for row in rows:
        for name, cell in row.items():
            assert not cell.lstrip("\t\r\n ").startswith(("=", "+", "-", "@")), (name, cell)
    assert rows[0]["sentence"] == "sentence 1 — é"


def test_a_spreadsheet_cell_is_one_line(cli: Cli, config: Path, copy: Path) -> None:
    add(copy, Draft("decision", HOSTILE, alertname=HOSTILE))
    _, out, _ = cli("audit", "export", "--format=csv", f"--config.file={config}")
    assert harmless(out)
    assert len(out.splitlines()) == 1 + RECORDS + 1


def test_a_tail_cannot_move_the_cursor_or_forge_a_line(cli: Cli, config: Path, copy: Path) -> None:
    add(copy, Draft("decision", HOSTILE, alertname=HOSTILE, severity="critical"))
    code, out, _ = cli("audit", "tail", "--limit=2", f"--config.file={config}")
    assert code == 0
    assert harmless(out)
    lines = out.splitlines()
    assert len(lines) == 2
    assert "!!" in lines[-1]
    assert "forged line" in lines[-1]


def harmless(text: str) -> bool:
    return all(ch.isprintable() or ch == "\n" for ch in text.replace("\r\n", "\n"))
